/** The scaling table: each case at each size in a process of its own, CPU time, longest stall, and how the work grows. */
import { spawn } from 'node:child_process';
import { join, resolve } from 'node:path';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { compileClient, cpuTime } from '../machine.mjs';
import { cases } from './cases.mjs';

const CHILD = join(import.meta.dirname, 'child.mjs');

// Time for what is not measured: connecting, filling a log.
const PREPARE_MS = 180_000;

const HEAD = [
  'case',
  'N',
  'CPU ms',
  'CPU µs per item',
  'growth',
  'longest stall ms',
  'longest turn ms',
  'wall ms',
  'note',
];

/**
 * Runs the cases and returns the table.
 * @param {{ dist?: string, cases?: string, sizes?: string, cut?: string }} flags
 */
export async function scalingTable({ dist, cases: names, sizes, cut = '60' }) {
  const client = compileClient();
  const env = {
    NODE_ENV: 'production',
    SCALE_CLIENT: client,
    ...(dist !== undefined && { BENCH_DIST: resolve(dist) }),
  };
  const lines = [
    HEAD,
    HEAD.map((title, at) => (at === 0 || at === HEAD.length - 1 ? '---' : '---:')),
  ];
  for (const one of chosen(names?.split(','))) {
    process.stderr.write(`scale: ${one.name}\n`);
    for (const curve of curvesOf(one, sizes?.split(',').map(Number))) {
      let before;
      for (const size of curve.sizes) {
        const result = await runChild(one.name, size, curve.isFake, env, Number(cut) * 1e3);
        lines.push(lineOf(one, size, curve.isFake, result, before));
        process.stderr.write(`  ${lines.at(-1).slice(1).join(' · ')}\n`);
        // A larger size would be cut, too.
        if (result.kind !== 'done') break;
        before = { size, cpuMs: result.cpuMs };
      }
    }
  }
  const table = lines.map((cells) => `| ${cells.join(' | ')} |`).join('\n');
  return `${new Date().toISOString().slice(0, 16)}Z, Node ${process.version}, ${dist ?? 'dist'}\n\n${table}`;
}

function chosen(names) {
  const unknown = names?.find((name) => !cases.some((one) => one.name === name));
  if (unknown !== undefined) {
    throw new Error(
      `There is no case ${unknown}; there are ${cases.map(({ name }) => name).join()}.`,
    );
  }
  return cases.filter(({ name }) => names?.includes(name) ?? true);
}

/** With sockets and without are two curves: between them the work of the kernel would show as growth. */
function curvesOf({ sizes = [], fakeSizes = [] }, wanted) {
  const curves = [
    { isFake: false, sizes },
    { isFake: true, sizes: fakeSizes },
  ].filter((curve) => curve.sizes.length > 0);
  return wanted === undefined ? curves : [{ ...curves[0], sizes: wanted }];
}

function lineOf({ name, title, item }, size, isFake, result, before) {
  const first = `\`${name}\` ${title}`;
  const n = `${size.toLocaleString('en')}${isFake ? ' (no sockets)' : ''}`;
  if (result.kind === 'cut') {
    return [
      first,
      n,
      `≥ ${number(result.cpuMs)}`,
      '–',
      '–',
      '–',
      '–',
      `≥ ${number(result.wallMs)}`,
      `**cut**${result.text}`,
    ];
  }
  if (result.kind === 'failed') {
    return [first, n, '–', '–', '–', '–', '–', '–', `**failed**: ${result.text}`];
  }
  const { cpuMs, stallMs, turnMs, wallMs, items, note } = result;
  const growth =
    before === undefined
      ? ''
      : (Math.log(cpuMs / before.cpuMs) / Math.log(size / before.size)).toFixed(2);
  const each = `${number((cpuMs * 1e3) / items)} per ${item}`;
  return [
    first,
    n,
    number(cpuMs),
    each,
    growth,
    number(stallMs),
    number(turnMs),
    number(wallMs),
    note,
  ];
}

function number(value) {
  if (value >= 100) return Math.round(value).toLocaleString('en');
  return value.toFixed(value < 1 ? 2 : 1);
}

/** Resolves with what the child says, or when it is cut. */
async function runChild(name, size, isFake, env, cutMs) {
  // A group of its own, so that its Redis and its client end with it.
  const child = spawn(process.execPath, [CHILD, name, String(size), ...(isFake ? ['fake'] : [])], {
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  });
  const end = () => {
    try {
      process.kill(-Number(child.pid), 'SIGKILL');
    } catch {
      // It has ended with all its children.
    }
  };
  process.on('exit', end);
  let errors = '';
  child.stderr.setEncoding('utf8').on('data', (text) => {
    errors = (errors + text).slice(-2_000);
  });
  try {
    return await resultOf(child, cutMs, () => errors);
  } finally {
    end();
    process.off('exit', end);
  }
}

function resultOf(child, cutMs, errors) {
  return new Promise((done) => {
    let begun;
    let cpuBefore = 0;
    const cut = (text) => {
      const cpuMs = begun === undefined ? 0 : cpuTime(child.pid).us / 1e3 - cpuBefore;
      done({
        kind: 'cut',
        cpuMs,
        wallMs: begun === undefined ? 0 : performance.now() - begun,
        text,
      });
    };
    let timer = setTimeout(cut, PREPARE_MS, ' while it was prepared');
    createInterface({ input: child.stdout }).on('line', (line) => {
      const message = JSON.parse(line);
      clearTimeout(timer);
      if (message.kind === 'begun') {
        begun = performance.now();
        cpuBefore = cpuTime(child.pid).us / 1e3;
        timer = setTimeout(cut, cutMs, '');
      } else {
        done(message);
      }
    });
    child.once('close', () => {
      clearTimeout(timer);
      done({
        kind: 'failed',
        text: errors().trim().replaceAll(/\s+/g, ' ').slice(-300) || 'ended without a word',
      });
    });
  });
}
