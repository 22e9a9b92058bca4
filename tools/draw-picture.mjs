/**
 * Draws the moving picture of the README, as SVG: a page while its server is killed and comes back.
 *
 *     node tools/draw-picture.mjs > docs/nothing-lost.svg
 *
 * Every element that comes and goes has an animation of its own, whose length is the length of the
 * whole picture. Without animations (a reader who prefers reduced motion) the last scene is shown.
 */
import process from 'node:process';

// Length of the picture, and duration of a change, in seconds.
const LENGTH_S = 16;
const FADE_S = 0.25;

/** The scenes, with the second in which each begins. */
const KILLED_S = 4.5;
const STARTED_S = 8.5;
const RESUMED_S = 10;

/** The published events: text, the second of the publish, and the second in which the page has it. */
const EVENTS = [
  ['an old silent pond', 1, 1.1],
  ['a frog jumps into the pond', 2.2, 2.3],
  ['splash! silence again', 3.4, 3.5],
  ['over the wintry', 5.5, 10.4],
  ['forest, winds howl in rage', 6.8, 10.7],
  ['with no leaves to blow', 12, 12.1],
];

/** The lines of the terminal: text, class, and the second in which each appears. */
const TERMINAL = [
  ['$ node server.js', '', 0],
  ['listening on :4444', 'small', 0],
  ['Killed', 'bad', KILLED_S],
  ['$ node server.js', '', STARTED_S - 0.8],
  ['listening on :4444', 'small', STARTED_S],
  ['GET /listen  Last-Event-ID: 3', 'good', RESUMED_S],
];

/** The captions: text, and the seconds between which each is shown. */
const CAPTIONS = [
  ['Events reach the page as soon as they are published.', 0, KILLED_S],
  ['The server is killed. Events 4 and 5 are published on another node.', KILLED_S, STARTED_S],
  ['The server is back. The browser reconnects and names the last event it has: 3.', STARTED_S, 12],
  ['It receives 4 and 5, then live events: six published, six received, each once.', 12, LENGTH_S],
];

/** The states of the connection: text, class, and the seconds between which each is shown. */
const STATES = [
  ['live', 'good', 0, KILLED_S + 0.2],
  ['reconnecting', 'bad', KILLED_S + 0.2, RESUMED_S],
  ['live', 'good', RESUMED_S, LENGTH_S],
];

const rules = new Map();

process.stdout
  .write(`<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 760 344" role="img" aria-labelledby="title desc">
<title id="title">A page while its server is killed and comes back</title>
<desc id="desc">${CAPTIONS.map(([text]) => text).join(' ')}</desc>
${picture()}
</svg>
`);

/** @returns the elements, with the rules for them in front */
function picture() {
  const parts = [page(), server(), connection(), log(), CAPTIONS.map(caption).join('\n')].join(
    '\n',
  );
  return `${style()}\n<rect class="page" width="760" height="344" rx="8"/>\n${parts}`;
}

/** @returns the window of the browser, with one line for each event */
function page() {
  const states = STATES.map(([text, kind, from, to]) => {
    const attributes = shown(from, to, `text ${kind} end`);
    return `<text ${attributes} x="336" y="73">● ${text}</text>`;
  });
  const lines = EVENTS.map(([text, published, received], index) => {
    const y = 112 + index * 26;
    const wasMissed = received - published > 1;
    const mark = wasMissed
      ? `<rect ${shown(received, LENGTH_S, 'mark')} x="38" y="${y - 17}" width="298" height="23" rx="4"/>`
      : '';
    const words = `<tspan class="number">${index + 1}</tspan><tspan dx="10">${text}</tspan>`;
    return `${mark}<text ${shown(received, LENGTH_S, 'text')} x="48" y="${y}">${words}</text>`;
  });
  return `<rect class="box" x="24" y="16" width="326" height="250" rx="10"/>
<path class="edge" d="M24 44H350"/>
<circle class="dot" cx="42" cy="30" r="4"/><circle class="dot" cx="57" cy="30" r="4"/><circle class="dot" cx="72" cy="30" r="4"/>
<text class="text small" x="90" y="34">the page</text>
<text class="text small" x="38" y="73">new EventSource('/listen')</text>
${states.join('\n')}
${lines.join('\n')}`;
}

/** @returns the terminal of the server */
function server() {
  const lines = TERMINAL.map(
    ([text, kind, from], index) =>
      `<text ${shown(from, LENGTH_S, `text code ${kind}`)} x="464" y="${73 + index * 21}">${text}</text>`,
  );
  const down = `<rect ${shown(KILLED_S, STARTED_S, 'down')} x="450" y="16" width="286" height="176" rx="10"/>`;
  return `<rect class="box" x="450" y="16" width="286" height="176" rx="10"/>
${down}
<path class="edge" d="M450 44H736"/>
<text class="text small" x="464" y="34">the server</text>
${lines.join('\n')}`;
}

/** @returns the line between the page and the server, and the events that move along it */
function connection() {
  const broken = [KILLED_S, RESUMED_S];
  const line = (from, to, kind) => `<path ${shown(from, to, `line ${kind}`)} d="M450 104H350"/>`;
  const cross = `<path ${shown(KILLED_S, STARTED_S, 'line broken')} d="m394 96 16 16m0-16-16 16"/>`;
  return `${line(0, broken[0], 'open')}
${line(broken[0], broken[1], 'broken dashed')}
${cross}
${line(broken[1], LENGTH_S, 'open')}`;
}

/** @returns the log with the published events */
function log() {
  const cells = EVENTS.map(([, published], index) => {
    const x = 546 + index * 31;
    return `<g ${shown(published, LENGTH_S, 'entry')}><rect class="cell" x="${x}" y="234" width="26" height="26" rx="5"/><text class="text middle" x="${x + 13}" y="252">${index + 1}</text></g>`;
  });
  return `<path class="edge" d="M593 192v22"/>
<rect class="box" x="450" y="214" width="286" height="66" rx="10"/>
<text class="text small" x="464" y="245">the log</text>
<text class="text small" x="464" y="262">in Redis</text>
${cells.join('\n')}`;
}

/** @returns one line below the picture */
function caption([text, from, to]) {
  return `<text ${shown(from, to, 'text caption middle')} x="380" y="322">${text}</text>`;
}

/** @returns the attribute of an element that is shown between two seconds: its classes */
function shown(from, to, kind) {
  const isAlways = from <= 0 && to >= LENGTH_S;
  return `class="${isAlways ? kind : `${kind} ${animation(from, to)}`}"`;
}

/** @returns the name of the rule that shows an element between two seconds */
function animation(from, to) {
  const key = `${from} ${to}`;
  const known = rules.get(key);
  if (known !== undefined) return known.name;
  const name = `t${rules.size}`;
  const steps = [
    ...(from > 0 ? [`0%,${percent(from)}{opacity:0}`] : ['0%{opacity:1}']),
    `${percent(from + FADE_S)}{opacity:1}`,
    ...(to < LENGTH_S
      ? [`${percent(to)}{opacity:1}`, `${percent(to + FADE_S)},to{opacity:0}`]
      : [`${percent(LENGTH_S - FADE_S)}{opacity:1}`, 'to{opacity:0}']),
  ];
  const isLast = to >= LENGTH_S;
  rules.set(key, {
    name,
    text: `.${name}{opacity:${isLast ? 1 : 0};animation-name:${name}}@keyframes ${name}{${steps.join('')}}`,
  });
  return name;
}

function percent(second) {
  return `${((second / LENGTH_S) * 100).toFixed(2)}%`;
}

/** @returns the rules. Called last, because the elements make the rules of the animations */
function style() {
  const text = [...rules.values()].map((rule) => rule.text).join('\n');
  return `<style>
.page{fill:#fff}
.text{font:14px system-ui,-apple-system,'Segoe UI',sans-serif;fill:#1f2328}
.small{font-size:13px;fill:#59636e}
.code{font:13px ui-monospace,SFMono-Regular,Menlo,Consolas,monospace}
.caption{font-size:15px;font-weight:600}
.number{fill:#59636e}.middle{text-anchor:middle}.end{text-anchor:end}
.good{fill:#1a7f37;font-weight:600}.bad{fill:#cf222e;font-weight:600}
.box{fill:#f6f8fa;stroke:#8c959f;stroke-width:1.5}.edge{fill:none;stroke:#8c959f}
.dot{fill:#8c959f}.mark{fill:#fff8c5}.cell{fill:#ddf4ff;stroke:#0969da}
.down{fill:none;stroke:#cf222e;stroke-width:2.5}
.line{fill:none;stroke-width:2.5}.open{stroke:#1a7f37}.broken{stroke:#cf222e}.dashed{stroke-dasharray:6 6}
[class*=' t']{animation:${LENGTH_S}s linear infinite}
${text}
@media (prefers-color-scheme:dark){
.page{fill:#0d1117}
.text{fill:#e6edf3}.small,.number{fill:#9198a1}.good{fill:#3fb950}.bad{fill:#f85149}
.box{fill:#151b23;stroke:#656c76}.edge{stroke:#656c76}.dot{fill:#656c76}
.mark{fill:#4d3d00}.cell{fill:#121d2f;stroke:#4493f8}.down{stroke:#f85149}
.open{stroke:#3fb950}.broken{stroke:#f85149}
}
@media (prefers-reduced-motion:reduce){[class*=' t']{animation:none}}
</style>`;
}
