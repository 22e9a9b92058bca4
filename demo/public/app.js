/**
 * The script of the page: receives haiku, and sends them. Text of users is inserted as text, never
 * as HTML.
 *
 * States of the connection, as `#state` shows them:
 *
 *     connecting ──▶ live ◀──────────────────────────────┐
 *                     │ broken, silent                   │ no event for a moment
 *                     ▼                                  │
 *        offline ◀─▶ reconnecting ──open──▶ catching up ─┤
 *                     │ refused               │ gap      │ after some seconds
 *                     ▼                       ▼          │
 *                   closed           live, list renewed ─┘
 */
import { connect } from './client.js';
import { countSyllables } from './syllables.js';

/**
 * @typedef {object} Haiku
 * @property {string} id
 * @property {string} text up to three lines, separated by LF
 * @property {string} [author]
 * @property {string} at when the server received it, ISO 8601
 *
 * @typedef {{ cursor: string, haikus: Haiku[] }} PageData the latest haiku, the newest last, and
 * the cursor at which the stream continues
 *
 * @typedef {'connecting' | 'live' | 'live, list renewed' | 'catching up' | 'reconnecting' |
 *   'offline' | 'closed'} ConnectionState
 */

// Maximum number of haiku on the page, the same as on the server. Without a limit a page that stays
// open would grow.
const MAX_HAIKU = 50;

// Time in ms without an event after which all missed haiku have arrived.
const CAUGHT_UP_MS = 800;

// Time in ms for which 'live, list renewed' is shown.
const NOTICE_MS = 3_000;

// Time in ms after which a request fails, and after which the page says that it is slow.
const FETCH_TIMEOUT_MS = 10_000;
const SLOW_MS = 2_000;

const list = element('#haiku');
const form = element('#speak');
const nameInput = /** @type {HTMLInputElement} */ (element('#author'));
const lines = /** @type {HTMLInputElement[]} */ ([
  ...document.querySelectorAll('input[data-syllables]'),
]);
const status = element('#state');
const reconnectButton = element('#reconnect');

// --- Receiving ---

/**
 * Receives the events after the cursor. All tabs of the browser use one connection.
 * @param {string} cursor
 * @param {ConnectionState} stateAfterOpen the state if the first attempt succeeds
 */
function listen(cursor, stateAfterOpen) {
  const live = connect('/listen', {
    share: true,
    lastEventId: cursor,
    on: {
      text(haiku) {
        addHaiku(haiku, true);
        awaitCaughtUp();
      },
    },
    // The server no longer has the missed events, for example after a restart.
    onGap() {
      live.close();
      // After a second gap in a row the page waits, to avoid a loop of requests.
      if (status.dataset.state === 'live, list renewed') renewLater('live, list renewed');
      else void renew('live, list renewed');
    },
    onState(state) {
      if (state === 'reconnecting') setState(disconnectedState());
      else if (state === 'failed' || state === 'ended') setState('closed');
      else if (state === 'open' || state === 'polling') onOpen(stateAfterOpen);
    },
  });
}

/** @param {ConnectionState} stateAfterOpen */
function onOpen(stateAfterOpen) {
  const isBack = status.dataset.state === 'reconnecting' || status.dataset.state === 'offline';
  setState(isBack ? 'catching up' : stateAfterOpen);
  // Missed events follow at once.
  awaitCaughtUp();
}

/** @returns {ConnectionState} */
function disconnectedState() {
  return navigator.onLine ? 'reconnecting' : 'offline';
}

/** The browser has lost or found its network. */
function onNetworkChange() {
  const { state } = status.dataset;
  if (state === 'reconnecting' || state === 'offline') setState(disconnectedState());
}

/**
 * Fetches the current list and continues from there. The form is not changed.
 * @param {ConnectionState} stateAfterOpen
 */
async function renew(stateAfterOpen) {
  setState('catching up');
  try {
    const { cursor, haikus } = await fetchPageData();
    replaceList(haikus);
    listen(cursor, stateAfterOpen);
  } catch {
    renewLater(stateAfterOpen);
  }
}

/** @param {ConnectionState} stateAfterOpen */
function renewLater(stateAfterOpen) {
  setState(disconnectedState());
  // A random time, so that not all pages send their requests together.
  setTimeout(() => void renew(stateAfterOpen), 1_000 + Math.random() * 2_000);
}

/** @returns {Promise<PageData>} the data of a page that is loaded now */
async function fetchPageData() {
  const signal = AbortSignal.timeout(FETCH_TIMEOUT_MS);
  const response = await fetch('/', { cache: 'no-store', signal });
  const [, json] =
    /<script id="spoken" type="application\/json">(.*?)<\/script>/s.exec(await response.text()) ??
    [];
  return JSON.parse(json ?? '');
}

/**
 * The timer of the next state.
 * @type {ReturnType<typeof setTimeout> | undefined}
 */
let stateTimer;

/** @param {ConnectionState} state */
function setState(state) {
  clearTimeout(stateTimer);
  // Not repeated after each failed attempt, because a screen reader would read the text again.
  if (status.textContent !== state) status.textContent = state;
  status.dataset.state = state;
  reconnectButton.hidden = state !== 'closed';
  if (state === 'live, list renewed') setStateLater('live', NOTICE_MS);
}

/**
 * Sets the state after some time, unless another state is set before.
 * @param {ConnectionState} state
 * @param {number} ms
 */
function setStateLater(state, ms) {
  clearTimeout(stateTimer);
  stateTimer = setTimeout(() => setState(state), ms);
}

/** Restarts the time without events after which the page is live again. */
function awaitCaughtUp() {
  if (status.dataset.state === 'catching up') setStateLater('live', CAUGHT_UP_MS);
}

/** Replaces the list by the list of the server. @param {Haiku[]} haikus the newest last */
function replaceList(haikus) {
  const ids = new Set(haikus.map(({ id }) => id));
  for (const item of items()) if (!ids.has(item.dataset.id ?? '')) item.remove();
  // Haiku that are on the page stay where they are; the missing ones are newer.
  for (const haiku of haikus) addHaiku(haiku, false);
  element('#quiet').hidden = list.children.length > 0;
}

/**
 * Adds a haiku at the top of the list, unless it is there: it may arrive both with the page and
 * with the stream.
 * @param {Haiku} haiku
 * @param {boolean} isHeard whether the haiku arrived while the page was open; then it is animated
 */
function addHaiku({ id, text, author, at }, isHeard) {
  if (items().some((item) => item.dataset.id === id)) return;
  const template = /** @type {HTMLTemplateElement} */ (element('#haiku-item'));
  const item = /** @type {HTMLElement} */ (
    document.importNode(template.content, true).firstElementChild
  );
  item.dataset.id = id;
  item.classList.toggle('heard', isHeard);
  element('blockquote', item).append(...text.split('\n').map(createParagraph));
  element('.by', item).textContent = author ?? 'somebody';
  element('.by', item).classList.toggle('unnamed', author === undefined);
  const time = /** @type {HTMLTimeElement} */ (element('time', item));
  time.dateTime = at;
  time.textContent = formatTime(new Date(at));
  list.prepend(item);
  while (list.children.length > MAX_HAIKU) list.lastElementChild?.remove();
  element('#quiet').hidden = true;
}

/** @returns the elements of the haiku on the page, the newest first */
function items() {
  return /** @type {HTMLElement[]} */ ([...list.children]);
}

/** @param {string} line */
function createParagraph(line) {
  const p = document.createElement('p');
  // The direction of each line is determined by its own text, not by the other lines.
  p.dir = 'auto';
  p.textContent = line;
  return p;
}

/** @param {Date} date @returns the local time of day, with the date if it is not today's */
function formatTime(date) {
  const isToday = date.toDateString() === new Date().toDateString();
  return date.toLocaleString(undefined, {
    ...(isToday ? {} : { day: 'numeric', month: 'short' }),
    hour: 'numeric',
    minute: '2-digit',
  });
}

// --- Sending ---

let isSending = false;

/** The haiku that was sent last without an answer, and its key: sent again, it is published once. */
let unanswered = { body: '', key: '' };

/** Sends the lines of the form, and shows the answer of the server. */
async function sendHaiku() {
  const text = lines
    .map((line) => line.value.trim())
    .filter((line) => line !== '')
    .join('\n');
  if (text === '') {
    showAnswer('One line is enough to begin.');
    lines[0].focus();
    return;
  }
  // A second press of the button during the request would send the haiku twice.
  if (isSending) return;
  isSending = true;
  showAnswer('');
  const abort = new AbortController();
  const timers = [
    setTimeout(() => showAnswer('No answer yet …'), SLOW_MS),
    setTimeout(() => abort.abort(), FETCH_TIMEOUT_MS),
  ];
  try {
    const body = JSON.stringify({ text, author: nameInput.value.trim() });
    const response = await postHaiku(body, abort.signal);
    unanswered = { body: '', key: '' };
    if (response.ok) clearForm();
    else showAnswer(await response.text());
  } catch {
    showAnswer('Nobody could hear that. Your lines are kept; try again in a moment.');
  } finally {
    for (const timer of timers) clearTimeout(timer);
    isSending = false;
  }
}

/**
 * @param {string} body
 * @param {AbortSignal} signal
 */
async function postHaiku(body, signal) {
  if (unanswered.body !== body) {
    const random = crypto.getRandomValues(new Uint32Array(4));
    unanswered = { body, key: [...random].map((part) => part.toString(36)).join('-') };
  }
  return fetch('/speak', {
    method: 'POST',
    headers: { 'Content-Type': 'application/json', 'Idempotency-Key': unanswered.key },
    body,
    signal,
  });
}

/** Empties the form after a haiku was sent. */
function clearForm() {
  for (const line of lines) {
    line.value = '';
    updateHint(line);
  }
  lines[0].focus();
  showAnswer('Spoken.');
}

/** @param {string} sentence */
function showAnswer(sentence) {
  element('#answer').textContent = sentence;
}

/** Shows how many syllables a line has, and how many are usual. @param {HTMLInputElement} line */
function updateHint(line) {
  const usualCount = Number(line.dataset.syllables);
  const count = countSyllables(line.value);
  const row = /** @type {HTMLElement} */ (line.nextElementSibling);
  row.classList.toggle('met', count === usualCount);
  element('.beats', row).replaceChildren(
    ...Array.from({ length: usualCount }, (_, index) => {
      const beat = document.createElement('i');
      beat.classList.toggle('on', index < count);
      return beat;
    }),
  );
  const hint = element(`#hint-${lines.indexOf(line) + 1}`);
  hint.textContent = `${count} of ${usualCount} syllables`;
}

/**
 * Moves between the lines by the arrow keys and Enter. Enter in the last line submits the form.
 * @param {KeyboardEvent} event
 */
function moveFocus(event) {
  const step = { ArrowUp: -1, ArrowDown: 1, Enter: 1 }[event.key];
  // During the composition of an input method, the keys belong to the input method.
  if (step === undefined || event.isComposing || event.ctrlKey || event.metaKey) return;
  const next = lines[lines.findIndex((line) => line === event.target) + step];
  if (next === undefined) return;
  event.preventDefault();
  next.focus();
}

/** Distributes pasted text of several lines over the inputs. @param {ClipboardEvent} event */
function pasteLines(event) {
  const pasted = (event.clipboardData?.getData('text') ?? '')
    .split(/[\r\n]+/)
    .map((line) => line.trim())
    .filter((line) => line !== '');
  if (pasted.length < 2 || pasted.length > lines.length) return;
  event.preventDefault();
  for (const [index, line] of lines.entries()) {
    line.value = (pasted[index] ?? '').slice(0, line.maxLength);
    updateHint(line);
  }
  lines[pasted.length - 1].focus();
}

// --- Storing the author's name. A browser may refuse to store data: then the name is not kept. ---

const AUTHOR_KEY = 'haiku.author';

/** Restores the name from an earlier visit. */
function loadAuthor() {
  try {
    nameInput.value = localStorage.getItem(AUTHOR_KEY) ?? '';
  } catch {}
}

/** Stores the name for later visits. */
function saveAuthor() {
  try {
    localStorage.setItem(AUTHOR_KEY, nameInput.value.trim());
  } catch {}
}

/**
 * Returns an element that is part of the page or of the template.
 * @param {string} selector
 * @param {ParentNode} [within]
 * @returns {HTMLElement}
 */
function element(selector, within = document) {
  return /** @type {HTMLElement} */ (within.querySelector(selector));
}

for (const line of lines) {
  updateHint(line);
  line.addEventListener('input', () => updateHint(line));
  line.addEventListener('keydown', moveFocus);
  line.addEventListener('paste', pasteLines);
}
form.addEventListener('submit', (event) => {
  event.preventDefault();
  void sendHaiku();
});
nameInput.addEventListener('change', saveAuthor);
reconnectButton.addEventListener('click', () => void renew('live'));
addEventListener('online', onNetworkChange);
addEventListener('offline', onNetworkChange);
loadAuthor();

/** @type {PageData} */
const { cursor, haikus } = JSON.parse(element('#spoken').textContent);
replaceList(haikus);
listen(cursor, 'live');
