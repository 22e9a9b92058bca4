/** How a request is answered at once without a stream, or before the start of its stream is known. */
import type { Page } from '../brokers/broker.ts';
import { describeThrown } from '../common/errors.ts';
import { refuse, sendNoContent } from '../http/refusals.ts';
import type { Cursor } from '../protocol/cursor.ts';
import type { EventStream } from '../stream/event-stream.ts';
import type { StreamFollower } from './follower.ts';
import { resolveStart } from './start.ts';
import type { SubscriptionRecord } from './subscription.ts';

// Bytes of the page that shows whether only ends follow an id: enough for the ends of 100 channels,
// and for few events.
const MAX_ENDS_BYTES = 8_192;

// If the broker has not told the position after this time, the stream opens without it, in ms.
const OPEN_AFTER_MS = 1_000;

/**
 * Decides whether a request that brings an id is answered without a stream: 204 if all of its
 * channels have ended and the client has received everything; 410 if the client has lost events and
 * cannot be told on the stream (`control: false`). Reads the log only for such a request, while
 * nothing is written yet.
 * @returns not a promise if the broker is in this process
 */
export function findAnswer(
  follower: StreamFollower,
  record: SubscriptionRecord,
  position: Cursor,
): 204 | 410 | undefined | Promise<204 | 410 | undefined> {
  const { host, stream } = follower;
  const { channels, options } = record;
  if (!isUnused(follower)) return undefined;
  if (!channels.every((channel) => host.followedChannels.hasHistory(channel))) return undefined;
  const start = resolveStart(stream.lastEventId, options, position);
  const isUntold = options.control === false && options.onGap === undefined;
  if (start.isForeign) return isUntold ? 410 : undefined;
  if (options.resume === false || stream.lastEventId === '') return undefined;
  const decide = ({ position: { epoch }, complete, ended, entries, trimmed }: Page) => {
    if (epoch !== position.epoch) return undefined;
    // The same comparison as in `ChannelStarts.collectLost()`. Change both.
    if (trimmed.some((offset) => offset > start.offset)) return isUntold ? 410 : undefined;
    const isOver =
      complete && ended.every((isEnded) => isEnded) && entries.every(({ isEnd }) => isEnd);
    return isOver ? 204 : undefined;
  };
  const signal = host.catchUpQueue.isBrokerRemote ? record.getSignal() : undefined;
  const page = host.broker.read(channels, start.offset, MAX_ENDS_BYTES, signal);
  return page instanceof Promise ? openIfSlow(stream, page).then(decide) : decide(page);
}

/** Whether a stream with a first subscription is not open, and was not used otherwise. */
export function isUnused({ stream, subscriptions }: StreamFollower): boolean {
  return stream.readyState === 0 && !stream.res.headersSent && subscriptions.length === 1;
}

/** Answers a request without a stream. The stream ends, and with it its subscriptions. */
export function answerWithout(stream: EventStream, status: 204 | 410): void {
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
export function openIfSlow<T>(stream: EventStream, answer: Promise<T>): Promise<T> {
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
