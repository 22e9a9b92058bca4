/** The results as a markdown table. */

/** The columns: the title, and the function that formats a cell of a row. */
const COLUMNS = [
  ['scenario', ({ scenario }) => scenario],
  ['server', ({ server }) => server],
  ['measured', ({ measured }) => measured],
  ['median', ({ median }) => formatNumber(median)],
  ['÷ first (min–max)', ({ toFirst }) => formatRatio(toFirst)],
  ['÷ better-sse (min–max)', ({ toBetter }) => formatRatio(toBetter)],
  ['user µs', ({ userUs }) => formatNumber(userUs)],
  ['p50 ms', ({ p50Ms }) => formatNumber(p50Ms)],
  ['p99 ms', ({ p99Ms }) => formatNumber(p99Ms)],
  ['runs', ({ runs, failed }) => (failed === 0 ? String(runs) : `${runs}, **${failed} wrong**`)],
];

/**
 * Creates one row for each measure and server.
 * @param {import('./scenarios.mjs').Scenario} scenario
 * @param {Map<string, import('./scenarios.mjs').Result[]>} results
 */
export function createRows({ title, measures }, results) {
  const [first] = results.values();
  const better = results.get('better-sse');
  return measures.flatMap(({ key, title: measured }) =>
    [...results].map(([server, runs]) => {
      const median = (name) => medianOf(runs.map((run) => run[name]));
      return {
        scenario: title,
        server,
        measured,
        median: median(key),
        toFirst: ratioOf(runs, first, key),
        toBetter: better && ratioOf(runs, better, key),
        userUs: median('userUs'),
        p50Ms: median('p50Ms'),
        p99Ms: median('p99Ms'),
        runs: runs.length,
        failed: runs.filter((run) => !run.ok).length,
      };
    }),
  );
}

/** @returns the rows as a markdown table */
export function formatTable(rows) {
  const lines = rows.map((row) => COLUMNS.map(([, cell]) => cell(row)));
  const rule = COLUMNS.map((column, at) => (at < 3 ? '---' : '---:'));
  return [COLUMNS.map(([title]) => title), rule, ...lines]
    .map((cells) => `| ${cells.join(' | ')} |`)
    .join('\n');
}

/**
 * Computes the ratio for each pair of neighbouring runs. Runs that are far apart cannot be
 * compared, because the other load of the machine changes from minute to minute.
 */
function ratioOf(runs, base, key) {
  const ratios = runs.map((run, at) => run[key] / base[at][key]);
  return { median: medianOf(ratios), min: Math.min(...ratios), max: Math.max(...ratios) };
}

/** @param {readonly number[]} values at least one number */
export function medianOf(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

/** @returns the median ratio with minimum and maximum, or a dash if there is none */
function formatRatio(ratio) {
  if (ratio === undefined) return '–';
  return `${ratio.median.toFixed(2)} (${ratio.min.toFixed(2)}–${ratio.max.toFixed(2)})`;
}

/** @returns the number with about three digits, or a dash if it is missing */
function formatNumber(value) {
  if (value === undefined || Number.isNaN(value)) return '–';
  if (Math.abs(value) >= 100) return Math.round(value).toLocaleString('en');
  return value.toFixed(Math.abs(value) < 1 ? 2 : 1);
}
