/** The scaling table: runs each case at each size in a child process, and formats the results. */
import { spawn } from 'node:child_process';
import { join, resolve } from 'node:path';
import process from 'node:process';
import { createInterface } from 'node:readline';
import { compileClient, cpuTime } from '../machine.mjs';
import { cases } from './cases.mjs';

const CHILD = join(import.meta.dirname, 'child.mjs');

// Time limit in ms for the preparation of a case, such as connecting or filling a log.
const PREPARE_TIMEOUT_MS = 180_000;

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
  for (const one of chooseCases(names?.split(','))) {
    process.stderr.write(`scale: ${one.name}\n`);
    for (const curve of createCurves(one, sizes?.split(',').map(Number))) {
      let before;
      for (const size of curve.sizes) {
        const result = await runChild(one.name, size, curve.isFake, env, Number(cut) * 1e3);
        lines.push(formatLine(one, size, curve.isFake, result, before));
        process.stderr.write(`  ${lines.at(-1).slice(1).join(' · ')}\n`);
        // A larger size would exceed the time limit, too.
        if (result.kind !== 'done') break;
        before = { size, cpuMs: result.cpuMs };
      }
    }
  }
  const table = lines.map((cells) => `| ${cells.join(' | ')} |`).join('\n');
  const date = new Date().toISOString().slice(0, 16);
  return `${date}Z, Node ${process.version}, ${dist ?? 'dist'}\n\n${table}`;
}

/** @returns the cases with the given names, or all cases */
function chooseCases(names) {
  const unknown = names?.find((name) => !cases.some((one) => one.name === name));
  if (unknown !== undefined) {
    throw new Error(
      `unknown case ${unknown}; known cases: ${cases.map(({ name }) => name).join(', ')}`,
    );
  }
  return cases.filter(({ name }) => names?.includes(name) ?? true);
}

/**
 * Returns the sizes with sockets and without sockets as two curves. In one curve, the work of the
 * kernel, which is missing without sockets, would look like a change of the growth.
 */
function createCurves({ sizes = [], fakeSizes = [] }, wanted) {
  const curves = [
    { isFake: false, sizes },
    { isFake: true, sizes: fakeSizes },
  ].filter((curve) => curve.sizes.length > 0);
  return wanted === undefined ? curves : [{ ...curves[0], sizes: wanted }];
}

/** @returns the cells of one row */
function formatLine({ name, title, item }, size, isFake, result, before) {
  const first = `\`${name}\` ${title}`;
  const n = `${size.toLocaleString('en')}${isFake ? ' (no sockets)' : ''}`;
  if (result.kind === 'cut') {
    return [
      first,
      n,
      `≥ ${formatNumber(result.cpuMs)}`,
      '–',
      '–',
      '–',
      '–',
      `≥ ${formatNumber(result.wallMs)}`,
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
  const each = `${formatNumber((cpuMs * 1e3) / items)} per ${item}`;
  return [
    first,
    n,
    formatNumber(cpuMs),
    each,
    growth,
    formatNumber(stallMs),
    formatNumber(turnMs),
    formatNumber(wallMs),
    note,
  ];
}

/** @returns the number with about three digits */
function formatNumber(value) {
  if (value >= 100) return Math.round(value).toLocaleString('en');
  return value.toFixed(value < 1 ? 2 : 1);
}

/**
 * Runs one case at one size in a child process.
 * @param {number} cutMs time limit in ms
 * @returns the result, of the kind `'done'`, `'cut'` or `'failed'`
 */
async function runChild(name, size, isFake, env, cutMs) {
  // A process group of its own, so that its Redis and its client can be killed with the process.
  const child = spawn(process.execPath, [CHILD, name, String(size), ...(isFake ? ['fake'] : [])], {
    detached: true,
    stdio: ['ignore', 'pipe', 'pipe'],
    env: { ...process.env, ...env },
  });
  const end = () => {
    try {
      process.kill(-Number(child.pid), 'SIGKILL');
    } catch {
      // The process and all of its children have ended.
    }
  };
  process.on('exit', end);
  let errors = '';
  child.stderr.setEncoding('utf8').on('data', (text) => {
    errors = (errors + text).slice(-2_000);
  });
  try {
    return await waitForResult(child, cutMs, () => errors);
  } finally {
    end();
    process.off('exit', end);
  }
}

/**
 * Waits for the result of a child process, for its end, or for the time limit.
 * @returns {Promise<any>}
 */
function waitForResult(child, cutMs, errors) {
  return new Promise((done) => {
    let startedAt;
    let cpuBefore = 0;
    const cut = (text) => {
      const cpuMs = startedAt === undefined ? 0 : cpuTime(child.pid).us / 1e3 - cpuBefore;
      done({
        kind: 'cut',
        cpuMs,
        wallMs: startedAt === undefined ? 0 : performance.now() - startedAt,
        text,
      });
    };
    let timer = setTimeout(cut, PREPARE_TIMEOUT_MS, ' during preparation');
    createInterface({ input: child.stdout }).on('line', (line) => {
      const message = JSON.parse(line);
      clearTimeout(timer);
      if (message.kind === 'started') {
        startedAt = performance.now();
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
        text: errors().trim().replaceAll(/\s+/g, ' ').slice(-300) || 'ended without output',
      });
    });
  });
}
