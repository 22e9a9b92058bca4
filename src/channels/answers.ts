/** Answers requests without a stream (204, 410), or opens streams whose start is not known yet. */
import type { Page } from '../brokers/broker.ts';
import { describeThrown } from '../common/errors.ts';
import { refuse, sendNoContent } from '../http/refusals.ts';
import type { Cursor } from '../protocol/cursor.ts';
import type { EventStream } from '../stream/event-stream.ts';
import type { Opening } from './catch-up.ts';
import type { StreamFollower } from './follower.ts';
import { requestedCursor, resolveStart } from './start.ts';
import type { SubscriptionRecord } from './subscription.ts';

// Time in ms after which the stream opens even if the broker has not answered yet.
const OPEN_AFTER_MS = 1_000;

/**
 * The decision about a request whose stream is not open yet, because the answer may be 204 or 410.
 * The first page that the stream reads from the log decides:
 *
 * - all channels have ended, and the client has received everything: 204, after which an
 *   EventSource does not reconnect;
 * - the client has lost events, and the stream may not tell it (`control: false`): 410;
 * - anything else: the stream opens.
 */
export class DelayedOpening implements Opening {
  /** The error that opening the stream, or answering the request, has thrown. */
  error: Error | undefined;
  readonly #follower: StreamFollower;
  readonly #record: SubscriptionRecord;
  // The client's position.
  readonly #start: Cursor;
  readonly #canBeOver: boolean;

  /**
   * @param start the client's position
   * @param canBeOver whether 204 is a possible answer
   */
  constructor(
    follower: StreamFollower,
    record: SubscriptionRecord,
    start: Cursor,
    canBeOver: boolean,
  ) {
    this.#follower = follower;
    this.#record = record;
    this.#start = start;
    this.#canBeOver = canBeOver;
  }

  /**
   * Opens the stream, or answers the request without it.
   * @param page the first page of the stream
   * @returns whether the stream is open, so that the page can be delivered
   */
  decide(page: Page): boolean {
    const { stream } = this.#follower;
    try {
      const status = this.#statusFor(page);
      // Other code may have used the stream meanwhile. Then the client receives `sse:end` or
      // `sse:gap`.
      if (status === undefined || !isUnused(this.#follower)) {
        return stream.open().readyState !== 2;
      }
      answerWithoutStream(stream, status);
    } catch (error) {
      // A listener for the response head threw.
      this.onFailed(error);
    }
    return false;
  }

  /** Lets `subscribe` reject with the error. */
  onFailed(error: unknown): void {
    this.error = toError(error);
    this.#record.finishStart();
  }

  #statusFor({ position, complete, ended, entries, trimmed }: Page): 204 | 410 | undefined {
    if (position.epoch !== this.#start.epoch) return undefined;
    // `ChannelStarts.collectLost()` makes this comparison, too, with further conditions. Change
    // both.
    if (trimmed.some((offset) => offset > this.#start.offset)) {
      return cannotTellGap(this.#record) ? 410 : undefined;
    }
    const isOver =
      this.#canBeOver &&
      complete &&
      ended.every((isEnded) => isEnded) &&
      entries.every(({ isEnd }) => isEnd);
    return isOver ? 204 : undefined;
  }
}

/**
 * Decides when the stream opens.
 * @param position the end of the log
 * @returns `'now'` if the stream need not wait for its first page; a {@link DelayedOpening} if the
 * first page decides: the answer may be 204 (the client resumes from an id) or 410 (the client
 * could not be told of a gap); 410 at once if the id of the client belongs to another log, and the
 * client cannot be told
 */
export function planOpening(
  follower: StreamFollower,
  record: SubscriptionRecord,
  position: Cursor,
): DelayedOpening | 410 | 'now' {
  const { host, stream } = follower;
  const { channels, options } = record;
  if (!isUnused(follower)) return 'now';
  const kept = channels.filter((channel) => host.followedChannels.hasHistory(channel));
  if (kept.length === 0) return 'now';
  const { isForeign, offset } = resolveStart(stream.lastEventId, options, position);
  if (isForeign) return cannotTellGap(record) ? 410 : 'now';
  const resumes = options.resume !== false && stream.lastEventId !== '';
  const mayAnswer204 = resumes && kept.length === channels.length;
  const mayAnswer410 =
    cannotTellGap(record) && requestedCursor(stream.lastEventId, options) !== undefined;
  if (!mayAnswer204 && !mayAnswer410) return 'now';
  return new DelayedOpening(follower, record, { epoch: position.epoch, offset }, mayAnswer204);
}

/** Whether the subscription has no means to tell the client, or the application, of a gap. */
function cannotTellGap({ options }: SubscriptionRecord): boolean {
  return options.control === false && options.onGap === undefined;
}

/** Whether nothing was written to the response, and the stream has only one subscription. */
function isUnused({ stream, subscriptions }: StreamFollower): boolean {
  return stream.readyState === 0 && !stream.res.headersSent && subscriptions.length === 1;
}

/** Answers a request without a stream. The stream and its subscriptions end. */
export function answerWithoutStream(stream: EventStream, status: 204 | 410): void {
  if (status === 204) sendNoContent(stream.res);
  else {
    const message = 'Events after your last event id are not kept any more; start without an id.';
    refuse(stream.res, status, 'ERR_SSE_GONE', message);
  }
  stream.endFor(status === 204 ? 'final' : 'server');
}

/**
 * Opens the stream if the broker does not answer soon, because it may be unreachable. An
 * EventSource that gets an error response instead would not reconnect.
 */
export function openIfUnanswered<T>(stream: EventStream, answer: Promise<T>): Promise<T> {
  return new Promise((resolve, reject) => {
    const timer = setTimeout(() => {
      try {
        // Other code may have answered the request meanwhile, such as a timeout middleware.
        if (!stream.res.headersSent) stream.open();
      } catch (error) {
        // A listener for the response head threw.
        reject(toError(error));
      }
    }, OPEN_AFTER_MS);
    answer.finally(() => clearTimeout(timer)).then(resolve, reject);
  });
}

/** Returns what was thrown as an `Error`. */
function toError(error: unknown): Error {
  return error instanceof Error ? error : new Error(describeThrown(error), { cause: error });
}
