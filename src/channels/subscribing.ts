/**
 * Adds subscriptions to a stream.
 *
 * ```text
 * subscribe()
 *   1. addRecord()            the broker listens to new channels; the record is in the list
 *   2. requestPosition()      wait until the broker listens, and has answered with the position
 *   3.                        wait for the turn of the event loop, and for earlier subscriptions
 *   4. findNewest()           `since: { last }`: where do the newest events begin?
 *      planOpening()          a client that resumes: the stream opens with its first page, or the
 *                             page shows that the answer is 204 or 410
 *   5. placeSubscription()    each new channel gets an offset; the stream catches up with the log
 *   6. whenStarted()          wait until the first page is delivered, and a gap is reported
 * ```
 *
 * With a broker in this process, steps 1 to 5 run inside the call, unless the call is made during a
 * delivery to the stream. If the stream or the
 * subscription ends at any step, the result is an ended subscription.
 */
import { SseError } from '../common/errors.ts';
import type { Cursor } from '../protocol/cursor.ts';
import type { EventStream, SubscribeOptions } from '../stream/event-stream.ts';
import type { Subscription } from '../stream/subscription-types.ts';
import {
  answerWithoutStream,
  openIfUnanswered,
  planOpening,
  type DelayedOpening,
} from './answers.ts';
import type { StreamFollower } from './follower.ts';
import {
  mayStartEarlier,
  requestedCursor,
  requestedLast,
  resolveStart,
  setStartsOfKept,
  type SubscriptionStart,
} from './start.ts';
import { SubscriptionRecord, channelsOf, placedChannelsOf } from './subscription.ts';
import {
  endedSubscription,
  removeSubscription,
  SubscriptionHandle,
} from './subscription-handle.ts';

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
  record.mayStartEarlier = mayStartEarlier(stream.lastEventId, options);
  if (hasSnapshotAtStart(stream, options, histories)) record.snapshotChannels = channels;
  const handle = new SubscriptionHandle(follower, record);
  // Called from inside `onGap`: waiting for the start here would deadlock.
  const waitsForStart = !follower.isAskingAboutGap;
  const previous = follower.subscriptions.at(-1);
  addRecord(follower, record, histories);
  try {
    const opening = await placeInLog(follower, record, previous);
    if (opening === undefined) return endedSubscription(channels);
    if (waitsForStart) await whenStarted(stream, record, opening);
    if (opening !== 'now' && opening.error !== undefined) throw opening.error;
  } catch (error) {
    // If the stream has ended meanwhile, that is not an error.
    if (hasEnded(follower, record)) return endedSubscription(channels);
    removeSubscription(follower, record);
    throw error;
  }
  return handle;
}

/**
 * Steps 2 to 5. Awaits only promises: with the memory broker the subscription is placed when the
 * call of `subscribe` returns.
 * @param previous the subscription before this one: both are placed in the order of the calls
 * @returns how the stream opens; `undefined` if the stream or the subscription has ended
 */
async function placeInLog(
  follower: StreamFollower,
  record: SubscriptionRecord,
  previous: SubscriptionRecord | undefined,
): Promise<DelayedOpening | 'now' | undefined> {
  const { stream } = follower;
  const asked = requestPosition(follower, record);
  let position: Cursor;
  if (asked instanceof Promise) {
    position = await withoutLaterIds(follower, record, asked);
    // Thousands of streams may have waited for the same answer.
    await follower.host.catchUpQueue.waitForTurn();
  } else position = asked;
  if (previous?.isPlaced === false && !hasEnded(follower, previous)) {
    await withoutLaterIds(follower, record, previous.whenPlaced());
  }
  const found = findNewest(follower, record);
  const newest = found instanceof Promise ? await withoutLaterIds(follower, record, found) : found;
  if (hasEnded(follower, record)) return undefined;
  const opening = planOpening(follower, record, position);
  if (opening === 410) {
    // Also ends the subscription.
    answerWithoutStream(stream, opening);
    return undefined;
  }
  if (opening === 'now') stream.open();
  if (stream.readyState === 2) return undefined;
  if (!isOfStreamLog(follower, position)) {
    position = await requestCurrentPosition(follower, record, position);
    if (hasEnded(follower, record)) return undefined;
  }
  if (opening !== 'now') follower.ensureCatchUp().opening = opening;
  placeSubscription(follower, record, position, newest);
  return opening;
}

/** Step 6. Opens the stream if its first page does not come soon. */
async function whenStarted(
  stream: EventStream,
  record: SubscriptionRecord,
  opening: DelayedOpening | 'now',
): Promise<void> {
  if (record.isStartFinished) return;
  const started = record.whenStarted();
  await (opening === 'now' ? started : openIfUnanswered(stream, started));
}

/**
 * Whether a subscription has ended. Valid until the subscription is placed: after that, the list of
 * a live stream may contain a shared record instead of this record.
 */
function hasEnded({ subscriptions }: StreamFollower, record: SubscriptionRecord): boolean {
  return !subscriptions.includes(record);
}

/**
 * Whether the `snapshot` is called at the start: only if the client sends no id from which the
 * stream resumes.
 * @throws {SseError} `ERR_SSE_OPTION` if one of the channels has no history: the stream could not
 * continue after the cursor of the snapshot
 */
function hasSnapshotAtStart(
  { lastEventId }: EventStream,
  { snapshot, resume }: SubscribeOptions,
  histories: ReadonlyMap<string, boolean>,
): boolean {
  if (snapshot === undefined) return false;
  if ([...histories.values()].includes(false)) {
    throw new SseError(
      'ERR_SSE_OPTION',
      '`snapshot` needs channels with history; send the state before you subscribe',
    );
  }
  return lastEventId === '' || resume === false;
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
 */
function addRecord(
  follower: StreamFollower,
  record: SubscriptionRecord,
  histories: ReadonlyMap<string, boolean>,
): void {
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
}

/**
 * Returns the promise for which the subscription waits before it is placed. The stream may follow
 * other channels, and the new channels may start at an earlier id. Then no ids are written during
 * the wait: a client that reconnects with a later id would miss events of the new channels.
 */
function withoutLaterIds<T>(
  follower: StreamFollower,
  record: SubscriptionRecord,
  promise: Promise<T>,
): Promise<T> {
  if (record.mayStartEarlier && follower.channels.length > 0) {
    const requested = requestedCursor(follower.stream.lastEventId, record.options);
    follower.holdBackIds(requested?.epoch === follower.epoch ? requested.offset : 0);
  }
  return promise;
}

/**
 * Requests the position of this node in the log, as soon as this node receives the entries of the
 * channels.
 * @returns not a promise if the broker is in this process
 */
function requestPosition(
  { host, stream }: StreamFollower,
  record: SubscriptionRecord,
): Cursor | Promise<Cursor> {
  // A broker in this process answers at once, and a signal costs several µs.
  const signal = host.catchUpQueue.isBrokerRemote ? record.getSignal() : undefined;
  const listening = host.followedChannels.whenListening(record.channels, signal);
  const request = (): Cursor | Promise<Cursor> =>
    host.broker.position(requestedCursor(stream.lastEventId, record.options), signal);
  const position = listening === undefined ? request() : listening.then(request);
  return position instanceof Promise ? openIfUnanswered(stream, position) : position;
}

/**
 * Finds where the newest events of the channels begin, if the subscription starts there.
 * @returns not a promise if the broker is in this process
 */
function findNewest(
  { host, stream }: StreamFollower,
  record: SubscriptionRecord,
): readonly number[] | undefined | Promise<readonly number[]> {
  const last = requestedLast(stream.lastEventId, record.options);
  if (last === undefined) return undefined;
  const channels = record.channels.filter((channel) => host.followedChannels.hasHistory(channel));
  if (channels.length === 0) return undefined;
  const signal = host.catchUpQueue.isBrokerRemote ? record.getSignal() : undefined;
  const found = host.broker.startsOfNewest(channels, last, signal);
  // A channel without history has no events before the position.
  const align = (starts: readonly number[]): readonly number[] =>
    record.channels.map((channel) => starts[channels.indexOf(channel)] ?? Infinity);
  return found instanceof Promise ? openIfUnanswered(stream, found.then(align)) : align(found);
}

/** Whether the position belongs to the log that the stream reads, or the stream reads none yet. */
function isOfStreamLog({ channels, epoch }: StreamFollower, position: Cursor): boolean {
  return channels.length === 0 || position.epoch === epoch;
}

/**
 * Requests the position again. While the subscription waited, another log may have replaced the
 * log: then the stream already reads the new log, and an offset of the old log would be wrong
 * there.
 * @returns a position in the log that the stream reads. If two requests in a row find the same
 * other log, then the stream still reads an older log, and the position in the other log is
 * returned
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
    current = await requestPosition(follower, record);
  } while (!isOfStreamLog(follower, current) && current.epoch !== previous.epoch);
  return current;
}

/** Gives each new channel of a subscription its offset, and starts to catch up with the log. */
function placeSubscription(
  follower: StreamFollower,
  record: SubscriptionRecord,
  position: Cursor,
  startsOfNewest: readonly number[] | undefined,
): void {
  const head = follower.headIfCaughtUp;
  follower.flush(true);
  // A filter that ran in the flush may have ended the stream or the subscription.
  if (hasEnded(follower, record)) return;
  const before = follower.channels;
  record.markAllPlaced();
  for (const other of follower.subscriptions) {
    if (!other.isPlaced) other.markPlaced(record.channels);
  }
  follower.updateChannels(head);
  const followed = new Set(before);
  const added = follower.channels.filter((channel) => !followed.has(channel));
  record.snapshotChannels = record.snapshotChannels.filter((channel) => added.includes(channel));
  if (added.length === 0) {
    record.finishStart();
  } else {
    const { lastEventId } = follower.stream;
    const start = resolveStart(lastEventId, record.options, position, startsOfNewest);
    startChannels(follower, before, added, position, start);
    const { starts } = follower.ensureCatchUp();
    setStartsOfKept(starts, record.channels, start, position.offset, added);
    if (before.length === 0 && record.options.checkpoints !== false) {
      follower.ensureCatchUp().isCheckpointPending = true;
    }
  }
  // If the application calls `subscribe` again in this turn, and the broker answers later, then no
  // id may be written in between. So, if the broker is remote and the subscription may start
  // earlier, the first step runs in a later turn.
  follower.startCatchUp(!follower.host.catchUpQueue.isBrokerRemote || !record.mayStartEarlier);
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
    // This node has noticed the new log before this stream has read a page of the new log.
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
  if (!follower.hasWrittenBeyondPosition) return;
  // The client's newest id is beyond events of the added channels that it has not received. If it
  // reconnected with that id, it would miss them, so it gets a smaller id at once.
  catchUp.hasSteppedBack = true;
  follower.writeCheckpoint(follower.position);
}
