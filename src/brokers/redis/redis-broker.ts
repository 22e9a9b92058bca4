/** One node of a registry whose log is in Redis. */
import type { Cursor } from '../../protocol/cursor.ts';
import { diagnostics } from '../../common/diagnostics.ts';
import { SseError } from '../../common/errors.ts';
import type { TimedEntry } from '../../log/log.ts';
import type { LogEntry } from '../../log/log-entry.ts';
import type { Broker, BrokerState, LogBounds, Page, Publication, Receiver } from '../broker.ts';
import { closedError, otherRegistryError } from '../errors.ts';
import type { RedisConnection } from './redis-connection.ts';
import { LogSubscription, type LogSubscriptionHost, type Timing } from './log-subscription.ts';
import { entryOf, type EntryMetadata } from './message-format.ts';
import { LogCache, type Edge } from './log-cache.ts';
import { PublishQueue } from './publish-queue.ts';
import { pageOf } from './page-reader.ts';
import { withLimits } from '../../common/async.ts';
import {
  lostIn,
  LogClient,
  type ChannelSnapshot,
  type Discontinuities,
  type LogSnapshot,
} from './log-client.ts';
import { ConditionQueue } from './condition-queue.ts';

export class RedisBroker implements Broker, LogSubscriptionHost {
  readonly #connection: RedisConnection;
  readonly #store: LogClient;
  readonly #outbox: PublishQueue;
  readonly #ear: LogSubscription;
  readonly #waiters = new ConditionQueue();
  // The log of which they wait for an offset.
  #waitersEpoch = '';
  readonly #timeout: number;
  readonly #inUse: number;
  // Why Redis could not be reached when that was last tried.
  #lastFailure: unknown;
  #isUnreachableTold = false;
  // Older events that are being read into the mirror, by channel.
  readonly #loading = new Map<string, Promise<void>>();
  // Bytes of them.
  #loadingBytes = 0;
  // Until when sets of channels are not tried again that did not fit into the mirror.
  readonly #tooLarge = new Map<string, number>();
  // Pages that are being read from Redis, for all who ask for the same.
  readonly #pages = new Map<string, Promise<LogSnapshot>>();
  #mirror = new LogCache(0, () => 0, 0);
  #receiver: Receiver | undefined;
  #breaks: Discontinuities = { origin: 0, jumps: [] };
  // How far the log has come by what was appended here.
  #own: Cursor = { epoch: '', offset: 0 };
  // Events without history have an order of their own.
  #liveOnly = 0;
  // What the clock of Redis is ahead of ours.
  #ahead = 0;
  // One question for the head is on its way; whoever comes later has the next one answered with the others.
  #asking: Promise<LogSnapshot> | undefined;
  #askingNext: Promise<LogSnapshot> | undefined;
  #pausing: Promise<void> | undefined;
  #running: Promise<void> | undefined;
  #closing: Promise<void> | undefined;

  constructor(connection: RedisConnection, prefix: string, timing: Timing) {
    const { timeout, inUse = 10_000 } = timing;
    this.#inUse = inUse;
    this.#connection = connection;
    const report = (problem: string): void => this.report(new Error(problem));
    this.#store = new LogClient(connection, prefix, timeout, () => this.#seen(), report);
    this.#timeout = timeout;
    this.#outbox = new PublishQueue(
      this.#store,
      timeout,
      (epoch, head) => this.#appendedHere(epoch, head),
      (problem, delivery) => this.#unanswered(`has not accepted it ${problem}`, delivery),
    );
    this.#ear = new LogSubscription(connection, this.#store, timing, this);
  }

  get state(): BrokerState {
    return this.#ear.state;
  }

  get head(): number {
    return this.#ear.spine.head;
  }

  get held(): { events: number; bytes: number } {
    return this.#mirror.held;
  }

  open(receiver: Receiver, bounds: LogBounds): void {
    if (this.#receiver !== undefined) throw otherRegistryError();
    this.#receiver = receiver;
    this.#store.bounds = bounds;
    this.#mirror = new LogCache(
      bounds.maxHistory,
      () => performance.now() + this.#ahead,
      this.#inUse,
    );
    this.#running = this.#ear.run();
  }

  append(publication: Publication): Promise<{ id: string }> {
    return this.#closing === undefined
      ? this.#outbox.add(publication)
      : Promise.reject(closedError());
  }

  listen(channel: string): Promise<void> | undefined {
    return this.#ear.listen(channel);
  }

  unlisten(channel: string): void {
    this.#ear.listened.leave(channel, performance.now());
  }

  position(atLeast?: Cursor, signal?: AbortSignal): Cursor | Promise<Cursor> {
    if (this.#closing !== undefined) throw closedError();
    const isHere =
      this.#hasReached(this.#own) && (atLeast === undefined || this.#hasReached(atLeast));
    return isHere
      ? this.#here()
      : this.#inTime(signal, (limit) => this.#positionLater(atLeast, limit));
  }

  read(
    channels: readonly string[],
    after: number,
    maxBytes: number,
    signal?: AbortSignal,
  ): Page | Promise<Page> {
    if (this.#closing !== undefined) throw closedError();
    return (
      this.#readHere(channels, after, maxBytes) ??
      this.#inTime(signal, (limit) => this.#readLater(channels, after, maxBytes, limit))
    );
  }

  async clear(channel: string): Promise<void> {
    if (this.#closing !== undefined) throw closedError();
    // What was published before is cleared, too.
    await this.#outbox.settled();
    const { epoch, offset, trimmed } = await this.#store.clear(channel);
    if (epoch === this.#mirror.epoch) this.#mirror.clear(channel, trimmed);
    this.#appendedHere(epoch, offset);
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#ear.close();
    this.#waiters.close(closedError());
    // What was published before is accepted or rejected, within its time.
    await this.#outbox.settled();
    this.#store.close();
    this.#connection.close();
    await this.#running;
    this.#mirror.begin('');
  }

  // What the ear asks and tells.

  newest(channel: string): number | undefined {
    return this.#mirror.newest(channel);
  }

  appended(entry: LogEntry, stamp: EntryMetadata): void {
    const { channel } = entry;
    if (this.#ear.listened.get(channel) === undefined) return;
    // One that has waited says nothing about the clock.
    if (this.#ear.isOpen) this.#setClock(stamp.at);
    this.#mirror.push(entry, stamp);
    if (this.#ear.listened.isWanted(channel)) this.#receiver?.receive(entry);
  }

  cleared(channel: string, trimmed: number): void {
    this.#mirror.clear(channel, trimmed);
  }

  passed(channel: string, body: string): void {
    if (!this.#ear.listened.isWanted(channel)) return;
    const entry = entryOf(body, channel, undefined, ++this.#liveOnly);
    if (entry === undefined) this.report(new Error(`an event of ${channel} that cannot be read`));
    else this.#receiver?.receive(entry);
  }

  learn(channel: string, answer: ChannelSnapshot): void {
    this.#mirror.learn(channel, answer, this.head);
  }

  mend(
    channels: readonly string[],
    { epoch, at, breaks, answers }: LogSnapshot,
    head: number,
  ): number {
    if (epoch !== this.#mirror.epoch) {
      // An attempt that failed may have passed on events of the log before, whose offsets prove nothing about this one.
      if (this.#mirror.epoch !== '') this.#receiver?.interrupted();
      this.#mirror.begin(epoch);
    }
    this.#setClock(at);
    this.#breaks = breaks;
    let entries = 0;
    for (const [index, channel] of channels.entries()) {
      const answer = answers[index] as ChannelSnapshot;
      // What is here may be what the log has lost, although it has gone on since.
      if (lostIn(breaks, this.#mirror.newest(channel) ?? head) > 0) this.#mirror.forget(channel);
      this.#mirror.mend(channel, answer, answer.entries, !answer.isMore, head);
      entries += answer.entries.length;
    }
    return entries;
  }

  forget(channel: string): void {
    this.#mirror.forget(channel);
  }

  progressed(): void {
    this.#lastFailure = undefined;
    const { epoch } = this.#ear.spine;
    if (epoch !== this.#waitersEpoch) this.#waiters.forgetOffsets();
    this.#waitersEpoch = epoch;
    this.#waiters.reach(this.head);
  }

  interrupted(): void {
    this.#waiters.interrupt();
    this.#receiver?.interrupted();
  }

  /** Without a connection for so long that somebody should know. */
  unreachable(ms: number): void {
    if (this.#isUnreachableTold) return;
    this.#isUnreachableTold = true;
    const reason = this.#lastFailure instanceof Error ? `: ${this.#lastFailure.message}` : '';
    process.emitWarning(
      `Redis at ${this.#connection.address} has not been reached for ${ms / 1_000} s${reason}`,
      {
        code: 'RES_SSE_BROKER_UNREACHABLE',
        detail:
          'Streams stay open and wait, and publishes reject. Check the address that redisBroker() has, and whether Redis runs.',
      },
    );
  }

  report(error: unknown): void {
    // The connections that are made while it is away say why it is.
    if (!this.#ear.isOpen) {
      this.#lastFailure = error instanceof SseError ? (error.cause ?? error) : error;
    }
    if (diagnostics.error.hasSubscribers) diagnostics.error.publish({ broker: this, error });
  }

  /** The clock of Redis, which may be set back. */
  #setClock(at: number): void {
    this.#ahead = at - performance.now();
  }

  /** @param problem what Redis has not done, and what that means */
  #unanswered(problem: string, delivery?: 'none' | 'unknown'): SseError {
    const { address } = this.#connection;
    const options = {
      ...(this.#lastFailure === undefined ? {} : { cause: this.#lastFailure }),
      ...(delivery === undefined ? {} : { delivery }),
    };
    return new SseError('ERR_SSE_BROKER', `Redis at ${address} ${problem}`, options);
  }

  /** Bounds a wait that has no signal to end it. */
  async #inTime<T>(
    signal: AbortSignal | undefined,
    wait: (signal: AbortSignal) => Promise<T>,
  ): Promise<T> {
    if (signal !== undefined) return wait(signal);
    const limit = new AbortController();
    const timer = setTimeout(() => {
      limit.abort(
        this.#unanswered(`has not answered within ${this.#timeout} ms; try again when it is back`),
      );
    }, this.#timeout);
    try {
      return await wait(limit.signal);
    } finally {
      clearTimeout(timer);
    }
  }

  // Where it is.

  #here(): Cursor {
    const { epoch, head } = this.#ear.spine;
    return { epoch, offset: head };
  }

  #seen(): Cursor {
    const { epoch, offset } = this.#here();
    return {
      epoch,
      offset: this.#own.epoch === epoch ? Math.max(offset, this.#own.offset) : offset,
    };
  }

  /** Whether the node is open and has come so far, as far as its log goes. */
  #hasReached(cursor: Cursor): boolean {
    return this.#ear.isOpen && this.#offsetOf(cursor) <= this.head;
  }

  /** A cursor of another log is reached at once: the caller looks anew. */
  #offsetOf({ epoch, offset }: Cursor): number {
    return epoch === this.#ear.spine.epoch ? offset : 0;
  }

  #appendedHere(epoch: string, offset: number): void {
    this.#own = {
      epoch,
      offset: this.#own.epoch === epoch ? Math.max(offset, this.#own.offset) : offset,
    };
    if (epoch !== this.#ear.spine.epoch) this.#ear.mistrust(`the log is another: ${epoch}`);
  }

  async #positionLater(atLeast: Cursor | undefined, signal: AbortSignal): Promise<Cursor> {
    // As far as it has appended now: what it appends meanwhile must not keep the answer away.
    const own = this.#own;
    for (;;) {
      await this.#waiters.until(this.#offsetOf(own), signal);
      if (!this.#hasReached(own)) continue;
      if (atLeast === undefined || this.#hasReached(atLeast)) return this.#here();
      const known = this.#ear.spine.epoch;
      const look = await this.#ask(this.#lookForHead(), signal);
      if (look !== undefined) this.#mistrustAnother(look.epoch, known);
      if (look?.epoch !== atLeast.epoch) continue;
      if (look.head < atLeast.offset) return { epoch: look.epoch, offset: look.head };
      await this.#waiters.until(this.#offsetOf(atLeast), signal);
    }
  }

  #lookForHead(): Promise<LogSnapshot> {
    if (this.#asking === undefined) {
      this.#asking = this.#shared(this.#store.look([])).finally(() => {
        this.#asking = undefined;
      });
      return this.#asking;
    }
    const before = this.#asking.catch(() => {});
    this.#askingNext ??= before.then(() => {
      this.#askingNext = undefined;
      return this.#lookForHead();
    });
    return this.#askingNext;
  }

  // Reading.

  /** All of it is in the mirror, and proved. */
  #readHere(channels: readonly string[], after: number, maxBytes: number): Page | undefined {
    if (
      !this.#ear.isOpen ||
      !this.#isKnown(channels) ||
      this.#mirror.missing(channels, after).length > 0
    ) {
      return undefined;
    }
    return told(
      this.#mirror.read(channels, after, maxBytes),
      this.#here(),
      lostIn(this.#breaks, after),
    );
  }

  async #readLater(
    channels: readonly string[],
    after: number,
    maxBytes: number,
    signal: AbortSignal,
  ): Promise<Page> {
    let from = after;
    for (;;) {
      await this.#waiters.until(0, signal);
      if (!this.#ear.isOpen) continue;
      if (this.#isKnown(channels)) {
        const missing = this.#mirror.missing(channels, from);
        if (missing.length > 0 && (await this.#ask(this.#load(missing), signal)) === undefined) {
          continue;
        }
        const page = this.#readHere(channels, from, maxBytes);
        if (page !== undefined) return page;
        if (!this.#ear.isOpen) continue;
      }
      // Nobody listens to them, or it is more than a node may hold.
      const known = this.#ear.spine.epoch;
      const look = await this.#ask(this.#page(channels, from, maxBytes), signal);
      if (look === undefined) continue;
      const { epoch, head, breaks } = look;
      if (epoch !== this.#ear.spine.epoch) {
        // A stream must not go on in a log whose events this node does not hear yet.
        this.#mistrustAnother(epoch, known);
        continue;
      }
      const { till, ...page } = pageOf(look, maxBytes);
      if (page.complete || page.entries.length > 0) {
        return told(page, { epoch, offset: head }, lostIn(breaks, after));
      }
      // There was nothing but what cannot be read.
      from = till;
    }
  }

  /** An answer is of another log than this node has known, before and after it was asked for. */
  #mistrustAnother(epoch: string, known: string): void {
    if (epoch === known || known !== this.#ear.spine.epoch) return;
    this.#ear.mistrust(`the log is another: ${epoch} instead of ${known}`);
  }

  #isKnown(channels: readonly string[]): boolean {
    return channels.every((channel) => this.#ear.listened.get(channel)?.isKnown === true);
  }

  /** The answer; `undefined` after a while where there is none. Rejects when the broker is closed or the wait is ended. */
  async #ask<T>(question: Promise<T>, signal: AbortSignal): Promise<T | undefined> {
    try {
      return await withLimits(question, { signal });
    } catch {
      signal.throwIfAborted();
      if (this.#closing !== undefined) throw closedError();
      // One wait for all, however many ask.
      this.#pausing ??= this.#ear.pause(1).finally(() => {
        this.#pausing = undefined;
      });
      await withLimits(this.#pausing, { signal });
      if (this.#closing !== undefined) throw closedError();
      return undefined;
    }
  }

  /** A question that many may wait for: what is wrong with it is told once. */
  #shared<T>(question: Promise<T>): Promise<T> {
    question.catch((error: unknown) => {
      if (this.#closing === undefined) this.report(error);
    });
    return question;
  }

  /** A page straight from Redis, once for all who ask for it at the same time. */
  #page(channels: readonly string[], after: number, maxBytes: number): Promise<LogSnapshot> {
    const name = [after, maxBytes, ...channels].join('\n');
    const known = this.#pages.get(name);
    if (known !== undefined) return known;
    const page = this.#shared(this.#store.page(channels, after, maxBytes)).finally(() =>
      this.#pages.delete(name),
    );
    this.#pages.set(name, page);
    return page;
  }

  /** Reads what Redis keeps of channels beyond what is here, once for all who ask. What does not fit is left there. */
  async #load(channels: readonly string[]): Promise<true> {
    const fresh = channels.filter((channel) => !this.#loading.has(channel));
    const name = fresh.join('\n');
    if (fresh.length > 0 && (this.#tooLarge.get(name) ?? 0) <= performance.now()) {
      const loading = this.#shared(this.#loadNow(fresh, name)).finally(() => {
        for (const channel of fresh) this.#loading.delete(channel);
      });
      for (const channel of fresh) this.#loading.set(channel, loading);
    }
    const loading = new Set<Promise<void>>();
    for (const channel of channels) {
      const one = this.#loading.get(channel);
      if (one !== undefined) loading.add(one);
    }
    await Promise.all(loading);
    return true;
  }

  /** @param name of the set of channels */
  async #loadNow(channels: readonly string[], name: string): Promise<void> {
    // Sizes first: what does not fit is not read.
    const { epoch, answers } = await this.#store.look(
      channels.map((channel) => ({ channel, after: undefined })),
    );
    if (epoch !== this.#mirror.epoch) return;
    const bytes = answers.reduce((sum, answer) => sum + answer.bytes, 0);
    if (
      !this.#mirror.makeRoom(
        bytes + this.#loadingBytes,
        new Set([...channels, ...this.#loading.keys()]),
      )
    ) {
      this.#noteTooLarge(name);
      return;
    }
    this.#loadingBytes += bytes;
    try {
      await this.#loadAll(
        channels.map((channel, index) => ({
          channel,
          bytes: (answers[index] as ChannelSnapshot).bytes,
        })),
      );
    } finally {
      this.#loadingBytes -= bytes;
    }
  }

  async #loadAll(
    channels: readonly { readonly channel: string; readonly bytes: number }[],
  ): Promise<void> {
    let waiting: Load[] = channels.flatMap(({ channel, bytes }) => {
      const edge = this.#mirror.edge(channel);
      return edge === undefined ? [] : [{ channel, bytes, edge, after: edge.from, entries: [] }];
    });
    while (waiting.length > 0) {
      const some = waiting.slice(0, countWithin(waiting, BYTES_PER_LOAD));
      const look = await this.#store.look(
        some.map(({ channel, edge, after }) => ({ channel, after, till: edge.till })),
      );
      if (look.epoch !== this.#mirror.epoch) return;
      const unfinished: Load[] = [];
      for (const [index, load] of some.entries()) {
        const answer = look.answers[index] as ChannelSnapshot;
        for (const kept of answer.entries) load.entries.push(kept);
        if (!answer.isMore) this.#mirror.prepend(load.channel, load.edge, answer, load.entries);
        else unfinished.push({ ...load, after: Math.max(load.after, answer.last) });
      }
      waiting = [...unfinished, ...waiting.slice(some.length)];
    }
  }

  #noteTooLarge(name: string): void {
    const now = performance.now();
    for (const [other, until] of this.#tooLarge) {
      if (until > now && this.#tooLarge.size < MOST_TOO_LARGE) break;
      this.#tooLarge.delete(other);
    }
    this.#tooLarge.set(name, now + this.#inUse);
  }
}

// Bytes of events that one question for older ones may bring.
const BYTES_PER_LOAD = 4_194_304;

// Sets of channels that are remembered.
const MOST_TOO_LARGE = 100;

/** Older events of a channel, while they are read. */
interface Load {
  readonly channel: string;
  readonly bytes: number;
  readonly edge: Edge;
  readonly after: number;
  readonly entries: TimedEntry[];
}

/** How many of the channels make about so many bytes; at least one. */
function countWithin(channels: readonly Load[], most: number): number {
  let bytes = 0;
  const count = channels.findIndex((load) => (bytes += load.bytes) > most);
  return count === -1 ? channels.length : Math.max(count, 1);
}

function told(read: Omit<Page, 'position'>, position: Cursor, lost: number): Page {
  return {
    ...read,
    trimmed: lost === 0 ? read.trimmed : read.trimmed.map((one) => Math.max(one, lost)),
    position,
  };
}
