/** Results as a table that can be read. */

const COLUMNS = [
  ['scenario', ({ scenario }) => scenario],
  ['server', ({ server }) => server],
  ['measured', ({ measured }) => measured],
  ['median', ({ median }) => rounded(median)],
  ['÷ first (min–max)', ({ toFirst }) => ratioText(toFirst)],
  ['÷ better-sse (min–max)', ({ toBetter }) => ratioText(toBetter)],
  ['user µs', ({ userUs }) => rounded(userUs)],
  ['p50 ms', ({ p50Ms }) => rounded(p50Ms)],
  ['p99 ms', ({ p99Ms }) => rounded(p99Ms)],
  ['runs', ({ runs, failed }) => (failed === 0 ? String(runs) : `${runs}, **${failed} wrong**`)],
];

/**
 * One row for each server and measure.
 * @param {import('./scenarios.mjs').Scenario} scenario
 * @param {Map<string, import('./scenarios.mjs').Result[]>} results
 */
export function rowsOf({ title, measures }, results) {
  const [first] = results.values();
  const better = results.get('better-sse');
  return measures.flatMap(({ key, title: measured }) =>
    [...results].map(([server, runs]) => {
      const typical = (name) => medianOf(runs.map((run) => run[name]));
      return {
        scenario: title,
        server,
        measured,
        median: typical(key),
        toFirst: ratioOf(runs, first, key),
        toBetter: better && ratioOf(runs, better, key),
        userUs: typical('userUs'),
        p50Ms: typical('p50Ms'),
        p99Ms: typical('p99Ms'),
        runs: runs.length,
        failed: runs.filter((run) => !run.ok).length,
      };
    }),
  );
}

export function tableOf(rows) {
  const lines = rows.map((row) => COLUMNS.map(([, cell]) => cell(row)));
  const rule = COLUMNS.map((column, at) => (at < 3 ? '---' : '---:'));
  return [COLUMNS.map(([title]) => title), rule, ...lines]
    .map((cells) => `| ${cells.join(' | ')} |`)
    .join('\n');
}

/** Of each pair of neighbouring runs, since what else the machine does changes from minute to minute. */
function ratioOf(runs, base, key) {
  const ratios = runs.map((run, at) => run[key] / base[at][key]);
  return { median: medianOf(ratios), min: Math.min(...ratios), max: Math.max(...ratios) };
}

export function medianOf(values) {
  const sorted = values.toSorted((a, b) => a - b);
  const half = sorted.length >> 1;
  return sorted.length % 2 === 1 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}

function ratioText(ratio) {
  if (ratio === undefined) return '–';
  return `${ratio.median.toFixed(2)} (${ratio.min.toFixed(2)}–${ratio.max.toFixed(2)})`;
}

function rounded(value) {
  if (value === undefined || Number.isNaN(value)) return '–';
  if (Math.abs(value) >= 100) return Math.round(value).toLocaleString('en');
  return value.toFixed(Math.abs(value) < 1 ? 2 : 1);
}
