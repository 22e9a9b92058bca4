/** Compares the cost of res-sse with bare sockets, Express and better-sse. See README.md. */
import { writeFileSync } from 'node:fs';
import { cpus, totalmem } from 'node:os';
import process from 'node:process';
import { parseArgs } from 'node:util';
import { Bench } from './processes.mjs';
import { scenarios } from './scenarios.mjs';
import { createRows, formatTable } from './table.mjs';

const NUMBERS = ['n', 'size', 'burst', 'rate', 'events'];

const HELP = `npm run bench -- [options]

  --only a,b      run these scenarios instead of the default set
  --all           run the default set and the scenarios marked * below
  --reps 9        number of runs of each server; a third of it for memory, overload and stall
  --servers a,b   run only the servers whose names start with a or b
  --n, --size, --burst, --rate, --events
                  override the number of streams, bytes per event, events per turn, events per
                  second, events per run
  --json file     also write the result of every run to a file
  --no-pin        do not pin server and client to CPUs

  Options of the scaling table, which --only scale prints instead of the other scenarios:
  --dist folder   measure the build in this folder instead of \`dist\` of this checkout
  --cases a,b     run only these cases, by the names in the table
  --sizes 100,500 override the sizes
  --cut 60        time limit of a case in seconds

${scenarios.map(describeScenario).join('\n')}
`;

/** @returns a line of the help text */
function describeScenario({ name, title, isExtra }) {
  return `  ${(isExtra ? `${name} *` : name).padEnd(15)} ${title}`;
}

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
else if (flags.only === 'scale') await printScalingTable();
else await runScenarios();

/** Runs the chosen scenarios and prints one table. Exits with 1 if a run was wrong. */
async function runScenarios() {
  const startedAt = Date.now();
  const bench = new Bench(flags.pin);
  const rows = [];
  const raw = [];
  // At exit, so that an interrupted benchmark prints the results that it has.
  process.once('exit', () =>
    process.stdout.write(`${describeMachine(bench, startedAt)}\n\n${formatTable(rows)}\n`),
  );
  for (const scenario of chooseScenarios()) {
    process.stderr.write(`${scenario.name}: ${scenario.title}\n`);
    const reps = Math.max(1, Math.ceil(Number(flags.reps) * (scenario.share ?? 1)));
    const results = await scenario.run(bench, scenario, reps);
    rows.push(...createRows(scenario, results));
    raw.push({ scenario: scenario.name, results: Object.fromEntries(results) });
  }
  if (flags.json !== undefined) {
    writeFileSync(flags.json, JSON.stringify({ node: process.version, flags, raw }, undefined, 2));
  }
  process.exit(rows.some(({ failed }) => failed > 0) ? 1 : 0);
}

/** Prints the scaling table, which has other columns. */
async function printScalingTable() {
  // Imported here, because the module loads the package. In the other scenarios only servers do.
  const { scalingTable } = await import('./scale/table.mjs');
  process.stdout.write(`${await scalingTable(flags)}\n`);
}

/** @returns the scenarios that the flags choose, with the numbers that the flags override */
function chooseScenarios() {
  const names = flags.only?.split(',');
  const unknown = names?.find((name) => !scenarios.some((scenario) => scenario.name === name));
  if (unknown !== undefined) {
    throw new Error(`unknown scenario ${unknown}; see --help for all scenarios`);
  }
  const numbers = Object.fromEntries(
    NUMBERS.flatMap((name) => (flags[name] === undefined ? [] : [[name, Number(flags[name])]])),
  );
  return scenarios
    .filter(({ name, isExtra }) => names?.includes(name) ?? (flags.all || !isExtra))
    .map((scenario) =>
      Object.assign(scenario, numbers, {
        title: createTitle(scenario, numbers),
        variants: chooseVariants(scenario),
      }),
    );
}

/** @returns the title of a scenario, with the overridden numbers */
function createTitle({ title }, numbers) {
  const changed = Object.entries(numbers).map(([name, value]) => `${name} ${value}`);
  return changed.length === 0 ? title : `${title}; but ${changed.join(', ')}`;
}

function chooseVariants({ variants }) {
  const prefixes = flags.servers?.split(',');
  return prefixes === undefined
    ? variants
    : variants.filter(({ name }) => prefixes.some((prefix) => name.startsWith(prefix)));
}

/** @returns the line above the table: date, machine, duration and command */
function describeMachine(bench, startedAt) {
  const [{ model }] = cpus();
  const gigabytes = Math.round(totalmem() / 2 ** 30);
  const minutes = ((Date.now() - startedAt) / 60_000).toFixed(1);
  return [
    `${new Date(startedAt).toISOString().slice(0, 16)}Z`,
    `Node ${process.version}`,
    `${cpus().length} × ${model}`,
    `${gigabytes} GiB`,
    bench.pinning,
    `${minutes} minutes`,
    `\`node bench/bench.mjs ${process.argv.slice(2).join(' ')}\``,
  ].join(', ');
}
