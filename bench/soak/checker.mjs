/**
 * Whether each client got its due by the id rule: when an id is written to a stream, everything at or below it that the stream
 * follows has been written before it, or has been told as a gap. It knows the answers to the publishes and what the clients got.
 *
 * An id can be judged when every publish that began before the id arrived has its answer: until then an event below the id may
 * be unknown here. What clients got waits until then.
 */

// After this time a connected client should have an event that was accepted.
const LATE_MS = 15_000;

export class Checker {
  violations = [];
  /** Events that clients have not got, and of which a gap was told. */
  excused = 0;
  gaps = 0;
  judged = 0;
  accepted = 0;
  // By number, in the order in which the publishes began.
  #pending = new Map();
  // By epoch and channel.
  #logs = new Map();
  // By channel.
  #newest = new Map();
  #accounts = new Set();

  get pending() {
    return this.#pending.size;
  }

  begun(n, channel) {
    this.#pending.set(n, { channel, at: performance.now() });
  }

  wasAccepted(n, id) {
    const { channel } = this.#pending.get(n);
    this.#pending.delete(n);
    this.accepted++;
    const { epoch, offset } = placeOf(id);
    const other = logIn(this.#logs, `${epoch} ${channel}`).add(offset, n);
    if (other !== undefined) {
      this.violation('the log', `events ${other} and ${n} have the same id ${id}`);
    }
    const newest = this.#newest.get(channel) ?? { due: -1, recent: [] };
    newest.recent.push({ offset, at: performance.now() });
    this.#newest.set(channel, newest);
  }

  /** @param {string} who @param {readonly string[]} channels */
  account(who, channels) {
    const account = new Account(who, channels, this);
    this.#accounts.add(account);
    return account;
  }

  /** Judges what can be judged by now. */
  audit() {
    const [oldest] = this.#pending.values();
    const until = oldest?.at ?? Infinity;
    for (const account of this.#accounts) {
      account.audit(until);
      if (account.isClosed && account.isEmpty) this.#accounts.delete(account);
    }
  }

  /** Events of a log in (after, upTo]. */
  between(epoch, channel, after, upTo) {
    return this.#logs.get(`${epoch} ${channel}`)?.between(after, upTo) ?? [];
  }

  /** Whether a client that has come so far lacks what it should have by now. */
  isLate(channels, lastEventId) {
    const { offset } = lastEventId === '' ? { offset: -1 } : placeOf(lastEventId);
    return channels.some((channel) => this.#dueOf(channel) > offset);
  }

  /** Whether a client that has come so far has all there is. */
  hasAll(channels, lastEventId) {
    if (lastEventId === '') return false;
    const { offset } = placeOf(lastEventId);
    return channels.every(
      (channel) => (this.#newest.get(channel)?.recent.at(-1)?.offset ?? -1) <= offset,
    );
  }

  violation(who, what) {
    this.violations.push(`${who}: ${what}`);
  }

  #dueOf(channel) {
    const newest = this.#newest.get(channel);
    if (newest === undefined) return -1;
    const now = performance.now();
    // The last one stays: it is where the channel is.
    while (newest.recent.length > 1 && now - newest.recent[0].at > LATE_MS) {
      newest.due = Math.max(newest.due, newest.recent.shift().offset);
    }
    const [first] = newest.recent;
    return now - first.at > LATE_MS ? Math.max(newest.due, first.offset) : newest.due;
  }
}

/** One client: what it got and has not been judged yet, and the place up to which all is accounted for. */
class Account {
  isClosed = false;
  #who;
  #channels;
  #checker;
  #items = [];
  // `undefined` as long as the client has no place in a log.
  #place;
  // A gap without a place of its own was told: what comes may begin anywhere.
  #isForeign = false;
  // Of these channels a loss up to this offset was told.
  #told = new Map();

  constructor(who, channels, checker) {
    this.#who = who;
    this.#channels = channels;
    this.#checker = checker;
  }

  get isEmpty() {
    return this.#items.length === 0;
  }

  /** @param {{ kind: 'connected' | 'refused' | 'event' | 'checkpoint' | 'gap', [detail: string]: any }} item */
  note(item) {
    this.#items.push({ at: performance.now(), ...item });
  }

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
    if (item.kind === 'connected') this.#connected();
    else if (item.kind === 'gap') this.#gap(item);
    else if (item.kind === 'refused') {
      this.#fail(`answered ${item.status}, and an EventSource would not come back`);
    } else if (item.kind === 'checkpoint') this.#checkpoint(placeOf(item.id));
    else this.#event(item, placeOf(item.id));
  }

  #connected() {
    // A gap beyond which the client has no id yet has to be told again.
    this.#told = new Map();
    this.#isForeign = false;
  }

  #gap({ channels, after, cursor }) {
    this.#checker.gaps++;
    const place = this.#place;
    if (after === '') this.#isForeign = true;
    else if (
      place === undefined ||
      placeOf(after).offset < place.offset ||
      placeOf(cursor).epoch !== place.epoch
    ) {
      this.#fail(
        `a gap after ${after} up to ${cursor} was told, and the client is at ${textOf(place)}`,
      );
    }
    if (channels.some((channel) => !this.#channels.includes(channel))) {
      this.#fail(`a gap of ${channels.join()} was told`);
    }
    for (const channel of channels) this.#told.set(channel, placeOf(cursor).offset);
  }

  #checkpoint(to) {
    if (this.#place === undefined) {
      this.#place = to;
      this.#isForeign = false;
      return;
    }
    this.#enter(to);
    if (to.offset < this.#place.offset) {
      this.#fail(`the checkpoint ${textOf(to)} steps back from ${textOf(this.#place)}`);
    } else this.#moveTo(to);
  }

  #event({ n, channel }, to) {
    if (this.#place === undefined) {
      this.#fail(`the event ${textOf(to)} came before any checkpoint`);
      this.#place = to;
      return;
    }
    this.#enter(to);
    const [known] = this.#checker.between(to.epoch, channel, to.offset - 1, to.offset);
    if (known !== n) {
      this.#fail(`event ${n} of ${channel} came as ${textOf(to)}, which is ${known ?? 'nothing'}`);
    }
    if (to.offset <= this.#place.offset) {
      this.#fail(
        `event ${n}, ${textOf(to)}, came after ${textOf(this.#place)}: twice or out of order`,
      );
      return;
    }
    this.#moveTo(to, n);
  }

  /** Begins another log, where the client was told. */
  #enter({ epoch }) {
    if (this.#isForeign) this.#place = { epoch, offset: -1 };
    else if (epoch !== this.#place.epoch) {
      this.#fail(`the log ${epoch} follows ${textOf(this.#place)}, and no gap was told`);
    }
    this.#isForeign = false;
    this.#place = { ...this.#place, epoch };
  }

  /** @param {number} [written] the event that brought the id */
  #moveTo(to, written) {
    for (const channel of this.#channels) {
      const told = this.#told.get(channel) ?? -1;
      for (const n of this.#checker.between(to.epoch, channel, this.#place.offset, to.offset)) {
        if (n === written) continue;
        if (this.#checker.between(to.epoch, channel, this.#place.offset, told).includes(n)) {
          this.#checker.excused++;
        } else {
          this.#fail(
            `${textOf(to)} was written, event ${n} of ${channel} was not, and no gap was told`,
          );
        }
      }
    }
    this.#place = to;
  }

  #fail(what) {
    this.#checker.violation(this.#who, what);
  }
}

/** The events of one channel by offset. */
class Log {
  #offsets = [];
  #numbers = [];

  /** @returns the event that has the offset already */
  add(offset, n) {
    // Answers come nearly in the order of the log.
    let at = this.#offsets.length;
    while (at > 0 && this.#offsets[at - 1] > offset) at--;
    if (this.#offsets[at - 1] === offset) return this.#numbers[at - 1];
    this.#offsets.splice(at, 0, offset);
    this.#numbers.splice(at, 0, n);
    return undefined;
  }

  /** Numbers of the events in (after, upTo]. */
  between(after, upTo) {
    return this.#numbers.slice(this.#firstBeyond(after), this.#firstBeyond(upTo));
  }

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

function logIn(logs, key) {
  let log = logs.get(key);
  if (log === undefined) logs.set(key, (log = new Log()));
  return log;
}

export function placeOf(id) {
  const [, epoch, digits] = /^([\w-]+)\.(\d+)$/.exec(id) ?? [];
  if (epoch === undefined) throw new Error(`${JSON.stringify(id)} is no id`);
  return { epoch, offset: Number(digits) };
}

function textOf(place) {
  return place === undefined ? 'no place' : `${place.epoch}.${place.offset}`;
}
