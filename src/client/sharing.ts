/**
 * One connection for all tabs and workers of an origin:
 *
 * ```text
 *   Web Lock ──▶ leader ──▶ Source ──▶ events
 *                  │ BroadcastChannel     each with the id before it
 *                  ▼
 *                followers ─ id before = own cursor: the next event; else known, or lost
 * ```
 *
 * Each tab has a cursor of its own. If the leader closes, the browser gives the lock to another
 * tab, which continues at its cursor. The other tabs ignore known events by their ids.
 */
import type { ReceivedEvent } from './parser.ts';
import { platform, type TabChannel } from './platform.ts';
import type { Source, SourceOwner } from './source.ts';
import type { ConnectionError, ConnectionState } from './types.ts';

// Events that a leader repeats for tabs that have missed some: a number, and characters of data.
const MAX_RECENT_EVENTS = 256;
const MAX_RECENT_LENGTH = 1_000_000;

// Time in ms without a message after which a follower asks whether the leader is alive, and time
// for the answer. Messages are delivered to hidden tabs, whose timers are late. Chromium delivers
// them to frozen pages, too, which cannot read, so a page leaves with the event `freeze`.
const PROBE_MS = 5_000;

/** An event, and the id before it; `''` if there is none, and behind a gap. */
type LinkedEvent = readonly [after: string, event: ReceivedEvent];

/** A message to the other tabs. */
type Message =
  /** A follower has this cursor. The leader repeats what is missing, if it can, and answers. */
  | readonly ['ask', tab: string, cursor: string]
  /** The state and cursor of the leader; `to` is the tab that has asked. */
  | readonly ['position', to: string, state: ConnectionState, cursor: string]
  | readonly ['event', ...LinkedEvent]
  /** Everything has been received. */
  | readonly ['end', cursor: string];

/**
 * Compares two ids `<epoch>.<offset>`.
 * @returns below, at or above 0; `NaN` for ids of two logs, and others
 */
function compareIds(a: string, b: string): number {
  const [, epochA, offsetA] = ID.exec(a) ?? [];
  const [, epochB, offsetB] = ID.exec(b) ?? [];
  return epochA === epochB ? Number(offsetA) - Number(offsetB) : NaN;
}

// The epoch of a log has 8 characters. Ids of the application may have numbers in another order.
const ID = /^([\w-]{8})\.(\d+)$/;

/** The part of one tab. */
export class Sharing implements SourceOwner {
  readonly #key: string;
  readonly #owner: SourceOwner;
  // Runs while this tab is the leader or detached.
  readonly #source: Source;
  readonly #tab = `${Math.random()}`;
  // The term of the leader of this tab, which is higher for a later leader.
  #term = 0;
  #channel: TabChannel | undefined;
  // Aborted by `stop()`: withdraws the request for the lock, or releases the lock.
  #lock: AbortController | undefined;
  #isLeader = false;
  // Whether this tab reads by itself what it misses.
  #isDetached = false;
  // Whether the leader has not answered yet.
  #isAsking = false;
  // Whether no id is known here and at the leader, or none since the last gap. Then `after` of the
  // next event is empty.
  #isUnlinked = false;
  #state: ConnectionState = 'connecting';
  #recent: LinkedEvent[] = [];
  #recentLength = 0;
  // The last position of the leader that this tab has heard of.
  #leaderCursor = '';
  // When this follower last heard of the leader, or has asked whether it is alive.
  #since = 0;
  #isProbing = false;
  #timer: ReturnType<typeof setTimeout> | undefined;

  /** @param key the name of the lock and of the channel */
  constructor(key: string, owner: SourceOwner, createSource: (owner: SourceOwner) => Source) {
    this.#key = key;
    this.#owner = owner;
    this.#source = createSource(this);
  }

  get cursor(): string {
    return this.#owner.cursor;
  }

  start(): void {
    const { BroadcastChannel } = platform as Required<typeof platform>;
    this.#since = Date.now();
    this.#isAsking = this.#isProbing = false;
    try {
      this.#channel = new BroadcastChannel(this.#key);
    } catch {
      // The page may not use channels.
      this.#detach();
      return;
    }
    // oxlint-disable-next-line unicorn/prefer-add-event-listener -- the listener is the only one
    this.#channel.onmessage = ({ data }) => this.#onMessage(...(data as [number, Message]));
    this.#requestLock();
    this.#ask();
    this.check();
  }

  stop(): void {
    clearTimeout(this.#timer);
    this.#lock?.abort();
    this.#channel?.close();
    this.#channel = undefined;
    this.#isLeader = this.#isDetached = this.#isUnlinked = false;
    this.#source.stop();
  }

  /** Takes over if the leader does not answer. Called when timers may be late, too. */
  check(): void {
    clearTimeout(this.#timer);
    this.#source.check();
    if (!this.#channel) return;
    // The clock can be set back.
    if (!this.#isLeader && Math.abs(Date.now() - this.#since) >= PROBE_MS) {
      this.#since = Date.now();
      if (this.#isProbing) this.#requestLock(true);
      else {
        this.#isProbing = true;
        this.#isAsking = false;
        this.#ask();
      }
    }
    // Different times, so that one tab asks and the others hear the answer.
    this.#timer = setTimeout(() => this.check(), PROBE_MS * (1 + Math.random() / 2));
  }

  onNetworkChange(): void {
    this.#source.onNetworkChange();
  }

  /** An event of the own source. */
  onEvent(event: ReceivedEvent): void {
    const after = this.#isUnlinked ? '' : this.cursor;
    // First, so that the others have the event if a listener ends this tab.
    if (this.#isLeader) this.#post('event', after, event);
    this.#apply(after, event);
    if (this.#isDetached) this.#rejoin();
  }

  /** A state of the own source. */
  onState(state: ConnectionState, error?: ConnectionError): void {
    this.#state = state;
    // After a failure another tab tries it with its own headers.
    if (this.#isLeader && state !== 'failed') this.#post('position', '', state, this.cursor);
    this.#owner.onState(state, error);
  }

  onEnd(): void {
    if (this.#isLeader) this.#post('end', this.cursor);
    this.#owner.onEnd();
  }

  #post(...message: Message): void {
    this.#channel?.postMessage([this.#term, message]);
  }

  #requestLock(steal = false): void {
    this.#lock?.abort();
    const lock = new AbortController();
    const { signal } = lock;
    this.#lock = lock;
    const hold = (): Promise<void> =>
      new Promise((release) => {
        signal.addEventListener('abort', () => release());
        if (signal.aborted) release();
        else this.#lead();
      });
    platform.navigator?.locks
      ?.request(this.#key, steal ? { steal } : { signal }, hold)
      .catch(() => void (signal.aborted || this.#onLockLost()));
  }

  /** Another tab has stolen the lock, or the page may not use locks. */
  #onLockLost(): void {
    if (this.#isLeader) {
      this.stop();
      this.start();
    } else this.#detach();
  }

  #lead(): void {
    this.#isLeader = true;
    // The clock tells the terms of leaders apart that this tab has not heard of.
    this.#term = Math.max(Date.now(), this.#term + 1);
    this.#isDetached = this.#isAsking = this.#isUnlinked = false;
    this.onState('connecting');
    // The application may have closed the connection in `onState`.
    if (this.#isLeader) this.#source.start();
  }

  #ask(): void {
    if (this.#isAsking) return;
    this.#isAsking = true;
    this.#post('ask', this.#tab, this.cursor);
  }

  #onMessage(term: number, message: Message): void {
    if (message[0] === 'ask') {
      if (this.#isLeader) this.#answer(message[1], message[2]);
      return;
    }
    // The lock may come before the `end` of the previous leader.
    if (message[0] === 'end') this.#onLeaderEnd(message[1]);
    // A leader that was frozen does not know at once that it has lost the lock.
    if (this.#isLeader || term < this.#term) return;
    this.#term = term;
    this.#since = Date.now();
    this.#isProbing = false;
    if (message[0] === 'event') this.#onLeaderEvent(message[1], message[2]);
    else if (message[0] === 'position') this.#onPosition(message[1], message[2], message[3]);
  }

  /** Leader: repeats what a follower has missed. */
  #answer(tab: string, cursor: string): void {
    // A hidden leader has late timers, so it checks here, too.
    this.#source.check();
    if (isBehind(cursor, this.cursor)) {
      const first = this.#recent.findIndex(
        ([after, { id = '' }]) =>
          after === cursor || (compareIds(after, cursor) < 0 && compareIds(id, cursor) > 0),
      );
      if (first !== -1) for (const each of this.#recent.slice(first)) this.#post('event', ...each);
    }
    this.#post('position', tab, this.#state, this.cursor);
  }

  /** Follower: `to` is empty if the leader was not asked. */
  #onPosition(to: string, state: ConnectionState, leaderCursor: string): void {
    this.#leaderCursor = leaderCursor;
    if (this.#isDetached) {
      this.#rejoin();
      return;
    }
    // From now on this tab receives all events of the leader.
    this.#isUnlinked = leaderCursor === this.cursor && (leaderCursor === '' || this.#isUnlinked);
    // `to` is also empty for a new leader. Only an answer says that nothing is missing.
    if (to === '') {
      this.#isAsking = false;
      this.#ask();
    }
    if (to !== this.#tab) return;
    this.#isAsking = false;
    // The leader could not repeat what is missing. A tab without an id asks the server, which may
    // send a snapshot.
    const isNew = this.cursor === '' && leaderCursor !== '';
    if (isNew || isBehind(this.cursor, leaderCursor)) this.#detach();
    else this.#owner.onState(state);
  }

  #onLeaderEvent(after: string, event: ReceivedEvent): void {
    const { id } = event;
    const { cursor } = this;
    this.#leaderCursor = id ?? this.#leaderCursor;
    const hasHistory = id !== undefined || event.event === 'sse:gap';
    // A tab without an id expects nothing: it waits for the position of the leader.
    const expected = this.#isUnlinked ? '' : cursor || undefined;
    if (this.#isDetached) this.#rejoin();
    else if (!hasHistory) this.#owner.onEvent(event);
    else if (after === expected) this.#apply(after, event);
    // A gap has no id: the event after it shows whether this tab has lost something.
    else if (id && !this.#knows(id)) {
      const isOverlapping = compareIds(after, cursor) < 0;
      if (isOverlapping) this.#apply(cursor, event);
      else this.#ask();
    }
  }

  #knows(id: string): boolean {
    return compareIds(id, this.cursor) <= 0 || this.#recent.some(([, event]) => event.id === id);
  }

  #onLeaderEnd(leaderCursor: string): void {
    const { cursor } = this;
    if (this.#isDetached) return;
    const isComplete =
      cursor === leaderCursor
        ? cursor !== '' || this.#isUnlinked
        : compareIds(cursor, leaderCursor) > 0;
    if (isComplete) this.#owner.onEnd();
    else if (!this.#isLeader) this.#detach();
  }

  #apply(after: string, event: ReceivedEvent): void {
    const { id, data } = event;
    this.#owner.onEvent(event);
    // Tabs that are behind a gap get it from the server.
    if (event.event === 'sse:gap') {
      this.#recent = [];
      this.#recentLength = 0;
    }
    if (id !== undefined || event.event === 'sse:gap') this.#isUnlinked = !id;
    if (!id || id === after) return;
    this.#recent.push([after, event]);
    this.#recentLength += data.length;
    while (this.#recent.length > MAX_RECENT_EVENTS || this.#recentLength > MAX_RECENT_LENGTH) {
      this.#recentLength -= this.#recent.shift()?.[1].data.length ?? 0;
    }
  }

  /** Reads what the leader cannot repeat over a connection of its own. */
  #detach(): void {
    if (this.#isDetached) return;
    this.#isDetached = true;
    this.#source.start();
  }

  /** Ends the own connection when it has reached the leader. */
  #rejoin(): void {
    if (this.cursor === '' || this.#leaderCursor === '') return;
    if (isBehind(this.cursor, this.#leaderCursor)) return;
    this.#isDetached = this.#isAsking = false;
    this.#source.stop();
    this.#ask();
  }
}

/** Whether a tab at the cursor may have missed events. */
function isBehind(cursor: string, leaderCursor: string): boolean {
  if (cursor === '' || leaderCursor === '' || cursor === leaderCursor) return false;
  return !(compareIds(cursor, leaderCursor) > 0);
}
