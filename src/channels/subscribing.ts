/**
 * Adds subscriptions to a stream and removes them.
 *
 * ```text
 * subscribe()
 *   1. addRecord()            the broker listens to new channels; the record is in the list
 *   2. requestPosition()      wait until the broker listens and tells the end of the log
 *   3.                        wait for the turn of the event loop, and for earlier subscriptions
 *   4. hasOnlyEndsBehind()    nothing will follow the client's id? Answer 204
 *   5. placeSubscription()    each new channel gets an offset; the stream catches up with the log
 *   6. whenStarted()          wait until the first page is delivered, and a gap is reported
 * ```
 *
 * With a broker in this process, steps 1 to 5 run inside the call. If the stream or the
 * subscription ends at any step, the result is an ended subscription.
 */
import { SseError, describeThrown } from '../common/errors.ts';
import type { Page } from '../brokers/broker.ts';
import { sendNoContent } from '../http/refusals.ts';
import { parseCursor, type Cursor } from '../protocol/cursor.ts';
import type { EventStream, SubscribeOptions } from '../stream/event-stream.ts';
import type { Subscription } from '../stream/subscription-types.ts';
import { OLDEST_HELD } from './channel-starts.ts';
import type { StreamFollower } from './follower.ts';
import { requestedCursor, resolveStart, type SubscriptionStart } from './start.ts';
import { SubscriptionRecord, channelsOf, placedChannelsOf } from './subscription.ts';

// Bytes of the page that shows whether only ends follow an id: enough for the ends of 100 channels,
// and for few events.
const MAX_ENDS_BYTES = 8_192;

// If the broker has not told the position after this time, the stream opens without it, in ms.
const OPEN_AFTER_MS = 1_000;

/**
 * Follows channels on a stream.
 * @param channels valid names, each once
 * @param options validated
 * @returns a promise that resolves when the subscription has started; from inside `onGap`, already
 * when the subscription is placed
 * @throws {SseError} `ERR_SSE_OPTION` if the stream has too many subscriptions
 */
export async function subscribe(
  follower: StreamFollower,
  channels: readonly string[],
  options: SubscribeOptions,
): Promise<Subscription> {
  const { host, stream } = follower;
  // The entries that are being delivered were published before this call.
  if (host.deliveries.has(stream)) await follower.whenDelivered();
  // Calls code of the application, so it comes before anything is changed.
  const histories = new Map(
    channels.map((channel) => [channel, host.followedChannels.willHaveHistory(channel)]),
  );
  follower.flush(true);
  if (stream.isClosingOrClosed) return endedSubscription(channels);
  assertSubscriptionLimit(follower);
  const record = new SubscriptionRecord(channels, options);
  const handle = new SubscriptionHandle(follower, record);
  const previous = follower.subscriptions.at(-1);
  // Called from inside `onGap`: waiting for the start here would deadlock.
  const isInsideGapHandler = follower.isAskingAboutGap;
  const newChannels = addRecord(follower, record, histories);
  const isRemoved = (): boolean => !follower.subscriptions.includes(record);
  try {
    // No `await` without a promise: with the memory broker the stream is live when this call
    // returns.
    let position = requestPosition(follower, record, newChannels);
    if (position instanceof Promise) {
      position = await position;
      // Thousands of streams may have waited for the same answer.
      await host.catchUpQueue.waitForTurn();
    }
    // The subscriptions of a stream are placed in the order of the calls.
    if (previous?.isPlaced === false && follower.subscriptions.includes(previous)) {
      await previous.whenPlaced();
    }
    const isOver = hasOnlyEndsBehind(follower, record, position);
    // Other code may have used the stream meanwhile. Then the client receives `sse:end`.
    if ((isOver instanceof Promise ? await isOver : isOver) && isUnused(follower)) {
      sendNoContent(stream.res);
      // Ends also the subscription.
      stream.endFor('final');
      return endedSubscription(channels);
    }
    if (isRemoved() || stream.open().readyState === 2) return endedSubscription(channels);
    if (!isOfStreamLog(follower, position)) {
      position = await requestCurrentPosition(follower, record, position);
      if (isRemoved()) return endedSubscription(channels);
    }
    placeSubscription(follower, record, position);
  } catch (error) {
    // If the stream has ended meanwhile, that is not an error.
    if (isRemoved()) return endedSubscription(channels);
    removeSubscription(follower, record);
    throw error;
  }
  if (!record.hasStarted && !isInsideGapHandler) await record.whenStarted();
  return handle;
}

/** @throws {SseError} `ERR_SSE_OPTION` */
function assertSubscriptionLimit({ stream, subscriptions }: StreamFollower): void {
  const { maxSubscriptions } = stream.host.settings;
  if (subscriptions.length < maxSubscriptions) return;
  throw new SseError(
    'ERR_SSE_OPTION',
    `this stream has ${maxSubscriptions} subscriptions; name several channels in one call of ` +
      'subscribe(), unsubscribe from channels that are not needed any more, or raise ' +
      '`maxSubscriptions` of sse()',
  );
}

/**
 * Adds the record to the stream's list. The channels are retained before the position of the log is
 * requested, so that the node receives everything that is published after that position.
 * @returns the channels that the stream did not follow before
 */
function addRecord(
  follower: StreamFollower,
  record: SubscriptionRecord,
  histories: ReadonlyMap<string, boolean>,
): readonly string[] {
  const { host, subscriptions } = follower;
  const placed = placedChannelsOf(subscriptions);
  record.markPlaced(record.channels.filter((channel) => placed.has(channel)));
  const followed = new Set(channelsOf(subscriptions));
  const newChannels = record.channels.filter((channel) => !followed.has(channel));
  for (const channel of newChannels) {
    host.followedChannels.retain(channel, histories.get(channel) === true);
  }
  // `concat` makes an array of the exact size; a spread would reserve room for 17 elements.
  follower.setSubscriptions(subscriptions.concat(record));
  if (!follower.isLive) host.trackStream(follower.stream);
  return newChannels;
}

/**
 * Asks the broker for the end of the log, as soon as this node receives the entries of the
 * channels.
 * @returns not a promise if the broker is in this process
 */
function requestPosition(
  { host, stream }: StreamFollower,
  record: SubscriptionRecord,
  newChannels: readonly string[],
): Cursor | Promise<Cursor> {
  // A broker in this process answers at once, and a signal costs several µs.
  const signal = host.catchUpQueue.isBrokerRemote ? record.getSignal() : undefined;
  const listening = host.followedChannels.whenListening(newChannels, signal);
  const request = (): Cursor | Promise<Cursor> =>
    host.broker.position(requestedCursor(stream.lastEventId, record.options), signal);
  const position = listening === undefined ? request() : listening.then(request);
  return position instanceof Promise ? openIfSlow(stream, position) : position;
}

/**
 * Whether a request that brings an id needs no stream, because all of its channels have ended and
 * the client has received everything. Reads the log only for such a request, while nothing is
 * written yet.
 * @returns not a promise if the broker is in this process
 */
function hasOnlyEndsBehind(
  follower: StreamFollower,
  record: SubscriptionRecord,
  position: Cursor,
): boolean | Promise<boolean> {
  const { host, stream } = follower;
  const { channels, options } = record;
  const cursor = options.resume === false ? undefined : parseCursor(stream.lastEventId);
  if (cursor?.epoch !== position.epoch || cursor.offset > position.offset) return false;
  if (!isUnused(follower)) return false;
  if (!channels.every((channel) => host.followedChannels.hasHistory(channel))) return false;
  const isOver = (page: Page): boolean =>
    page.position.epoch === cursor.epoch &&
    page.complete &&
    page.ended.every((isEnded) => isEnded) &&
    page.entries.every(({ isEnd }) => isEnd) &&
    page.trimmed.every((trimmed) => trimmed <= cursor.offset);
  const signal = host.catchUpQueue.isBrokerRemote ? record.getSignal() : undefined;
  const page = host.broker.read(channels, cursor.offset, MAX_ENDS_BYTES, signal);
  return page instanceof Promise ? openIfSlow(stream, page).then(isOver) : isOver(page);
}

/** Whether a stream with a first subscription is not open, and was not used otherwise. */
function isUnused({ stream, subscriptions }: StreamFollower): boolean {
  return stream.readyState === 0 && !stream.res.headersSent && subscriptions.length === 1;
}

/** Whether the position belongs to the log that the stream reads, or the stream reads none yet. */
function isOfStreamLog({ channels, epoch }: StreamFollower, position: Cursor): boolean {
  return channels.length === 0 || position.epoch === epoch;
}

/**
 * Requests the position again. While the subscription waited, another log may have begun:
 * then the stream already reads the new log, and an offset of the old log would be wrong there.
 * @returns a position in the stream's log, or the same log twice: then the stream still reads an
 * older log
 */
async function requestCurrentPosition(
  follower: StreamFollower,
  record: SubscriptionRecord,
  position: Cursor,
): Promise<Cursor> {
  let previous: Cursor;
  let current = position;
  do {
    previous = current;
    current = await requestPosition(follower, record, []);
  } while (!isOfStreamLog(follower, current) && current.epoch !== previous.epoch);
  return current;
}

/**
 * Opens the stream if the broker does not answer soon, because it may be unreachable. An
 * EventSource that gets an error response instead would not reconnect.
 */
function openIfSlow<T>(stream: EventStream, answer: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      try {
        // Other code may have answered the request meanwhile, such as a timeout middleware.
        if (!stream.res.headersSent) stream.open();
      } catch (error) {
        // A listener for the response head threw.
        reject(error instanceof Error ? error : new Error(describeThrown(error), { cause: error }));
      }
    }, OPEN_AFTER_MS);
    answer.finally(() => clearTimeout(timer)).then(resolve, reject);
  });
}

/** Gives each new channel of a subscription its offset, and starts to catch up with the log. */
function placeSubscription(
  follower: StreamFollower,
  record: SubscriptionRecord,
  position: Cursor,
): void {
  const head = follower.headIfCaughtUp;
  follower.flush(true);
  // A filter that ran in the flush may have ended the stream or the subscription.
  if (!follower.subscriptions.includes(record)) return;
  const before = follower.channels;
  record.markAllPlaced();
  for (const other of follower.subscriptions) {
    if (!other.isPlaced) other.markPlaced(record.channels);
  }
  follower.updateChannels(head);
  const followed = new Set(before);
  const added = follower.channels.filter((channel) => !followed.has(channel));
  if (added.length === 0) record.markStarted();
  else {
    const start = resolveStart(follower.stream.lastEventId, record.options, position);
    startChannels(follower, before, added, position, start);
    if (before.length === 0 && record.options.checkpoints !== false) {
      follower.ensureCatchUp().isCheckpointPending = true;
    }
  }
  follower.startCatchUp(true);
  follower.runDeferredChanges();
}

/**
 * Sets the start of the added channels. A stream has one position for all channels:
 *
 * ```text
 * no channels before        position = start
 * start < position          position = start; channels before start at the old position
 * start >= position         position stays;   added channels start at `start`
 * ```
 *
 * @param before the channels of the stream before the change
 */
function startChannels(
  follower: StreamFollower,
  before: readonly string[],
  added: readonly string[],
  position: Cursor,
  start: SubscriptionStart,
): void {
  const catchUp = follower.ensureCatchUp();
  const { starts } = catchUp;
  if (!isOfStreamLog(follower, position)) {
    // The node knows of the new log before this stream has read a page of it.
    follower.moveToLog(position.epoch, 0);
    starts.markAllLost(before);
  }
  if (before.length === 0) follower.moveToLog(position.epoch, start.offset);
  else if (start.offset < follower.position) {
    for (const channel of before) starts.setStart(channel, follower.position);
    follower.moveTo(start.offset);
  } else {
    for (const channel of added) starts.setStart(channel, start.offset);
  }
  catchUp.onChannelsAdded(added);
  if (start.isForeign) starts.addForeign(added);
  // Whatever was trimmed before is not a gap, if the application asked for what the log holds.
  if (start.isFromOldest) for (const channel of added) starts.setStart(channel, OLDEST_HELD);
  if (!follower.hasWrittenBeyondPosition) return;
  // The client's newest id is beyond events of the added channels that it has not received. If it
  // reconnected with that id, it would miss them, so it gets a smaller id at once.
  catchUp.hasSteppedBack = true;
  follower.writeCheckpoint(follower.position);
}

/**
 * Ends a subscription. Pending events are delivered before. Without effect if the subscription has
 * ended.
 */
function removeSubscription(follower: StreamFollower, record: SubscriptionRecord): void {
  const { host, stream } = follower;
  if (host.deliveries.has(stream)) {
    follower.deferChange(() => removeSubscription(follower, record));
    return;
  }
  const head = follower.headIfCaughtUp;
  follower.flush(true);
  // A filter that ran in the flush may have ended the stream. The list may contain a shared record
  // in place of this record.
  const index = follower.subscriptions.findIndex((other) => other.isLike(record));
  if (index === -1) return;
  follower.setSubscriptions(follower.subscriptions.toSpliced(index, 1));
  const followed = new Set(channelsOf(follower.subscriptions));
  for (const channel of record.channels) {
    if (!followed.has(channel)) host.followedChannels.release(channel);
  }
  record.markStarted();
  follower.onSubscriptionEnded(record, head);
}

/**
 * The object that the caller of `subscribe` gets. The library has no reference to it, so that it
 * can be garbage-collected: most callers ignore it.
 */
class SubscriptionHandle implements Subscription {
  readonly #follower: StreamFollower;
  readonly #record: SubscriptionRecord;
  readonly #gapsBefore: number;
  // The final count, from the moment at which the subscription was ended by this handle.
  #finalGaps: number | undefined;

  constructor(follower: StreamFollower, record: SubscriptionRecord) {
    this.#follower = follower;
    this.#record = record;
    this.#gapsBefore = follower.gapsOf(record.channels);
  }

  get channels(): readonly string[] {
    return this.#record.channels;
  }

  get recovered(): boolean {
    return this.#record.recovered;
  }

  get gaps(): number {
    return this.#finalGaps ?? this.#follower.gapsOf(this.channels) - this.#gapsBefore;
  }

  get cursor(): string {
    return this.#follower.cursor;
  }

  unsubscribe(): void {
    // A second call would end another subscription of the stream with the same channels and
    // options.
    if (this.#finalGaps !== undefined) return;
    this.#finalGaps = this.gaps;
    removeSubscription(this.#follower, this.#record);
  }
}

/** The result of `subscribe` on a stream that has ended. */
export function endedSubscription(channels: readonly string[]): Subscription {
  return { channels, recovered: false, gaps: 0, cursor: '', unsubscribe: () => {} };
}
