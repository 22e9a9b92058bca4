/**
 * Reads the log for a stream that is catching up: a new or resuming stream, or one that is behind.
 * The log is read in pages, as fast as the stream's reader takes them, until nothing is left.
 *
 * ```text
 *                  ┌───────── the limits of this turn allow the next step ────────┐
 *                  │                                                              ▼
 * idle ─start()─► queued ◄── a page was delivered, and was not the last ─────── stepping
 *  ▲               ▲ ▲ ▲                                                          │
 *  │               │ │ └── the page has arrived ── reading ◄── remote broker ─────┤
 *  │               │ └──── the queue is short ──── draining ◄─ behind ────────────┤
 *  │               └────── `onGap` has answered ── asking ◄─── gap ───────────────┤
 *  │                                                                              │
 *  └──────────────────────── nothing is left, or the stream has ended ────────────┘
 * ```
 *
 * One step reads a page, reports a gap or delivers the page, and sets the next phase.
 */
import { CHUNK_BYTES, HIGH_WATER_MARK } from '../stream/write-queue.ts';
import type { Page } from '../brokers/broker.ts';
import type { LogEntry } from '../log/log-entry.ts';
import type { CatchUpJob } from './catch-up-queue.ts';
import { ChannelStarts } from './channel-starts.ts';
import type { FollowerState } from './follower-state.ts';
import { countFitting } from './frame.ts';
import { reportGap, type GapInquiry } from './gap-inquiry.ts';
import type { SubscriptionRecord } from './subscription.ts';

// Maximum bytes of a page: the number of queued bytes up to which a stream is not behind.
const PAGE_BYTES = HIGH_WATER_MARK;

/** A caller that waits until the stream has received everything up to an offset. */
interface PositionWaiter {
  readonly offset: number;
  readonly resolve: () => void;
}

/** A page, and the state of the stream and the node when the page was requested. */
interface PageRead {
  readonly page: Page;
  /** If the generation has changed since, the page does not fit the channels of the stream. */
  readonly generation: number;
  /** Value of `FollowedChannels.interruptions` at the request. */
  readonly interruptions: number;
}

/** Opens a stream, or answers its request without a stream, when the first page is known. */
export interface Opening {
  /** @returns whether the stream is open, so that the page can be delivered */
  decide(page: Page): boolean;
  /** The first page could not be read, and the stream could not be opened to end it in order. */
  onFailed(error: unknown): void;
}

/** The work of one stream that is catching up. */
export class CatchUp implements CatchUpJob {
  /** The start of each channel, and the gap arithmetic. */
  readonly starts: ChannelStarts = new ChannelStarts();
  /** Whether an `sse:checkpoint` event, with the client's position, precedes the next page. */
  isCheckpointPending = false;
  /** Opens the stream with the first page, if the stream is not open yet. */
  opening: Opening | undefined;
  /** Whether the position moved back, because channels were added: ids have become smaller. */
  hasSteppedBack = false;
  #phase: 'idle' | 'queued' | 'stepping' | 'reading' | 'draining' | 'asking' = 'idle';
  readonly #owner: FollowerState;
  // Incremented whenever the channels of the stream change.
  #generation = 0;
  // A page of a remote broker that waits for the next step.
  #pageRead: PageRead | undefined;
  // Entries that the filters have accepted, and that are not written yet.
  #acceptedEntries: LogEntry[] | undefined;
  #inquiry: GapInquiry | undefined;
  // Aborts pending reads when the stream ends.
  #abort: AbortController | undefined;
  #waiters: readonly PositionWaiter[] | undefined;

  /** @param owner the follower of the stream */
  constructor(owner: FollowerState) {
    this.#owner = owner;
  }

  /** Whether an `onGap` or `snapshot` of the application is running. */
  get isAsking(): boolean {
    return this.#phase === 'asking';
  }

  /** Whether no step is queued and nothing is awaited. */
  get isIdle(): boolean {
    return this.#phase === 'idle';
  }

  // Methods that the follower calls.

  /**
   * Starts to read, unless reading has started before.
   * @param mayRunNow whether the first step may be done inside this call, with its callbacks
   */
  start(mayRunNow: boolean): void {
    if (this.#phase !== 'idle') return;
    this.#phase = 'queued';
    this.#owner.host.catchUpQueue.add(this, mayRunNow, this.#pageRead !== undefined);
  }

  /** The stream has ended. */
  stop(): void {
    this.#generation++;
    this.#owner.host.catchUpQueue.delete(this);
    this.#abort?.abort();
    this.#removePageRead();
    this.resolveWaiters();
  }

  /** Resolves when the stream has received everything up to the offset, or has ended. */
  whenReached(offset: number): Promise<void> {
    return new Promise((resolve) => {
      this.#waiters = [...(this.#waiters ?? []), { offset, resolve }];
    });
  }

  /** Resolves the waiters for all offsets up to this one. @defaultValue all waiters */
  resolveWaiters(upTo: number = Infinity): void {
    if (this.#waiters === undefined) return;
    const reached = this.#waiters.filter(({ offset }) => offset <= upTo);
    this.#waiters = this.#waiters.filter(({ offset }) => offset > upTo);
    for (const { resolve } of reached) resolve();
  }

  /** The stream follows these channels from here on, and no others. */
  onChannelsChanged(channels: ReadonlySet<string>): void {
    this.#generation++;
    this.starts.keepOnly(channels);
    if (channels.size === 0) this.resolveWaiters();
  }

  /** These channels are new to the stream. */
  onChannelsAdded(channels: readonly string[]): void {
    this.#inquiry?.onChannelsAdded(channels);
  }

  /** A subscription of the stream has ended. */
  onSubscriptionEnded(record: SubscriptionRecord): void {
    this.#inquiry?.onSubscriptionEnded(record);
  }

  // Steps.

  /** Does one step. Called by the queue. An error of a filter or of the broker ends the stream. */
  step(): void {
    this.#phase = 'stepping';
    try {
      this.#doStep();
    } catch (error) {
      this.#fail(error);
    }
    // If the step has not changed the phase, nothing is left to do now: the stream has caught up,
    // or somebody calls `start()` again when a delivery has ended or ids may be written.
    if (this.#isStepping) this.#phase = 'idle';
  }

  // A getter, because TypeScript would conclude from the assignment above that the phase has not
  // changed.
  get #isStepping(): boolean {
    return this.#phase === 'stepping';
  }

  /** Waits for the reader, uses the page that has arrived, or requests the next page. */
  #doStep(): void {
    const { host, stream, isCatchingUp, channels, position } = this.#owner;
    // Removed in any case: an unused page would count as one of the queue's pending reads.
    const pageRead = this.#removePageRead();
    // During a delivery to the stream nothing can be written: `onDelivered()` queues the next step.
    // If no id may be written, the next step is queued when the pending subscription is placed or
    // has ended.
    if (!isCatchingUp || host.deliveries.has(stream) || this.#owner.mayNotWriteIds) return;
    if (stream.isBehind) {
      this.#waitForDrain();
      return;
    }
    if (pageRead?.generation === this.#generation) {
      this.#usePage(pageRead);
      return;
    }
    const request = {
      generation: this.#generation,
      interruptions: host.followedChannels.interruptions,
    };
    // A broker in this process answers at once, so its reads need no signal.
    const signal = host.catchUpQueue.isBrokerRemote
      ? (this.#abort ??= new AbortController()).signal
      : undefined;
    const page = host.broker.read(channels, position, PAGE_BYTES, signal);
    if (page instanceof Promise) void this.#waitForPage(page, request);
    else this.#usePage({ ...request, page });
  }

  /** Removes the page that has arrived, if there is one. The caller uses or drops the page. */
  #removePageRead(): PageRead | undefined {
    const pageRead = this.#pageRead;
    if (pageRead === undefined) return undefined;
    this.#pageRead = undefined;
    this.#owner.host.catchUpQueue.finishRead();
    return pageRead;
  }

  /** Continues when the reader has taken enough of the queued bytes. */
  #waitForDrain(): void {
    this.#phase = 'draining';
    void this.#owner.stream.drained().then(() => this.#continue(true));
  }

  /** Continues with the page of a remote broker: at once if this turn has room, otherwise later. */
  async #waitForPage(page: Promise<Page>, request: Omit<PageRead, 'page'>): Promise<void> {
    const { catchUpQueue } = this.#owner.host;
    this.#phase = 'reading';
    catchUpQueue.startRead();
    try {
      this.#pageRead = { ...request, page: await page };
      if (!this.#owner.isCatchingUp) this.#removePageRead();
      this.#continue(true);
    } catch (error) {
      catchUpQueue.finishRead();
      this.#phase = 'idle';
      // If the stream has ended, this is the error of the abort.
      if (this.#owner.isCatchingUp) this.#fail(error);
    }
  }

  /** Ends the stream, because of an error of the broker or of the application. Never throws. */
  #fail(error: unknown): void {
    try {
      this.#owner.fail(error);
    } catch (thrown) {
      // The stream was not open yet, and a listener for the response head threw.
      this.opening?.onFailed(thrown);
    }
  }

  /** Queues the next step, if the stream is catching up. @param mayRunNow as in {@link start} */
  #continue(mayRunNow: boolean): void {
    this.#phase = 'idle';
    if (this.#owner.isCatchingUp) this.start(mayRunNow);
  }

  // Pages.

  /**
   * Uses a page. The cases, in this order:
   *
   * ```text
   * the request is answered without a stream    nothing is left to do
   * the stream opened; its channels changed     the page does not fit them: read again
   * the broker has lost its data: a new log     move to its start; the next page reports the gap
   * a revocation may be missing                 wait for it, then read again
   * all others                                  write the page
   * ```
   */
  #usePage(pageRead: PageRead): void {
    const owner = this.#owner;
    const { page, generation } = pageRead;
    const { epoch } = page.position;
    owner.host.catchUpQueue.countBytes(
      page.entries.reduce((sum, { frame }) => sum + frame.length, 0),
    );
    const { opening } = this;
    this.opening = undefined;
    if (opening?.decide(page) === false) return;
    // A wrapped `res.write` may have changed the channels while the stream opened.
    if (generation !== this.#generation) this.#continue(false);
    else if (epoch !== owner.epoch) {
      owner.moveToLog(epoch, 0);
      this.starts.markAllLost(owner.channels);
      this.#continue(false);
    } else {
      const offset = page.entries.at(-1)?.offset ?? 0;
      const allowed = owner.host.whenMayReceive(owner.stream, offset, this.#abort?.signal);
      if (allowed === undefined) this.#writePage(pageRead);
      else void this.#waitUntilAllowed(allowed);
    }
  }

  /** Reports the gap that the page shows. Then delivers the page, or asks the application. */
  #writePage({ page, generation, interruptions }: PageRead): void {
    const owner = this.#owner;
    const { host, stream } = owner;
    let gap: GapInquiry | undefined;
    host.deliveries.enter(stream);
    try {
      gap = reportGap(owner, this.starts, page);
      if (gap !== undefined) this.isCheckpointPending = true;
      // The answers may change the position, so the log is read again after them.
      if (gap?.hasQuestions !== true) this.#deliver(page);
    } finally {
      host.deliveries.exit();
    }
    owner.onDelivered();
    this.resolveWaiters(owner.position);
    if (gap?.hasQuestions === true) void this.#runInquiry(gap);
    else if (generation === this.#generation) this.#finishPage(page, interruptions);
    // A callback has changed the channels, or has ended the stream.
    else this.#continue(false);
  }

  /**
   * Waits until the stream may receive the page, and reads the page again. The phase is that of a
   * read, because the step continues when a promise has resolved.
   */
  async #waitUntilAllowed(allowed: Promise<void>): Promise<void> {
    this.#phase = 'reading';
    try {
      await allowed;
    } catch {
      // The stream has ended.
    }
    this.#continue(true);
  }

  /** The page was delivered. Decides whether the stream has caught up, or has ended. */
  #finishPage({ complete, ended }: Page, interruptions: number): void {
    const owner = this.#owner;
    const { followedChannels } = owner.host;
    for (const record of owner.subscriptions) if (record.isPlaced) record.finishStart();
    // Between the request of a page and its delivery, the node may have received newer events, or
    // may have missed events.
    const isUpToDate =
      interruptions === followedChannels.interruptions &&
      followedChannels.newestReceived(owner.channels) <= owner.position;
    if (!complete || !isUpToDate) this.#continue(false);
    else if (owner.followsOnlyEnded(ended)) owner.onAllEnded();
    else owner.onCaughtUp();
  }

  /** Asks the application, and continues from the cursors that it returns. */
  async #runInquiry(inquiry: GapInquiry): Promise<void> {
    this.#phase = 'asking';
    this.#inquiry = inquiry;
    try {
      await inquiry.run();
    } catch (error) {
      // The phase is still 'asking': a callback of `fail` that subscribes must not start a read.
      this.#fail(error);
      this.#phase = 'idle';
      return;
    } finally {
      this.#inquiry = undefined;
    }
    this.#continue(true);
  }

  /** Writes the entries of a page that the stream receives, and moves the position after them. */
  #deliver({ entries, complete, position }: Page): void {
    const owner = this.#owner;
    const from = owner.position;
    // Set before anything is written, because filters and a wrapped `res.write` may call back.
    owner.moveTo(Math.max(from, complete ? position.offset : (entries.at(-1) as LogEntry).offset));
    if (this.isCheckpointPending) {
      this.isCheckpointPending = false;
      // The greatest offset at which the client has everything: just before the first entry.
      owner.writeCheckpoint(
        Math.max(from, entries[0] === undefined ? position.offset : entries[0].offset - 1),
      );
    }
    try {
      for (const entry of entries) {
        if (this.starts.isAfterStart(entry) && owner.accepts(entry)) {
          (this.#acceptedEntries ??= []).push(entry);
        }
      }
    } finally {
      for (const entry of entries) entry.releaseView();
    }
    this.writeAccepted();
  }

  /** Writes the entries that the filters have accepted by now. */
  writeAccepted(): void {
    const accepted = this.#acceptedEntries;
    if (accepted === undefined) return;
    this.#acceptedEntries = undefined;
    this.#owner.onWriting((accepted.at(-1) as LogEntry).offset);
    this.#writeEntries(accepted);
  }

  /**
   * Writes entries. Streams that reconnect together usually receive the same events, so the part
   * that the reader can take now is written as shared frames. The rest is queued: without a copy,
   * as the buffers that the log holds, unless the stream is compressed.
   */
  #writeEntries(entries: readonly LogEntry[]): void {
    const { stream, host } = this.#owner;
    let rest = entries;
    while (rest.length > 0 && stream.bufferedAmount <= CHUNK_BYTES) {
      const count = countFitting(rest, CHUNK_BYTES);
      const frame = host.fanOut.frameOf(rest.slice(0, count));
      if (!stream.writeShared(frame, count)) break;
      rest = rest.slice(count);
    }
    if (rest.length === 0) return;
    if (stream.gzip === undefined) {
      stream.writeAll(rest.map(({ frame }) => frame));
    } else {
      const frame = host.fanOut.frameOf(rest);
      stream.writeBytes(frame.bytes, rest.length, frame);
    }
  }
}
