/** What res-sse costs, beside a bare socket, Express by hand and better-sse. See README.md. */
import { writeFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { Bench } from './processes.mjs';
import { scenarios } from './scenarios.mjs';
import { rowsOf, tableOf } from './table.mjs';

const NUMBERS = ['n', 'size', 'burst', 'rate', 'events'];

const HELP = `npm run bench -- [options]

  --only a,b      these scenarios instead of the default set
  --all           the default set and those marked * below
  --reps 9        how often each server runs; memory, overload and stall get a third of it
  --servers a,b   only these servers of each scenario, by the beginnings of their names
  --n, --size, --burst, --rate, --events
                  other numbers for whatever is run: streams, bytes, events per turn, events per second, events per run
  --json file     every single result, too
  --no-pin        leave it to the kernel where server and client run

  For --only scale, which is the scaling table instead of the one of the other scenarios:
  --dist folder   measures this build, another checkout's \`dist\`, instead of this one's
  --cases a,b     only these cases, by the names in the table
  --sizes 100,500 other sizes for whatever is run
  --cut 60        seconds after which a case is cut

${scenarios.map(({ name, title, isExtra }) => `  ${(isExtra ? `${name} *` : name).padEnd(15)} ${title}`).join('\n')}
`;

const { values: flags } = parseArgs({
  allowNegative: true,
  options: {
    only: { type: 'string' },
    all: { type: 'boolean', default: false },
    reps: { type: 'string', default: '9' },
    servers: { type: 'string' },
    json: { type: 'string' },
    pin: { type: 'boolean', default: true },
    ...Object.fromEntries(
      ['dist', 'cases', 'sizes', 'cut'].map((name) => [name, { type: 'string' }]),
    ),
    help: { type: 'boolean', default: false },
    ...Object.fromEntries(NUMBERS.map((name) => [name, { type: 'string' }])),
  },
});

if (flags.help) process.stdout.write(HELP);
else if (flags.only === 'scale') await scale();
else await main();

async function main() {
  const begun = Date.now();
  const bench = new Bench(flags.pin);
  const rows = [];
  const raw = [];
  // Also when somebody has had enough: what was measured by then counts.
  process.once('exit', () =>
    process.stdout.write(`${machineText(bench, begun)}\n\n${tableOf(rows)}\n`),
  );
  for (const scenario of chosen()) {
    process.stderr.write(`${scenario.name}: ${scenario.title}\n`);
    const reps = Math.max(1, Math.ceil(Number(flags.reps) * (scenario.share ?? 1)));
    const results = await scenario.run(bench, scenario, reps);
    rows.push(...rowsOf(scenario, results));
    raw.push({ scenario: scenario.name, results: Object.fromEntries(results) });
  }
  if (flags.json !== undefined) {
    writeFileSync(flags.json, JSON.stringify({ node: process.version, flags, raw }, undefined, 2));
  }
  process.exit(rows.some(({ failed }) => failed > 0) ? 1 : 0);
}

/** The scaling table, which has columns of its own. */
async function scale() {
  // Loads the built package, which the other scenarios leave to their servers.
  const { scalingTable } = await import('./scale/table.mjs');
  process.stdout.write(`${await scalingTable(flags)}\n`);
}

/** The scenarios that are asked for, with the numbers that are. */
function chosen() {
  const names = flags.only?.split(',');
  const unknown = names?.find((name) => !scenarios.some((scenario) => scenario.name === name));
  if (unknown !== undefined) {
    throw new Error(`There is no scenario ${unknown}; --help names them all.`);
  }
  const numbers = Object.fromEntries(
    NUMBERS.flatMap((name) => (flags[name] === undefined ? [] : [[name, Number(flags[name])]])),
  );
  return scenarios
    .filter(({ name, isExtra }) => names?.includes(name) ?? (flags.all || !isExtra))
    .map((scenario) =>
      Object.assign(scenario, numbers, {
        title: titleOf(scenario, numbers),
        variants: variantsOf(scenario),
      }),
    );
}

function titleOf({ title }, numbers) {
  const changed = Object.entries(numbers).map(([name, value]) => `${name} ${value}`);
  return changed.length === 0 ? title : `${title}; but ${changed.join(', ')}`;
}

function variantsOf({ variants }) {
  const wanted = flags.servers?.split(',');
  return wanted === undefined
    ? variants
    : variants.filter(({ name }) => wanted.some((beginning) => name.startsWith(beginning)));
}

function machineText(bench, begun) {
  const [{ model }] = cpus();
  const gigabytes = Math.round(totalmem() / 2 ** 30);
  const minutes = ((Date.now() - begun) / 60_000).toFixed(1);
  return [
    `${new Date(begun).toISOString().slice(0, 16)}Z, Node ${process.version}, ${cpus().length} × ${model}, ${gigabytes} GiB,`,
    `${bench.pinning}, ${minutes} minutes, \`node bench/bench.mjs ${process.argv.slice(2).join(' ')}\``,
  ].join(' ');
}
