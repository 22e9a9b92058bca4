/** One node of a registry whose log is in Redis. */
import type { Cursor } from '../../cursor.ts';
import { diagnostics } from '../../diagnostics.ts';
import type { Kept } from '../../log.ts';
import type { LogEntry } from '../../log-entry.ts';
import type { Broker, BrokerState, LogBounds, Page, Publication, Receiver } from '../broker.ts';
import { closed, servesAnother } from '../errors.ts';
import type { Connection } from './client.ts';
import { Ear, type EarHost, type Timing } from './ear.ts';
import { entryOf, type Stamp } from './format.ts';
import { Mirror } from './mirror.ts';
import { Outbox } from './outbox.ts';
import { pageOf } from './page.ts';
import { settle } from './settle.ts';
import { lostIn, Store, type Answer, type Breaks, type Look } from './store.ts';
import { Waiters } from './waiters.ts';

export class RedisNode implements Broker, EarHost {
  readonly #connection: Connection;
  readonly #store: Store;
  readonly #outbox: Outbox;
  readonly #ear: Ear;
  readonly #waiters = new Waiters();
  // Older events that are being read into the mirror, by channel.
  readonly #loading = new Map<string, Promise<void>>();
  #mirror = new Mirror(0, () => 0);
  #maxHistory = 0;
  #receiver: Receiver | undefined;
  #breaks: Breaks = { origin: 0, jumps: [] };
  // How far the log has come by what was appended here.
  #own: Cursor = { epoch: '', offset: 0 };
  // Events without history have an order of their own.
  #liveOnly = 0;
  // What the clock of Redis is ahead of ours.
  #ahead = 0;
  // One question for the head is on its way; whoever comes later has the next one answered with the others.
  #asking: Promise<Look> | undefined;
  #askingNext: Promise<Look> | undefined;
  #running: Promise<void> | undefined;
  #closing: Promise<void> | undefined;

  constructor(connection: Connection, prefix: string, timing: Timing) {
    const { timeout } = timing;
    this.#connection = connection;
    const report = (problem: string): void => this.report(new Error(problem));
    this.#store = new Store(connection, prefix, timeout, () => this.#seen(), report);
    this.#outbox = new Outbox(this.#store, timeout, (epoch, head) => this.#appendedHere(epoch, head));
    this.#ear = new Ear(connection, this.#store, timing, this);
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
    if (this.#receiver !== undefined) throw servesAnother();
    this.#receiver = receiver;
    this.#maxHistory = bounds.maxHistory;
    this.#store.bounds = bounds;
    this.#mirror = new Mirror(bounds.maxHistory, () => performance.now() + this.#ahead);
    this.#running = this.#ear.run();
  }

  append(publication: Publication): Promise<{ id: string }> {
    return this.#closing === undefined ? this.#outbox.add(publication) : Promise.reject(closed());
  }

  listen(channel: string): Promise<void> | undefined {
    return this.#ear.listen(channel);
  }

  unlisten(channel: string): void {
    this.#ear.listened.leave(channel, performance.now());
  }

  position(atLeast?: Cursor, signal?: AbortSignal): Cursor | Promise<Cursor> {
    if (this.#closing !== undefined) throw closed();
    const isHere = this.#hasReached(this.#own) && (atLeast === undefined || this.#hasReached(atLeast));
    return isHere ? this.#here() : this.#positionLater(atLeast, signal);
  }

  read(channels: readonly string[], after: number, maxBytes: number, signal?: AbortSignal): Page | Promise<Page> {
    if (this.#closing !== undefined) throw closed();
    return this.#readHere(channels, after, maxBytes) ?? this.#readLater(channels, after, maxBytes, signal);
  }

  async clear(channel: string): Promise<void> {
    if (this.#closing !== undefined) throw closed();
    // What was published before is cleared, too.
    await this.#outbox.settled();
    const { epoch, offset, trimmed } = await this.#store.clear(channel);
    if (epoch === this.#ear.spine.epoch) this.#mirror.clear(channel, trimmed);
    this.#appendedHere(epoch, offset);
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    this.#ear.close();
    this.#waiters.close(closed());
    // What was published before is accepted or rejected, within its time.
    await this.#outbox.settled();
    this.#store.close();
    this.#connection.close();
    await this.#running;
    this.#mirror.empty();
  }

  // What the ear asks and tells.

  newest(channel: string): number | undefined {
    return this.#mirror.newest(channel);
  }

  appended(entry: LogEntry, stamp: Stamp): void {
    const { channel } = entry;
    if (this.#ear.listened.get(channel) === undefined) return;
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

  learn(channel: string, answer: Answer): void {
    this.#mirror.learn(channel, answer, this.head);
  }

  mend(channels: readonly string[], { epoch, head, at, breaks, answers }: Look): number {
    if (epoch !== this.#ear.spine.epoch) {
      this.#mirror.empty();
      this.#waiters.forgetOffsets();
    }
    this.#ahead = at - performance.now();
    this.#breaks = breaks;
    let entries = 0;
    for (const [index, channel] of channels.entries()) {
      const answer = answers[index] as Answer;
      this.#mirror.mend(channel, answer, answer.entries, !answer.isMore, head);
      entries += answer.entries.length;
    }
    return entries;
  }

  forget(channel: string): void {
    this.#mirror.forget(channel);
  }

  progressed(): void {
    this.#waiters.reach(this.head);
  }

  interrupted(): void {
    this.#waiters.interrupt();
    this.#receiver?.interrupted();
  }

  report(error: unknown): void {
    if (diagnostics.error.hasSubscribers) diagnostics.error.publish({ broker: this, error });
  }

  // Where it is.

  #here(): Cursor {
    const { epoch, head } = this.#ear.spine;
    return { epoch, offset: head };
  }

  #seen(): Cursor {
    const { epoch, offset } = this.#here();
    return { epoch, offset: this.#own.epoch === epoch ? Math.max(offset, this.#own.offset) : offset };
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
    this.#own = { epoch, offset: this.#own.epoch === epoch ? Math.max(offset, this.#own.offset) : offset };
    if (epoch !== this.#ear.spine.epoch) this.#ear.mistrust(`the log is another: ${epoch}`);
  }

  async #positionLater(atLeast: Cursor | undefined, signal: AbortSignal | undefined): Promise<Cursor> {
    // As far as it has appended now: what it appends meanwhile must not keep the answer away.
    const own = this.#own;
    for (;;) {
      await this.#waiters.until(this.#offsetOf(own), signal);
      if (!this.#hasReached(own)) continue;
      if (atLeast === undefined || this.#hasReached(atLeast)) return this.#here();
      const look = await this.#ask(this.#lookForHead(), signal);
      if (look?.epoch !== atLeast.epoch) continue;
      if (look.head < atLeast.offset) return { epoch: look.epoch, offset: look.head };
      await this.#waiters.until(this.#offsetOf(atLeast), signal);
    }
  }

  #lookForHead(): Promise<Look> {
    if (this.#asking === undefined) {
      this.#asking = this.#store.look([]).finally(() => {
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
    if (!this.#ear.isOpen || !this.#isKnown(channels) || this.#mirror.missing(channels, after).length > 0) return undefined;
    return told(this.#mirror.read(channels, after, maxBytes), this.#here(), lostIn(this.#breaks, after));
  }

  async #readLater(channels: readonly string[], after: number, maxBytes: number, signal: AbortSignal | undefined): Promise<Page> {
    let from = after;
    for (;;) {
      await this.#waiters.until(0, signal);
      if (!this.#ear.isOpen) continue;
      if (this.#isKnown(channels)) {
        const missing = this.#mirror.missing(channels, from);
        const loading = Promise.all(missing.map((channel) => this.#load(channel)));
        if ((await this.#ask(loading, signal)) === undefined) continue;
        const page = this.#readHere(channels, from, maxBytes);
        if (page !== undefined) return page;
        if (!this.#ear.isOpen) continue;
      }
      // Nobody listens to them, or it is more than a node may hold.
      const look = await this.#ask(this.#store.page(channels, from, maxBytes), signal);
      if (look === undefined) continue;
      const { epoch, head, breaks } = look;
      const { till, ...page } = pageOf(look, maxBytes);
      if (page.complete || page.entries.length > 0) return told(page, { epoch, offset: head }, lostIn(breaks, after));
      // There was nothing but what cannot be read.
      from = till;
    }
  }

  #isKnown(channels: readonly string[]): boolean {
    return channels.every((channel) => this.#ear.listened.get(channel)?.isKnown === true);
  }

  /** The answer; `undefined` after a while where there is none. Rejects when the broker is closed or the wait is ended. */
  async #ask<T>(question: Promise<T>, signal: AbortSignal | undefined): Promise<T | undefined> {
    try {
      return await settle(question, { signal });
    } catch (error) {
      signal?.throwIfAborted();
      if (this.#closing !== undefined) throw closed();
      this.report(error);
      await settle(this.#ear.pause(1), { signal });
      if (this.#closing !== undefined) throw closed();
      return undefined;
    }
  }

  /** Reads what Redis keeps of a channel beyond what is here, once for all who ask. */
  #load(channel: string): Promise<void> {
    const known = this.#loading.get(channel);
    if (known !== undefined) return known;
    const loading = this.#loadNow(channel).finally(() => this.#loading.delete(channel));
    this.#loading.set(channel, loading);
    return loading;
  }

  async #loadNow(channel: string): Promise<void> {
    const edge = this.#mirror.edge(channel);
    if (edge === undefined) return;
    const entries: Kept[] = [];
    for (let after = edge.from; ;) {
      const look = await this.#store.look([{ channel, after, till: edge.till }]);
      const answer = look.answers[0] as Answer;
      // More than may be held here.
      if (answer.bytes + this.#mirror.held.bytes > this.#maxHistory) return;
      for (const kept of answer.entries) entries.push(kept);
      if (!answer.isMore) {
        if (look.epoch === this.#ear.spine.epoch) this.#mirror.prepend(channel, edge, answer, entries);
        return;
      }
      after = answer.last;
    }
  }
}

function told(read: Omit<Page, 'position'>, position: Cursor, lost: number): Page {
  return { ...read, trimmed: lost === 0 ? read.trimmed : read.trimmed.map((one) => Math.max(one, lost)), position };
}
