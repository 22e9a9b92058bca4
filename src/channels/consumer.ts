/**
 * `channels.follow()`: reads channels in this process, at the pace of the consumer.
 *
 * ```text
 *            next()
 *              ▼
 *   events in the buffer? ──yes──► the first of them
 *              │ no
 *   live? ─────┼──yes──► wait: the audience adds the next frame to the buffer
 *              │ no
 *   read a page of the log ──► events to the buffer
 *                              the last page, and nothing newer was received? Join the audience
 *                              a gap? onGap, or an error
 * ```
 *
 * If a consumer does not call `next()`, it leaves the audience as soon as its buffer is full. So a
 * consumer that is behind needs memory only for a cursor and for a few events, which the log keeps
 * anyway.
 */
import type { Page } from '../brokers/broker.ts';
import { onAbort } from '../common/abort-listeners.ts';
import { ignoreRejection, withLimits } from '../common/async.ts';
import { bindToContext } from '../common/async-context.ts';
import { SseError, describeValue } from '../common/errors.ts';
import type { ChannelEvent, LogEntry } from '../log/log-entry.ts';
import { formatCursor, parseCursor, type Cursor } from '../protocol/cursor.ts';
import type { Gap } from '../stream/subscription-types.ts';
import { HIGH_WATER_MARK } from '../stream/write-queue.ts';
import { ChannelStarts } from './channel-starts.ts';
import type { FollowOptions } from './channels.ts';
import { ConsumerBuffer } from './consumer-buffer.ts';
import type { FollowerHost } from './follower-host.ts';
import { resolveStart, setStartsOfKept } from './start.ts';

/** The registry, as seen by a consumer. */
export interface ConsumerHost extends FollowerHost {
  /** Whether `close()` was called. */
  readonly isClosed: boolean;
  /** The consumer starts to read. Every call needs an {@link untrackConsumer}. */
  trackConsumer(consumer: Consumer): void;
  untrackConsumer(consumer: Consumer): void;
}

// The steps of a turn that one page uses up: the application handles all of its events in that
// turn.
const STEPS_PER_PAGE = 20;

type Result = IteratorResult<ChannelEvent, undefined>;

const DONE: Result = { done: true, value: undefined };

/** One call of `channels.follow()`. */
export class Consumer implements AsyncIterableIterator<ChannelEvent, undefined> {
  readonly #host: ConsumerHost;
  readonly #channels: readonly string[];
  readonly #options: FollowOptions;
  readonly #starts = new ChannelStarts();
  // Resolves when the start, and so the epoch and the position, is known. The broker is asked in
  // the call of `follow()`, not in the first `next()`.
  readonly #start: Promise<void>;
  #epoch = '';
  // Events for which the filter was not called yet.
  #buffer: ConsumerBuffer;
  // The entry that the last `next()` has returned.
  #previous: LogEntry | undefined;
  // Whether the channels are retained: this node receives their events.
  #isRetained = false;
  // Whether no further event is returned.
  #isOver = false;
  // Aborted when the consumer is over. Ends waits for the broker.
  readonly #abort = new AbortController();
  // Settles with the newest call of `next()`: the calls are answered one after the other.
  #last: Promise<unknown> = Promise.resolve();
  // Removes the listener from the signal of the application.
  #stopListening: (() => void) | undefined;

  /** @param channels valid names of channels with history, each once */
  constructor(host: ConsumerHost, channels: readonly string[], options: FollowOptions) {
    this.#host = host;
    this.#channels = channels;
    this.#buffer = new ConsumerBuffer(host.fanOut, this.#starts, 0);
    const { signal, filter, onGap } = options;
    // Functions of the application run in the async context of the call of `follow`.
    this.#options = {
      ...options,
      filter: filter && bindToContext(filter),
      onGap: onGap && bindToContext(onGap),
    };
    this.#start = signal?.aborted === true ? Promise.resolve() : this.#findStart();
    // Reported by the first `next()`.
    this.#start.catch(() => {});
  }

  // Methods of the iterator.

  [Symbol.asyncIterator](): this {
    return this;
  }

  next(): Promise<Result> {
    const result = this.#last.then(() => this.#next());
    this.#last = result.catch(() => {});
    return result;
  }

  /** Called by a `for await` loop that is left. A pending `next()` resolves. */
  return(): Promise<Result> {
    this.stop();
    return Promise.resolve(DONE);
  }

  /** Ends the consumer: a pending `next()` and every later one resolves without an event. */
  stop(): void {
    if (this.#isOver) return;
    this.#isOver = true;
    this.#stopListening?.();
    this.#abort.abort();
    this.#buffer.close();
    this.#previous?.releaseView();
    if (this.#isRetained) {
      const { followedChannels } = this.#host;
      for (const channel of this.#channels) followedChannels.release(channel, 'consumer');
      this.#host.untrackConsumer(this);
    }
  }

  async #next(): Promise<Result> {
    try {
      this.#previous?.releaseView();
      this.#previous = undefined;
      if (this.#host.isClosed || this.#options.signal?.aborted === true) this.stop();
      if (!this.#isRetained && !this.#isOver) await this.#retain();
      while (!this.#isOver) {
        const event = this.#takeAccepted();
        if (event !== undefined) return { done: false, value: event };
        if (this.#buffer.isLive) await this.#buffer.whenChanged();
        else await this.#readPage();
      }
      return DONE;
    } catch (error) {
      // The consumer is over, so a wait for the broker was aborted.
      if (this.#isOver) return DONE;
      this.stop();
      if (this.#host.isClosed) return DONE;
      throw error;
    }
  }

  /** Removes the first event of the buffer that the filter accepts. */
  #takeAccepted(): LogEntry | undefined {
    const { filter } = this.#options;
    for (let entry = this.#buffer.shift(); entry !== undefined; entry = this.#buffer.shift()) {
      const isAccepted: unknown = entry.isEnd ? false : (filter?.(entry) ?? true);
      if (typeof isAccepted !== 'boolean') {
        ignoreRejection(isAccepted);
        throw new SseError(
          'ERR_SSE_FILTER',
          `expected the filter to return true or false, got ${describeValue(isAccepted)}`,
        );
      }
      if (this.#isOver) return undefined;
      if (isAccepted) {
        this.#previous = entry;
        return entry;
      }
      entry.releaseView();
    }
    return undefined;
  }

  // The log.

  /** Asks the broker where the consumer starts. */
  async #findStart(): Promise<void> {
    const { broker } = this.#host;
    const { since = 'now' } = this.#options;
    const text = typeof since === 'string' ? since : '';
    const { signal } = this.#abort;
    // Awaits only promises: nothing may be published in between.
    const asked = broker.position(parseCursor(text), signal);
    const position = asked instanceof Promise ? await asked : asked;
    const last = typeof since === 'string' ? undefined : since.last;
    const found =
      last === undefined ? undefined : broker.startsOfNewest(this.#channels, last, signal);
    const newest = found instanceof Promise ? await found : found;
    const start = resolveStart('', { since }, position, newest);
    this.#epoch = position.epoch;
    this.#buffer.position = start.offset;
    if (start.isForeign) this.#starts.addForeign(this.#channels);
    setStartsOfKept(this.#starts, this.#channels, start, position.offset);
  }

  /** Follows the channels: from here on this node receives their events. */
  async #retain(): Promise<void> {
    // Not in the constructor: a consumer that is never iterated would stay in memory.
    const { signal } = this.#options;
    this.#stopListening = signal && onAbort(signal, () => this.stop());
    await this.#start;
    if (this.#isOver) return;
    const { followedChannels } = this.#host;
    this.#isRetained = true;
    for (const channel of this.#channels) followedChannels.retain(channel, true, 'consumer');
    this.#host.trackConsumer(this);
    await followedChannels.whenListening(this.#channels, this.#abort.signal);
  }

  /** Reads a page of the log into the buffer, and joins the audience after the last page. */
  async #readPage(): Promise<void> {
    const { catchUpQueue, followedChannels } = this.#host;
    // A broker in this process answers at once, so without this wait one consumer could use a whole
    // turn of the event loop.
    await catchUpQueue.waitForTurn(STEPS_PER_PAGE);
    if (this.#isOver) return;
    const { interruptions } = followedChannels;
    const buffer = this.#buffer;
    const page = await this.#read(this.#channels, buffer.position);
    if (this.#isOver) return;
    if (page.position.epoch !== this.#epoch) {
      // The broker has lost its data: a new log. The next page reports the gap.
      this.#epoch = page.position.epoch;
      buffer.position = 0;
      this.#starts.markAllLost(this.#channels);
      return;
    }
    const gap = this.#findGap(page);
    buffer.addRead(page.entries, endOf(page));
    // No `await` since the page was read: a consumer that is stopped meanwhile must not join.
    if (page.complete && this.#isUpTo(buffer.position, interruptions)) {
      if (!haveAllEnded(page)) buffer.join(this.#channels);
      // If the buffer still has events, the page that is read after them stops the consumer.
      else if (gap === undefined && buffer.hasNoEvent) this.stop();
    }
    if (gap !== undefined) await this.#askAboutGap(gap, page, interruptions);
  }

  #read(channels: readonly string[], after: number): Page | Promise<Page> {
    return this.#host.broker.read(channels, after, HIGH_WATER_MARK, this.#abort.signal);
  }

  // Gaps.

  /**
   * Counts the gap that the page shows, if there is one.
   * @throws {SseError} `ERR_SSE_GAP` without an `onGap`
   */
  #findGap({ trimmed, position }: Page): Gap | undefined {
    const starts = this.#starts;
    const { hasForeign } = starts;
    const channelsWithGap = starts.collectLost(this.#channels, trimmed, this.#buffer.position);
    if (channelsWithGap.length === 0) return undefined;
    starts.clearForeign();
    const gap: Gap = {
      channels: channelsWithGap,
      lastEventId: hasForeign ? '' : formatCursor(this.#epoch, this.#buffer.position),
      cursor: formatCursor(position.epoch, position.offset),
    };
    this.#host.countGap();
    if (this.#options.onGap === undefined) {
      throw new SseError(
        'ERR_SSE_GAP',
        `events of ${channelsWithGap.join(', ')} were lost before the consumer has received ` +
          'them; pass `onGap` to follow(), and read the state again there',
      );
    }
    return gap;
  }

  /**
   * Calls `onGap`. Meanwhile a newer buffer takes what is published. Otherwise, on a channel with a
   * short history, these events would be the next gap, and the consumer might never receive an
   * event.
   *
   * ```text
   * offset       ── lost ──┤ page ├────────┤ gap.cursor
   * #buffer                ├──────┤
   * newer buffer                           ├─ published while onGap runs ─►
   *
   * `onGap` answers            the consumer continues with
   * nothing                    `#buffer`: all events that the log still keeps
   * a cursor before the end    `#buffer`, without the events up to the cursor
   * `gap.cursor`, or later     the newer buffer, after the events that `#buffer` has of channels
   *                            without a gap
   * ```
   *
   * The newer buffer is closed unless the consumer continues with it. `#buffer` is not live, so it
   * need not be closed.
   * @param interruptions value of `FollowedChannels.interruptions` when the page was requested
   * @throws {SseError} `ERR_SSE_CURSOR`
   */
  async #askAboutGap(gap: Gap, page: Page, interruptions: number): Promise<void> {
    const { onGap } = this.#options;
    const { signal } = this.#abort;
    const newer = await this.#joinAtEnd(gap, page, interruptions);
    try {
      // Rejects when the consumer is over, because the handler may never answer.
      const answer: unknown = await withLimits((async () => onGap?.(gap))(), { signal });
      if (this.#isOver || answer === undefined) return;
      const offset = this.#toOffset(answer, gap, page.position);
      for (const channel of gap.channels) this.#starts.setStart(channel, offset);
      if (newer === undefined || offset < page.position.offset) this.#buffer.applyStarts();
      else {
        newer.prepend(this.#buffer);
        this.#buffer = newer;
      }
    } finally {
      if (this.#buffer !== newer) newer?.close();
    }
  }

  /**
   * Makes the newer buffer, which receives what is published after the end of the log.
   * @returns `undefined` if none is needed, because the consumer is live or all channels have
   * ended; or if events would be missing before it
   */
  async #joinAtEnd(
    gap: Gap,
    page: Page,
    interruptions: number,
  ): Promise<ConsumerBuffer | undefined> {
    if (this.#buffer.isLive || haveAllEnded(page)) return undefined;
    const { offset } = page.position;
    const rest = await this.#readRest(gap, page);
    if (rest === undefined || this.#isOver || !this.#isUpTo(offset, interruptions)) {
      return undefined;
    }
    const newer = new ConsumerBuffer(this.#host.fanOut, this.#starts, offset);
    newer.addRead(rest, offset);
    newer.join(this.#channels);
    return newer;
  }

  /**
   * Reads the events of the channels without a gap between the end of the page and the end of the
   * log. `onGap` cannot replace these events.
   * @returns `undefined` if they are more than one page, or some were lost meanwhile
   */
  async #readRest(gap: Gap, page: Page): Promise<readonly LogEntry[] | undefined> {
    const others = this.#channels.filter((channel) => !gap.channels.includes(channel));
    if (page.complete || others.length === 0) return [];
    const { epoch, offset } = page.position;
    const { position } = this.#buffer;
    const rest = await this.#read(others, position);
    const isWhole =
      rest.complete && rest.position.epoch === epoch && Math.max(...rest.trimmed) <= position;
    return isWhole ? rest.entries.filter((entry) => entry.offset <= offset) : undefined;
  }

  /**
   * Whether this node has received nothing of the channels after the offset, and has missed nothing
   * since the log was read.
   */
  #isUpTo(offset: number, interruptions: number): boolean {
    const { followedChannels } = this.#host;
    return (
      interruptions === followedChannels.interruptions &&
      followedChannels.newestReceived(this.#channels) <= offset
    );
  }

  /** @returns the offset of the cursor that `onGap` has returned */
  #toOffset(answer: unknown, { lastEventId }: Gap, { epoch, offset }: Cursor): number {
    const cursor = typeof answer === 'string' ? parseCursor(answer) : undefined;
    const oldest = parseCursor(lastEventId)?.offset ?? 0;
    // A cursor beyond the end of the log would skip events that are published later.
    const newest = Math.max(offset, this.#host.broker.head);
    if (cursor?.epoch === epoch && cursor.offset >= oldest && cursor.offset <= newest) {
      return cursor.offset;
    }
    throw new SseError(
      'ERR_SSE_CURSOR',
      'expected onGap to return nothing or a cursor from which to continue, such as ' +
        `gap.cursor, got ${describeValue(answer)}`,
    );
  }
}

/** The offset up to which the page has everything. */
function endOf({ complete, entries, position }: Page): number {
  return complete ? position.offset : (entries.at(-1) as LogEntry).offset;
}

function haveAllEnded({ ended }: Page): boolean {
  return ended.every((isEnded) => isEnded);
}
