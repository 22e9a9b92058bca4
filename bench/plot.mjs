/**
 * Draws a bar chart of results, as SVG:
 *
 *     npm run bench -- --json results.json
 *     node bench/plot.mjs results.json > docs/performance.svg
 */
import { readFileSync } from 'node:fs';
import process from 'node:process';
import { medianOf } from './table.mjs';

/** The servers, in the order of the bars. */
const SERVERS = ['raw net', 'Express by hand', 'better-sse', 'res-sse'];

/** The groups of bars: name of the scenario, and the lines of the label. */
const GROUPS = [
  ['1k', '1,000 streams', '1 event per turn'],
  ['1k-ten', '1,000 streams', '10 events per turn'],
  ['10k', '10,000 streams', '1 event per turn'],
  ['10k-ten', '10,000 streams', '10 events per turn'],
  ['1k-2kb', '1,000 streams, 2 KB', '1 event per turn'],
  ['1k-2kb-ten', '1,000 streams, 2 KB', '10 events per turn'],
];

// Sizes in px: the column of labels, the height of a bar, the gap between groups, the width of the
// picture, and the height of the title and legend.
const LEFT = 170;
const BAR = 14;
const GAP = 22;
const WIDTH = 760;
const TOP = 76;

const { raw } = JSON.parse(readFileSync(process.argv[2], 'utf8'));
const groups = GROUPS.flatMap(([name, ...lines]) => {
  const found = raw.find(({ scenario }) => scenario === name);
  return found === undefined
    ? []
    : [{ lines, bars: SERVERS.map((server) => [server, medianCpu(found.results[server])]) }];
});
const longest = Math.max(...groups.flatMap(({ bars }) => bars.map(([, value]) => value)));
const unit = (WIDTH - LEFT - 60) / longest;
const height = TOP + groups.length * (SERVERS.length * BAR + GAP);

const attributes = `viewBox="0 0 ${WIDTH} ${height}" role="img" aria-labelledby="title desc"`;

process.stdout.write(`<svg xmlns="http://www.w3.org/2000/svg" ${attributes}>
<title id="title">CPU time of the server for each delivered event, in µs</title>
<desc id="desc">${groups.map(describeGroup).join('. ')}.</desc>
<style>
text { font: 13px system-ui, sans-serif; fill: #222 }
.small { font-size: 11px; fill: #666 }
.s0 { fill: #b8bec6 } .s1 { fill: #d9a066 } .s2 { fill: #c96a5b } .s3 { fill: #2f7d5b }
@media (prefers-color-scheme: dark) {
  text { fill: #eee } .small { fill: #aaa }
  .s0 { fill: #6b7280 } .s1 { fill: #b98243 } .s2 { fill: #b3574a } .s3 { fill: #46b384 }
}
</style>
<text x="0" y="18">CPU of the server per delivered event, µs; less is better</text>
${SERVERS.map(drawLegend).join('\n')}
${groups.map(drawGroup).join('\n')}
</svg>
`);

/** @returns the median of the CPU time per delivery, in µs */
function medianCpu(runs) {
  return medianOf(runs.map(({ cpuUs }) => cpuUs));
}

/** @returns the numbers of a group as text, for the description of the picture */
function describeGroup({ lines, bars }) {
  const values = bars.map(([server, value]) => `${server} ${value.toFixed(1)}`);
  return `${lines.join(', ')}: ${values.join(', ')}`;
}

/** @returns the colour and name of a server */
function drawLegend(server, index) {
  const x = LEFT + index * 135;
  return [
    `<rect class="s${index}" x="${x}" y="34" width="12" height="12" rx="2"/>`,
    `<text class="small" x="${x + 18}" y="44">${server}</text>`,
  ].join('');
}

/** @returns the label of a group, and one bar with its value for each server */
function drawGroup({ lines, bars }, index) {
  const y = TOP + index * (SERVERS.length * BAR + GAP);
  const label = lines.map(
    (line, row) =>
      `<text class="${row === 0 ? '' : 'small'}" x="0" y="${y + 22 + row * 17}">${line}</text>`,
  );
  const rows = bars.map(([, value], row) => {
    const length = Math.max(1, value * unit);
    const top = y + row * BAR;
    const size = `width="${length.toFixed(1)}" height="${BAR - 3}"`;
    const number = value.toFixed(value < 1 ? 2 : 1);
    const end = (LEFT + length + 6).toFixed(1);
    return [
      `<rect class="s${row}" x="${LEFT}" y="${top}" ${size} rx="2"/>`,
      `<text class="small" x="${end}" y="${top + 10}">${number}</text>`,
    ].join('');
  });
  return [...label, ...rows].join('\n');
}
