/** The page: listens to haiku, and speaks them. Whatever somebody typed goes into the page as text, never as HTML. */
import { countSyllables } from './syllables.js';

/**
 * @typedef {object} Haiku
 * @property {string} text up to three lines, separated by LF
 * @property {string} [author]
 * @property {string} at when the server received it, ISO 8601
 *
 * @typedef {'connecting' | 'live' | 'reconnecting' | 'closed'} ConnectionState
 */

// Older ones leave the page, so that it can stay open for years.
const KEEP = 200;

const list = element('#haiku');
const form = element('#speak');
const nameInput = /** @type {HTMLInputElement} */ (element('#author'));
const lines = /** @type {HTMLInputElement[]} */ ([...document.querySelectorAll('input[data-syllables]')]);
const reconnect = element('#reconnect');

// --- Listening ---

/** What is done about each event of the stream. @type {Record<string, (event: MessageEvent<string>) => void>} */
const listeners = {
  text: ({ data, lastEventId }) => show(lastEventId, JSON.parse(data)),
};

function listen() {
  tell('connecting');
  const source = new EventSource('/listen');
  source.addEventListener('open', () => tell('live'));
  // The browser comes back by itself, unless the server's answer was that there is no stream.
  source.addEventListener('error', () => tell(source.readyState === EventSource.CLOSED ? 'closed' : 'reconnecting'));
  for (const [name, listener] of Object.entries(listeners)) source.addEventListener(name, listener);
}

/** @param {ConnectionState} state */
function tell(state) {
  const status = element('#state');
  // Each failed attempt to reconnect comes by here; a screen reader need not hear of it again.
  if (status.dataset.state !== state || status.textContent !== state) status.textContent = state;
  status.dataset.state = state;
  reconnect.hidden = state !== 'closed';
}

/**
 * Puts a haiku on top of the list, once.
 * @param {string} id the id of its event
 * @param {Haiku} haiku
 */
function show(id, { text, author, at }) {
  if ([...list.children].some((item) => item instanceof HTMLElement && item.dataset.id === id)) return;
  const template = /** @type {HTMLTemplateElement} */ (element('#haiku-item'));
  const item = /** @type {HTMLElement} */ (document.importNode(template.content, true).firstElementChild);
  item.dataset.id = id;
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
reconnect.addEventListener('click', listen);
recallAuthor();
listen();
