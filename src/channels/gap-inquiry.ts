/** Gaps: writes `sse:gap` events, and asks `onGap` and `snapshot` where to continue. */
import type { Page } from '../brokers/broker.ts';
import type { Gap } from '../stream/subscription-types.ts';
import { SseError, describeValue } from '../common/errors.ts';
import { formatCursor, parseCursor } from '../protocol/cursor.ts';
import { formatGap } from '../protocol/event-stream-format.ts';
import type { ChannelStarts } from './channel-starts.ts';
import type { FollowerState } from './follower-state.ts';
import type { SubscriptionRecord } from './subscription.ts';

/**
 * A subscription whose `onGap` is called, or whose `snapshot` is called at its start, and the
 * channels for which its answer counts.
 */
export interface GapQuestion {
  readonly record: SubscriptionRecord;
  readonly channels: readonly string[];
  /** The channels of the question that have lost events. */
  readonly channelsWithLoss: readonly string[];
  /** Whether `snapshot` is called at the start, where earlier losses are no gap. */
  readonly isStart: boolean;
}

/**
 * Reports the gap that a page shows. Each channel that has lost events is reported in one way:
 *
 * ```text
 * its subscription starts with a `snapshot`    not a gap: the snapshot replaces the lost events
 * a subscription with `onGap` has the channel  `onGap` is called
 * all others                                   an `sse:gap` event is written here
 * ```
 *
 * @returns the questions for the application, which the caller asks; `undefined` if no event was
 * lost and no `snapshot` has to be called
 */
export function reportGap(
  owner: FollowerState,
  starts: ChannelStarts,
  { trimmed, position }: Page,
): GapInquiry | undefined {
  const lost = starts.collectLost(owner.channels, trimmed, owner.position);
  const startQuestions = planStartQuestions(lost, owner.subscriptions);
  if (lost.length === 0 && startQuestions.length === 0) return undefined;
  // A client with an id of another log: it is not known up to where it has everything.
  const after = lost.some((channel) => starts.isForeign(channel)) ? '' : owner.cursor;
  starts.clearForeign();
  const gap: Gap = {
    channels: withoutAsked(lost, startQuestions),
    lastEventId: owner.hasWritten ? after : owner.stream.lastEventId,
    cursor: formatCursor(position.epoch, position.offset),
  };
  if (gap.channels.length > 0) owner.countGap(gap);
  const gapQuestions = planGapQuestions(gap.channels, owner.subscriptions);
  writeGapEvent(owner, withoutAsked(gap.channels, gapQuestions), after, gap.cursor);
  return new GapInquiry(owner, starts, gap, after, [...startQuestions, ...gapQuestions]);
}

/** @returns the channels about which no question is asked */
function withoutAsked(
  channels: readonly string[],
  questions: readonly GapQuestion[],
): readonly string[] {
  const asked = new Set(questions.flatMap((question) => question.channels));
  return channels.filter((channel) => !asked.has(channel));
}

/** @returns a question for each subscription whose `snapshot` has to be called at its start */
function planStartQuestions(
  channelsWithLoss: readonly string[],
  records: readonly SubscriptionRecord[],
): GapQuestion[] {
  return records
    .filter(({ snapshotChannels, isPlaced }) => snapshotChannels.length > 0 && isPlaced)
    .map((record) => {
      const channels = record.snapshotChannels;
      const ofThese = channelsWithLoss.filter((channel) => channels.includes(channel));
      return { record, channels, channelsWithLoss: ofThese, isStart: true };
    });
}

/**
 * Decides which subscriptions are asked about a gap. For each channel with a gap, at most one
 * subscription is asked: the first one that has the channel and an `onGap`.
 *
 * A subscription that was asked, and has received no event since, is not asked again. Otherwise a
 * slow handler of a busy channel would be called again and again, because events are lost while it
 * runs.
 */
export function planGapQuestions(
  channelsWithGap: readonly string[],
  records: readonly SubscriptionRecord[],
): GapQuestion[] {
  const questions: GapQuestion[] = [];
  let rest = channelsWithGap;
  for (const record of records) {
    if (record.options.onGap === undefined || record.wasAskedAboutGap) continue;
    const channels = rest.filter((channel) => record.hasPlaced(channel));
    if (channels.length === 0) continue;
    questions.push({ record, channels, channelsWithLoss: channels, isStart: false });
    const asked = new Set(channels);
    rest = rest.filter((channel) => !asked.has(channel));
  }
  return questions;
}

/**
 * Writes an `sse:gap` event for these channels. No effect if there are none. With `control: false`
 * the stream ends instead: its client reconnects, and the answer is 410.
 * @param after the id up to which the client has everything; `''` if that is not known
 * @param cursor the id of the newest event of the log
 */
function writeGapEvent(
  owner: FollowerState,
  channels: readonly string[],
  after: string,
  cursor: string,
): void {
  if (channels.length === 0) return;
  noteLoss(owner, channels);
  if (owner.isWithoutControl) owner.stream.closeFor('server');
  else owner.stream.writeText(formatGap(channels, after, cursor));
}

function noteLoss({ subscriptions }: FollowerState, channels: readonly string[]): void {
  for (const record of subscriptions) {
    if (channels.some((channel) => record.hasPlaced(channel))) record.noteLoss();
  }
}

/**
 * Asks subscriptions about one gap, one after the other. Nothing else is written for the channels
 * of the stream until all have answered.
 *
 * ```text
 * onGap returns a cursor     the asked channels continue after the cursor
 * onGap returns nothing      the asked channels continue with all events that the log still keeps
 * the subscription ends      the answer is ignored; channels that another subscription follows get
 *                            an sse:gap event instead
 * onGap throws               the stream ends
 * ```
 */
export class GapInquiry {
  readonly #owner: FollowerState;
  readonly #starts: ChannelStarts;
  readonly #gap: Gap;
  readonly #after: string;
  readonly #questions: readonly GapQuestion[];
  // Channels that were added while a question was open. The answers do not apply to these channels.
  readonly #addedChannels: string[] = [];
  // Called with a subscription that has ended. If that subscription is being asked, its question
  // gets no answer.
  #skip: ((ended: SubscriptionRecord) => void) | undefined;

  /** @param after the id up to which the client has everything; `''` if that is not known */
  constructor(
    owner: FollowerState,
    starts: ChannelStarts,
    gap: Gap,
    after: string,
    questions: readonly GapQuestion[],
  ) {
    this.#owner = owner;
    this.#starts = starts;
    this.#gap = gap;
    this.#after = after;
    this.#questions = questions;
  }

  /** Whether there is anything to ask. */
  get hasQuestions(): boolean {
    return this.#questions.length > 0;
  }

  /**
   * Asks all questions. Rejects with the error of a handler.
   * @throws {SseError} `ERR_SSE_CURSOR` if a handler returns anything but a valid cursor or nothing
   */
  async run(): Promise<void> {
    for (const question of this.#questions) {
      const { record, channels, channelsWithLoss, isStart } = question;
      if (!this.#isActive(record)) {
        // The subscription ended while another one was asked.
        this.#writeGapEvent(channelsWithLoss);
        continue;
      }
      if (isStart) record.snapshotChannels = [];
      else {
        record.wasAskedAboutGap = true;
        noteLoss(this.#owner, channels);
      }
      const answer = await this.#ask(question);
      if (!this.#isActive(record)) {
        this.#writeGapEvent(channelsWithLoss);
      } else if (answer !== undefined) this.#continueFrom(answer, channels);
    }
  }

  /** The stream follows further channels, and a question may be open. */
  onChannelsAdded(channels: readonly string[]): void {
    this.#addedChannels.push(...channels);
  }

  /** A subscription of the stream has ended. */
  onSubscriptionEnded(record: SubscriptionRecord): void {
    this.#skip?.(record);
  }

  #isActive(record: SubscriptionRecord): boolean {
    return this.#owner.subscriptions.includes(record);
  }

  #writeGapEvent(channels: readonly string[]): void {
    writeGapEvent(this.#owner, this.#stillFollowed(channels), this.#after, this.#gap.cursor);
  }

  /** @returns the channels that the stream has followed since the gap was found */
  #stillFollowed(channels: readonly string[]): readonly string[] {
    return channels.filter(
      (channel) => this.#owner.channels.includes(channel) && !this.#addedChannels.includes(channel),
    );
  }

  /**
   * Calls `onGap`, or `snapshot` at the start. Resolves with the answer, or with `undefined` when
   * the subscription ends.
   */
  #ask(question: GapQuestion): Promise<unknown> {
    const { record } = question;
    return new Promise((resolve, reject) => {
      this.#skip = (ended) => {
        if (ended === record) resolve(undefined);
      };
      this.#call(question).then(resolve, reject);
    });
  }

  async #call({ record, channels, isStart }: GapQuestion): Promise<unknown> {
    const { stream } = this.#owner;
    const gap = this.#gap;
    if (!isStart) return record.options.onGap?.(stream, { ...gap, channels });
    const start = { channels: record.channels, reason: 'start', lastEventId: '' } as const;
    await record.options.snapshot?.(stream, { ...gap, ...start });
    return gap.cursor;
  }

  /**
   * Lets the channels of a question continue after the returned cursor. Channels without a loss,
   * and channels that were added while the question was open, must still receive the events before
   * the cursor. So the position of the stream moves only if there are no such channels.
   */
  #continueFrom(answer: unknown, asked: readonly string[]): void {
    const owner = this.#owner;
    const offset = this.#toOffset(answer);
    if (offset === undefined) return;
    const channels = this.#stillFollowed(asked);
    if (owner.channels.length === channels.length) owner.moveTo(offset);
    else for (const channel of channels) this.#starts.setStart(channel, offset);
  }

  /**
   * @returns the offset of the returned cursor; `undefined` if the answer has no effect
   * @throws {SseError} `ERR_SSE_CURSOR`
   */
  #toOffset(answer: unknown): number | undefined {
    const owner = this.#owner;
    const end = parseCursor(this.#gap.cursor);
    // The broker has lost its data while the application was asked. The answer belongs to the old
    // log, and the client gets a gap notification for every channel.
    if (end?.epoch !== owner.epoch) return undefined;
    const cursor = typeof answer === 'string' ? parseCursor(answer) : undefined;
    // A cursor beyond the end of the log would skip events that are published later.
    const newest = Math.max(end.offset, owner.host.broker.head);
    if (
      cursor?.epoch === owner.epoch &&
      cursor.offset >= owner.position &&
      cursor.offset <= newest
    ) {
      return cursor.offset;
    }
    // The handler has closed the stream, for example by an arrow function that returns the result
    // of `stream.close()`.
    if (owner.stream.isClosingOrClosed && typeof answer !== 'string') return undefined;
    throw new SseError(
      'ERR_SSE_CURSOR',
      'expected onGap to return nothing or a cursor from which to continue, such as gap.cursor, ' +
        `got ${describeValue(answer)}`,
    );
  }
}
