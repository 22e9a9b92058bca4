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
 * slow consumer needs memory only for a cursor and for a few events, which the log keeps anyway.
 */
import type { Page } from '../brokers/broker.ts';
import { ignoreRejection, withLimits } from '../common/async.ts';
import { bindToContext } from '../common/async-context.ts';
import { SseError, describeValue } from '../common/errors.ts';
import type { ChannelEvent, LogEntry } from '../log/log-entry.ts';
import { formatCursor, parseCursor, type Cursor } from '../protocol/cursor.ts';
import type { Gap } from '../stream/subscription-types.ts';
import { HIGH_WATER_MARK } from '../stream/write-queue.ts';
import type { Audience, Member } from './audience.ts';
import { ChannelStarts } from './channel-starts.ts';
import type { FollowOptions } from './channels.ts';
import type { FollowerHost } from './follower-host.ts';
import type { Frame } from './frame.ts';
import { resolveStart, setStartsOfKept } from './start.ts';

/** The registry, as seen by a consumer. */
export interface ConsumerHost extends FollowerHost {
  /** Whether `close()` was called. */
  readonly isClosed: boolean;
  /** The consumer starts to read. Every call needs an {@link untrackConsumer}. */
  trackConsumer(consumer: Consumer): void;
  untrackConsumer(consumer: Consumer): void;
}

type Result = IteratorResult<ChannelEvent, undefined>;

const DONE: Result = { done: true, value: undefined };

/** One call of `channels.follow()`. */
export class Consumer implements AsyncIterableIterator<ChannelEvent, undefined>, Member {
  /** Index in the audience's list of members. Set by the audience. */
  listIndex = -1;
  /** Offset up to which the consumer has received everything, or has it in its buffer. */
  position = 0;
  readonly #host: ConsumerHost;
  readonly #channels: readonly string[];
  readonly #options: FollowOptions;
  readonly #starts = new ChannelStarts();
  // The start. The broker is asked in the call of `follow()`, not in the first `next()`.
  readonly #start: Promise<void>;
  #epoch = '';
  #audience: Audience | undefined;
  // Events for which the filter was not called yet, and their bytes.
  #buffer: LogEntry[] = [];
  #bufferedBytes = 0;
  #previous: LogEntry | undefined;
  #isRetained = false;
  #isOver = false;
  // Resolves the wait of the pending `next()`: an event has come, or the consumer is over.
  #wake: (() => void) | undefined;
  // Aborted when the consumer is over. Ends waits for the broker.
  readonly #abort = new AbortController();
  // Settles with the newest call of `next()`: the calls are answered one after the other.
  #last: Promise<unknown> = Promise.resolve();
  readonly #onAbort = (): void => this.stop();

  /** @param channels valid names of channels with history, each once */
  constructor(host: ConsumerHost, channels: readonly string[], options: FollowOptions) {
    this.#host = host;
    this.#channels = channels;
    const { signal, filter, onGap } = options;
    // Functions of the application run in the async context of the call of `follow`.
    this.#options = {
      ...options,
      filter: filter && bindToContext(filter),
      onGap: onGap && bindToContext(onGap),
    };
    if (signal?.aborted === true) this.#isOver = true;
    else signal?.addEventListener('abort', this.#onAbort, { once: true });
    this.#start = this.#isOver ? Promise.resolve() : this.#findStart();
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
    this.#options.signal?.removeEventListener('abort', this.#onAbort);
    this.#abort.abort();
    this.#leaveAudience();
    this.#buffer = [];
    this.#previous?.releaseView();
    if (this.#isRetained) {
      const { followedChannels } = this.#host;
      for (const channel of this.#channels) followedChannels.release(channel, 'consumer');
      this.#host.untrackConsumer(this);
    }
    this.#wake?.();
  }

  async #next(): Promise<Result> {
    try {
      this.#previous?.releaseView();
      this.#previous = undefined;
      if (this.#host.isClosed) this.stop();
      if (!this.#isRetained && !this.#isOver) await this.#retain();
      while (!this.#isOver) {
        const event = this.#takeAccepted();
        if (event !== undefined) return { done: false, value: event };
        if (this.#audience === undefined) await this.#readPage();
        else await this.#waitForFrame();
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
      this.#bufferedBytes -= entry.frame.length;
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
    // No `await` without a promise: nothing may be published in between.
    const asked = broker.position(parseCursor(text), signal);
    const position = asked instanceof Promise ? await asked : asked;
    const last = typeof since === 'string' ? undefined : since.last;
    const found =
      last === undefined ? undefined : broker.startsOfNewest(this.#channels, last, signal);
    const newest = found instanceof Promise ? await found : found;
    const start = resolveStart('', { since }, position, newest);
    this.#epoch = position.epoch;
    this.position = start.offset;
    if (start.isForeign) this.#starts.addForeign(this.#channels);
    setStartsOfKept(this.#starts, this.#channels, start, position.offset);
  }

  /** Follows the channels: from here on this node receives their events. */
  async #retain(): Promise<void> {
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
    const { broker, catchUpQueue, followedChannels } = this.#host;
    // A broker in this process answers at once, so without this wait one consumer could use a whole
    // turn of the event loop.
    await catchUpQueue.waitForTurn();
    if (this.#isOver) return;
    const { interruptions } = followedChannels;
    const { signal } = this.#abort;
    const page = await broker.read(this.#channels, this.position, HIGH_WATER_MARK, signal);
    if (this.#isOver) return;
    if (page.position.epoch !== this.#epoch) {
      // Another log has replaced the log. The next page reports the gap.
      this.#epoch = page.position.epoch;
      this.position = 0;
      this.#starts.markAllLost(this.#channels);
      return;
    }
    const gap = this.#findGap(page);
    this.#addEntries(page.entries.filter((entry) => this.#starts.isAfterStart(entry)));
    const last = page.complete ? page.position.offset : (page.entries.at(-1) as LogEntry).offset;
    this.position = Math.max(this.position, last);
    const isUpToDate =
      interruptions === followedChannels.interruptions &&
      followedChannels.newestReceived(this.#channels) <= this.position;
    const hasAllEnded = page.ended.every((isEnded) => isEnded);
    // No `await` since the page was read: a consumer that is stopped meanwhile must not join.
    if (page.complete && isUpToDate) {
      if (!hasAllEnded) this.#audience = this.#host.fanOut.addMember(this.#channels, this);
      else if (gap === undefined) this.#stopIfNothingIsLeft();
    }
    if (gap !== undefined) await this.#askAboutGap(gap, page.position);
  }

  /**
   * All channels have ended: stops the consumer, unless its buffer still has events. In that case
   * the page that is read after these events stops the consumer.
   */
  #stopIfNothingIsLeft(): void {
    if (this.#buffer.every(({ isEnd }) => isEnd)) this.stop();
  }

  /**
   * Counts the gap that the page shows, if there is one.
   * @throws {SseError} `ERR_SSE_GAP` without an `onGap`
   */
  #findGap({ trimmed, position }: Page): Gap | undefined {
    const starts = this.#starts;
    const { hasForeign } = starts;
    const channelsWithGap = starts.collectLost(this.#channels, trimmed, this.position);
    if (channelsWithGap.length === 0) return undefined;
    starts.clearForeign();
    const gap: Gap = {
      channels: channelsWithGap,
      lastEventId: hasForeign ? '' : formatCursor(this.#epoch, this.position),
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
   * Calls `onGap`. The events after the gap are in the buffer already, and the buffer takes what is
   * published meanwhile. Otherwise these events would be the next gap on a channel with a short
   * history, and the consumer would receive nothing.
   * @param end the end of the log when the gap was found
   * @throws {SseError} `ERR_SSE_CURSOR`
   */
  async #askAboutGap(gap: Gap, end: Cursor): Promise<void> {
    const { onGap } = this.#options;
    const { signal } = this.#abort;
    // Rejects when the consumer is over, because the handler may never answer.
    const answer: unknown = await withLimits((async () => onGap?.(gap))(), { signal });
    if (!this.#isOver && answer !== undefined) this.#continueFrom(answer, gap, end);
  }

  /** Lets the channels with a gap continue after the cursor that `onGap` has returned. */
  #continueFrom(answer: unknown, { channels, lastEventId }: Gap, { epoch, offset }: Cursor): void {
    const cursor = typeof answer === 'string' ? parseCursor(answer) : undefined;
    const oldest = parseCursor(lastEventId)?.offset ?? 0;
    // A cursor beyond the end of the log would skip events that are published later.
    const newest = Math.max(offset, this.#host.broker.head);
    if (cursor?.epoch !== epoch || cursor.offset < oldest || cursor.offset > newest) {
      throw new SseError(
        'ERR_SSE_CURSOR',
        'expected onGap to return nothing or a cursor from which to continue, such as ' +
          `gap.cursor, got ${describeValue(answer)}`,
      );
    }
    for (const channel of channels) this.#starts.setStart(channel, cursor.offset);
    const buffer = this.#buffer;
    this.#buffer = [];
    this.#bufferedBytes = 0;
    this.#addEntries(buffer.filter((entry) => this.#starts.isAfterStart(entry)));
  }

  // Methods of a member of an audience.

  takeFrame({ entries, lastOffset, hasEnd }: Frame): undefined {
    if (lastOffset <= this.position) return undefined;
    const isNew = (entry: LogEntry): boolean =>
      entry.offset > this.position && this.#starts.isAfterStart(entry);
    this.#addEntries(entries.filter(isNew));
    this.position = lastOffset;
    // The consumer leaves if its buffer is full, and after an end: the next page shows whether all
    // of its channels have ended.
    if (hasEnd || this.#bufferedBytes > HIGH_WATER_MARK) this.#leaveAudience();
    this.#wake?.();
    return undefined;
  }

  onDropped(upTo: number): void {
    if (this.position < upTo) this.fallBehind();
  }

  /** Leaves the audience: the pending `next()` reads the log instead. */
  fallBehind(): void {
    this.#leaveAudience();
    this.#wake?.();
  }

  /** Never called: a consumer has no socket. */
  fail(): void {}

  /** Never called: a consumer is not attached. */
  onAttached(): void {}

  onDetached(): void {}

  #addEntries(entries: readonly LogEntry[]): void {
    for (const entry of entries) {
      this.#buffer.push(entry);
      this.#bufferedBytes += entry.frame.length;
    }
  }

  #leaveAudience(): void {
    if (this.#audience !== undefined) this.#host.fanOut.removeMember(this.#audience, this);
    this.#audience = undefined;
  }

  /** Resolves when the audience has added events, the consumer has left it, or is over. */
  #waitForFrame(): Promise<void> {
    return new Promise((resolve) => {
      this.#wake = () => {
        this.#wake = undefined;
        resolve();
      };
    });
  }
}
