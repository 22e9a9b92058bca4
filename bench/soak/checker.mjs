/**
 * The checker of the id rule: when a stream receives an id, it must have received all events of its
 * channels up to that id, or a gap for the missing ones.
 *
 * The checker knows the answers to all publishes and the items that the clients have received:
 *
 *     publishes    1 ──ok 7──   2 ────────ok 8──   3 ─ ─ ─ (no answer yet)
 *     client                 id 7 received     id 8 received
 *                            │ can be judged   │ has to wait: event 3 may be below id 8
 *
 * An id can be judged when every publish that was started before the id arrived has its answer.
 * Until then the items of the clients are kept.
 */

// Time in ms after which a connected client should have received an accepted event.
const LATE_MS = 15_000;

/** Collects publishes and received items, and finds violations of the id rule. */
export class Checker {
  violations = [];
  /** Number of events that clients have missed, and for which they have received a gap. */
  excused = 0;
  gaps = 0;
  judged = 0;
  accepted = 0;
  // Publishes without an answer, by number, in the order of their start.
  #pending = new Map();
  // The accepted events, by epoch and channel.
  #logs = new Map();
  // The newest events of each channel.
  #newest = new Map();
  #accounts = new Set();

  get pending() {
    return this.#pending.size;
  }

  /** Records the start of a publish. @param {number} n the number of the event */
  onPublishStarted(n, channel) {
    this.#pending.set(n, { channel, at: performance.now() });
  }

  /** Records the answer to a publish. */
  onPublishAccepted(n, id) {
    const { channel } = this.#pending.get(n);
    this.#pending.delete(n);
    this.accepted++;
    const { epoch, offset } = parseId(id);
    const other = getLog(this.#logs, `${epoch} ${channel}`).add(offset, n);
    if (other !== undefined) {
      this.addViolation('the log', `events ${other} and ${n} have the same id ${id}`);
    }
    const newest = this.#newest.get(channel) ?? { due: -1, recent: [] };
    newest.recent.push({ offset, at: performance.now() });
    this.#newest.set(channel, newest);
  }

  /**
   * Creates the account of a client.
   * @param {string} name
   * @param {readonly string[]} channels
   */
  createAccount(name, channels) {
    const account = new Account(name, channels, this);
    this.#accounts.add(account);
    return account;
  }

  /** Judges all items that can be judged now. */
  audit() {
    const [oldest] = this.#pending.values();
    const until = oldest?.at ?? Infinity;
    for (const account of this.#accounts) {
      account.audit(until);
      if (account.isClosed && account.isEmpty) this.#accounts.delete(account);
    }
  }

  /** @returns the numbers of the events of a log with offsets in (after, upTo] */
  between(epoch, channel, after, upTo) {
    return this.#logs.get(`${epoch} ${channel}`)?.between(after, upTo) ?? [];
  }

  /** Whether a client with this last id misses an event that it should have by now. */
  isLate(channels, lastEventId) {
    const { offset } = lastEventId === '' ? { offset: -1 } : parseId(lastEventId);
    return channels.some((channel) => this.#expectedOffset(channel) > offset);
  }

  /** Whether a client with this last id has all events of its channels. */
  hasAll(channels, lastEventId) {
    if (lastEventId === '') return false;
    const { offset } = parseId(lastEventId);
    return channels.every(
      (channel) => (this.#newest.get(channel)?.recent.at(-1)?.offset ?? -1) <= offset,
    );
  }

  addViolation(name, text) {
    this.violations.push(`${name}: ${text}`);
  }

  /** @returns the offset that a connected client should have received by now, or -1 */
  #expectedOffset(channel) {
    const newest = this.#newest.get(channel);
    if (newest === undefined) return -1;
    const now = performance.now();
    // The last entry is kept, because it is the position of the channel.
    while (newest.recent.length > 1 && now - newest.recent[0].at > LATE_MS) {
      newest.due = Math.max(newest.due, newest.recent.shift().offset);
    }
    const [first] = newest.recent;
    return now - first.at > LATE_MS ? Math.max(newest.due, first.offset) : newest.due;
  }
}

/** @typedef {'connected' | 'refused' | 'event' | 'checkpoint' | 'gap'} ItemKind */

/** One client: the items that are not judged yet, and the position up to which all are judged. */
class Account {
  isClosed = false;
  #name;
  #channels;
  #checker;
  #items = [];
  // Epoch and offset, or `undefined` if the client has no position in a log yet.
  #place;
  // Whether the client has received a gap without a known start: the next id may be of any log.
  #isForeign = false;
  // The offset up to which a gap was received, by channel.
  #gapEnds = new Map();

  constructor(name, channels, checker) {
    this.#name = name;
    this.#channels = channels;
    this.#checker = checker;
  }

  get isEmpty() {
    return this.#items.length === 0;
  }

  /**
   * Records an item that the client has received.
   * @param {{ kind: ItemKind, [detail: string]: any }} item
   */
  note(item) {
    this.#items.push({ at: performance.now(), ...item });
  }

  /** Judges the items that arrived before a time. @param {number} until */
  audit(until) {
    let done = 0;
    for (const item of this.#items) {
      if (item.at >= until) break;
      done++;
      this.#checker.judged++;
      this.#judge(item);
    }
    if (done > 0) this.#items.splice(0, done);
  }

  #judge(item) {
    if (item.kind === 'connected') this.#onConnected();
    else if (item.kind === 'gap') this.#gap(item);
    else if (item.kind === 'refused') {
      this.#fail(`got the status ${item.status}, after which an EventSource does not reconnect`);
    } else if (item.kind === 'checkpoint') this.#checkpoint(parseId(item.id));
    else this.#event(item, parseId(item.id));
  }

  #onConnected() {
    // The client has received no id after these gaps, so the server has to send them again.
    this.#gapEnds = new Map();
    this.#isForeign = false;
  }

  /** Checks that a gap starts at the position of the client and concerns its channels. */
  #gap({ channels, after, cursor }) {
    this.#checker.gaps++;
    const place = this.#place;
    if (after === '') this.#isForeign = true;
    else if (
      place === undefined ||
      parseId(after).offset < place.offset ||
      parseId(cursor).epoch !== place.epoch
    ) {
      this.#fail(
        `received a gap from ${after} to ${cursor}, but the client is at ${formatPlace(place)}`,
      );
    }
    if (channels.some((channel) => !this.#channels.includes(channel))) {
      this.#fail(`received a gap of other channels: ${channels.join()}`);
    }
    for (const channel of channels) this.#gapEnds.set(channel, parseId(cursor).offset);
  }

  /** Checks that a checkpoint does not step back. */
  #checkpoint(to) {
    if (this.#place === undefined) {
      this.#place = to;
      this.#isForeign = false;
      return;
    }
    this.#enter(to);
    if (to.offset < this.#place.offset) {
      this.#fail(`the checkpoint ${formatPlace(to)} is before ${formatPlace(this.#place)}`);
    } else this.#moveTo(to);
  }

  /** Checks that an event has its own id, and that the id is after the position. */
  #event({ n, channel }, to) {
    if (this.#place === undefined) {
      this.#fail(`received the event ${formatPlace(to)} before any checkpoint`);
      this.#place = to;
      return;
    }
    this.#enter(to);
    const [known] = this.#checker.between(to.epoch, channel, to.offset - 1, to.offset);
    if (known !== n) {
      const expected = known === undefined ? 'no event' : `event ${known}`;
      this.#fail(`event ${n} of ${channel} has the id ${formatPlace(to)} of ${expected}`);
    }
    if (to.offset <= this.#place.offset) {
      const places = `${formatPlace(to)}, after ${formatPlace(this.#place)}`;
      this.#fail(`received event ${n}, ${places}: twice or out of order`);
      return;
    }
    this.#moveTo(to, n);
  }

  /** Switches to the log of the id, which is allowed only after a gap. */
  #enter({ epoch }) {
    if (this.#isForeign) this.#place = { epoch, offset: -1 };
    else if (epoch !== this.#place.epoch) {
      this.#fail(
        `received an id of the log ${epoch} after ${formatPlace(this.#place)}, without a gap`,
      );
    }
    this.#isForeign = false;
    this.#place = { ...this.#place, epoch };
  }

  /**
   * Moves the position, and checks that no event was skipped.
   * @param {number} [received] the event that had the id
   */
  #moveTo(to, received) {
    for (const channel of this.#channels) {
      const gapEnd = this.#gapEnds.get(channel) ?? -1;
      for (const n of this.#checker.between(to.epoch, channel, this.#place.offset, to.offset)) {
        if (n === received) continue;
        if (this.#checker.between(to.epoch, channel, this.#place.offset, gapEnd).includes(n)) {
          this.#checker.excused++;
        } else {
          this.#fail(
            `received ${formatPlace(to)} without event ${n} of ${channel} and without a gap`,
          );
        }
      }
    }
    this.#place = to;
  }

  #fail(text) {
    this.#checker.addViolation(this.#name, text);
  }
}

/** The events of one channel by offset. */
class Log {
  #offsets = [];
  #numbers = [];

  /** @returns the event that already has the offset, if any */
  add(offset, n) {
    // Searched from the end, because answers arrive almost in the order of the log.
    let at = this.#offsets.length;
    while (at > 0 && this.#offsets[at - 1] > offset) at--;
    if (this.#offsets[at - 1] === offset) return this.#numbers[at - 1];
    this.#offsets.splice(at, 0, offset);
    this.#numbers.splice(at, 0, n);
    return undefined;
  }

  /** @returns the numbers of the events with offsets in (after, upTo] */
  between(after, upTo) {
    return this.#numbers.slice(this.#firstBeyond(after), this.#firstBeyond(upTo));
  }

  /** @returns the index of the first offset that is greater, by binary search */
  #firstBeyond(offset) {
    let low = 0;
    let high = this.#offsets.length;
    while (low < high) {
      const middle = (low + high) >>> 1;
      if (this.#offsets[middle] > offset) high = middle;
      else low = middle + 1;
    }
    return low;
  }
}

/** @returns the log with the key, which is created if it does not exist */
function getLog(logs, key) {
  let log = logs.get(key);
  if (log === undefined) logs.set(key, (log = new Log()));
  return log;
}

/**
 * @returns epoch and offset of an id
 * @throws {Error} if the id has another format
 */
export function parseId(id) {
  const [, epoch, digits] = /^([\w-]+)\.(\d+)$/.exec(id) ?? [];
  if (epoch === undefined) throw new Error(`invalid id ${JSON.stringify(id)}`);
  return { epoch, offset: Number(digits) };
}

/** @returns the position as text */
function formatPlace(place) {
  return place === undefined ? 'no place' : `${place.epoch}.${place.offset}`;
}
