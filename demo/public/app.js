/** The page: listens to haiku, and speaks them. Whatever somebody typed goes into the page as text, never as HTML. */
import { countSyllables } from './syllables.js';

/**
 * @typedef {object} Haiku
 * @property {string} id
 * @property {string} text up to three lines, separated by LF
 * @property {string} [author]
 * @property {string} at when the server received it, ISO 8601
 *
 * @typedef {{ cursor: string, haikus: Haiku[] }} Spoken the last haikus, and where the stream goes on from them
 *
 * @typedef {'connecting' | 'live' | 'live, list renewed' | 'catching up' | 'reconnecting' | 'closed'} ConnectionState
 */

// As many as the server keeps; older ones leave the page, so that it can stay open for years.
const KEEP = 50;

// So long, in ms, something is said that is to be read. As long a silence after the missed haikus means that all have come.
const A_MOMENT = 800;
const A_WHILE = 3_000;

const list = element('#haiku');
const form = element('#speak');
const nameInput = /** @type {HTMLInputElement} */ (element('#author'));
const lines = /** @type {HTMLInputElement[]} */ ([
  ...document.querySelectorAll('input[data-syllables]'),
]);
const status = element('#state');
const reconnect = element('#reconnect');

// --- Listening ---

/**
 * Follows the stream from where the list ends, through whatever interruptions.
 * @param {string} cursor
 * @param {ConnectionState} onceOpen what is said when the line is there at the first attempt
 */
function listen(cursor, onceOpen) {
  const source = new EventSource(`/listen?lastEventId=${encodeURIComponent(cursor)}`);

  /** @type {Record<string, (event: MessageEvent<string>) => void>} */
  const listeners = {
    open: () => tell(status.dataset.state === 'reconnecting' ? 'catching up' : onceOpen),
    text({ data }) {
      show(JSON.parse(data), true);
      caughtUp();
    },
    // A stream begins with one, and what was missed comes right after it.
    'sse:checkpoint': caughtUp,
    // The server cannot say what was missed: it has forgotten, or it has been started anew.
    'sse:gap'() {
      source.close();
      // Two in a row: no page should hammer a server that contradicts itself.
      if (status.dataset.state === 'live, list renewed') renewLater('live, list renewed');
      else void renew('live, list renewed');
    },
    // The browser comes back by itself, unless the server's answer was that there is no stream.
    error: () => tell(source.readyState === EventSource.CLOSED ? 'closed' : 'reconnecting'),
  };
  for (const [name, listener] of Object.entries(listeners)) source.addEventListener(name, listener);
}

/**
 * Fetches the list anew, and listens from there. What is being typed stays.
 * @param {ConnectionState} onceOpen
 */
async function renew(onceOpen) {
  tell('catching up');
  try {
    const { cursor, haikus } = await fetchSpoken();
    showAll(haikus);
    listen(cursor, onceOpen);
  } catch {
    renewLater(onceOpen);
  }
}

/** @param {ConnectionState} onceOpen */
function renewLater(onceOpen) {
  tell('reconnecting');
  // Not all pages at the same time.
  setTimeout(() => void renew(onceOpen), 1_000 + Math.random() * 2_000);
}

/** @returns {Promise<Spoken>} what the page would begin with, were it opened now */
async function fetchSpoken() {
  const response = await fetch('/', { cache: 'no-store', signal: AbortSignal.timeout(10_000) });
  const [, json] =
    /<script id="spoken" type="application\/json">(.*?)<\/script>/s.exec(await response.text()) ??
    [];
  return JSON.parse(json ?? '');
}

/** @type {ReturnType<typeof setTimeout> | undefined} */
let later;

/** @param {ConnectionState} state */
function tell(state) {
  clearTimeout(later);
  // Each failed attempt to reconnect comes by here; a screen reader need not hear of it again.
  if (status.textContent !== state) status.textContent = state;
  status.dataset.state = state;
  reconnect.hidden = state !== 'closed';
  if (state === 'live, list renewed') tellLater('live', A_WHILE);
}

/**
 * Says it after some time, unless there is something else to say.
 * @param {ConnectionState} state
 * @param {number} ms
 */
function tellLater(state, ms) {
  clearTimeout(later);
  later = setTimeout(() => tell(state), ms);
}

/** Something has come: if it was missed before, it may have been the last. */
function caughtUp() {
  if (status.dataset.state === 'catching up') tellLater('live', A_MOMENT);
}

/** Makes the list that of the server. @param {Haiku[]} haikus the newest last */
function showAll(haikus) {
  const ids = new Set(haikus.map(({ id }) => id));
  for (const item of items()) if (!ids.has(item.dataset.id ?? '')) item.remove();
  // What is missing is newer than what is there, and what is there does not move.
  for (const haiku of haikus) show(haiku, false);
  element('#quiet').hidden = list.children.length > 0;
}

/**
 * Puts a haiku on top of the list, once: it may come by the page and by the stream.
 * @param {Haiku} haiku
 * @param {boolean} isHeard whether it was spoken while somebody was listening
 */
function show({ id, text, author, at }, isHeard) {
  if (items().some((item) => item.dataset.id === id)) return;
  const template = /** @type {HTMLTemplateElement} */ (element('#haiku-item'));
  const item = /** @type {HTMLElement} */ (
    document.importNode(template.content, true).firstElementChild
  );
  item.dataset.id = id;
  item.classList.toggle('heard', isHeard);
  element('blockquote', item).append(...text.split('\n').map(paragraph));
  element('.by', item).textContent = author ?? 'somebody';
  element('.by', item).classList.toggle('unnamed', author === undefined);
  const time = /** @type {HTMLTimeElement} */ (element('time', item));
  time.dateTime = at;
  time.textContent = localTime(new Date(at));
  list.prepend(item);
  while (list.children.length > KEEP) list.lastElementChild?.remove();
  element('#quiet').hidden = true;
}

/** The haikus that are shown. */
function items() {
  return /** @type {HTMLElement[]} */ ([...list.children]);
}

/** @param {string} line */
function paragraph(line) {
  const p = document.createElement('p');
  // Each line finds its own direction, so that none can turn its neighbours around.
  p.dir = 'auto';
  p.textContent = line;
  return p;
}

/** The time of day, with the day where it is another. @param {Date} date */
function localTime(date) {
  const isToday = date.toDateString() === new Date().toDateString();
  return date.toLocaleString(undefined, {
    ...(isToday ? {} : { day: 'numeric', month: 'short' }),
    hour: 'numeric',
    minute: '2-digit',
  });
}

// --- Speaking ---

let speaking = false;

async function speak() {
  const text = lines
    .map((line) => line.value.trim())
    .filter((line) => line !== '')
    .join('\n');
  if (text === '') {
    reply('One line is enough to begin.');
    lines[0].focus();
    return;
  }
  // A second press while the first is under way would speak twice.
  if (speaking) return;
  speaking = true;
  reply('');
  try {
    const response = await fetch('/speak', {
      method: 'POST',
      headers: { 'Content-Type': 'application/json' },
      body: JSON.stringify({ text, author: nameInput.value.trim() }),
    });
    if (response.ok) spoken();
    else reply(await response.text());
  } catch {
    reply('Nobody could hear that. Your lines are kept; try again in a moment.');
  } finally {
    speaking = false;
  }
}

function spoken() {
  for (const line of lines) {
    line.value = '';
    hint(line);
  }
  lines[0].focus();
  reply('Spoken.');
}

/** @param {string} sentence */
function reply(sentence) {
  element('#answer').textContent = sentence;
}

/** Says how far the line is from its number of syllables. @param {HTMLInputElement} line */
function hint(line) {
  const wanted = Number(line.dataset.syllables);
  const count = countSyllables(line.value);
  const row = /** @type {HTMLElement} */ (line.nextElementSibling);
  row.classList.toggle('met', count === wanted);
  element('.beats', row).replaceChildren(
    ...Array.from({ length: wanted }, (_, index) => {
      const beat = document.createElement('i');
      beat.classList.toggle('on', index < count);
      return beat;
    }),
  );
  element(`#hint-${lines.indexOf(line) + 1}`).textContent = `${count} of ${wanted} syllables`;
}

/** Enter goes on as in a notebook and speaks after the last line; the arrows go up and down. @param {KeyboardEvent} event */
function move(event) {
  const step = { ArrowUp: -1, ArrowDown: 1, Enter: 1 }[event.key];
  // While an input method composes, Enter and the arrows are its own.
  if (step === undefined || event.isComposing || event.ctrlKey || event.metaKey) return;
  const next = lines[lines.findIndex((line) => line === event.target) + step];
  if (next === undefined) return;
  event.preventDefault();
  next.focus();
}

/** A haiku that is pasted as a whole falls into its lines. @param {ClipboardEvent} event */
function paste(event) {
  const pasted = (event.clipboardData?.getData('text') ?? '')
    .split(/[\r\n]+/)
    .map((line) => line.trim())
    .filter((line) => line !== '');
  if (pasted.length < 2 || pasted.length > lines.length) return;
  event.preventDefault();
  for (const [index, line] of lines.entries()) {
    line.value = (pasted[index] ?? '').slice(0, line.maxLength);
    hint(line);
  }
  lines[pasted.length - 1].focus();
}

// --- What a browser may refuse to remember is asked again ---

const AUTHOR = 'haiku.author';

function recallAuthor() {
  try {
    nameInput.value = localStorage.getItem(AUTHOR) ?? '';
  } catch {}
}

function rememberAuthor() {
  try {
    localStorage.setItem(AUTHOR, nameInput.value.trim());
  } catch {}
}

/**
 * The one element that is surely there.
 * @param {string} selector
 * @param {ParentNode} [within]
 * @returns {HTMLElement}
 */
function element(selector, within = document) {
  return /** @type {HTMLElement} */ (within.querySelector(selector));
}

for (const line of lines) {
  hint(line);
  line.addEventListener('input', () => hint(line));
  line.addEventListener('keydown', move);
  line.addEventListener('paste', paste);
}
form.addEventListener('submit', (event) => {
  event.preventDefault();
  void speak();
});
nameInput.addEventListener('change', rememberAuthor);
reconnect.addEventListener('click', () => void renew('live'));
recallAuthor();

/** @type {Spoken} */
const { cursor, haikus } = JSON.parse(element('#spoken').textContent);
showAll(haikus);
listen(cursor, 'live');
