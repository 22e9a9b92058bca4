/**
 * The publishes of this node, in the order of the calls.
 *
 * One call of the script is pending at a time, with all publishes since the previous call:
 *
 *     add()     a   b c d            e
 *     script    |── a ──|── b c d ──|── e ──|
 *
 * So the order stays the same even if a command has to be sent again: because Redis has forgotten
 * the script, a connection has broken, or a Cluster has redirected the command. If the node is
 * busier, a call has more publishes, and each event costs less.
 */
import { deferred, type Deferred } from '../../common/async.ts';
import { SseError } from '../../common/errors.ts';
import { formatCursor } from '../../protocol/cursor.ts';
import type { Publication } from '../broker.ts';
import { endedError } from '../errors.ts';
import type { AppendItem, AppendResult, PublishResult } from './append-format.ts';
import type { LogClient } from './log-client.ts';
import { noEffectError } from './redis-errors.ts';

// Limits of one call of the script. During the call, Redis does nothing else.
const MAX_BATCH_ITEMS = 128;
const MAX_BATCH_BYTES = 1_048_576;

// Limits of the queue, which grows while Redis is unreachable.
const MAX_QUEUED_ITEMS = 10_000;
const MAX_QUEUED_BYTES = 33_554_432;

interface QueuedPublish {
  readonly item: AppendItem;
  /** Time in ms at which the publish rejects. */
  readonly deadline: number;
  readonly published: Deferred<{ id: string }>;
}

/** Sends publishes to Redis in batches. */
export class PublishQueue {
  readonly #client: LogClient;
  readonly #timeoutMs: number;
  readonly #onAppended: (epoch: string, head: number) => void;
  readonly #unansweredError: (problem: string, delivery: 'none' | 'unknown') => SseError;
  // Publishes that have not been sent, the oldest first.
  #queue: QueuedPublish[] = [];
  #queuedBytes = 0;
  #isSending = false;
  // Rejects publishes that are not sent in time.
  #timer: NodeJS.Timeout | undefined;
  #last: Promise<unknown> = Promise.resolve();

  /**
   * @param timeoutMs time in ms after which a publish rejects
   * @param onAppended called with the head of the log after an append
   * @param unansweredError makes the error of a publish that Redis has not answered in time; the
   * text continues the sentence "Redis at <address> …"
   */
  constructor(
    client: LogClient,
    timeoutMs: number,
    onAppended: (epoch: string, head: number) => void,
    unansweredError: (problem: string, delivery: 'none' | 'unknown') => SseError,
  ) {
    this.#client = client;
    this.#timeoutMs = timeoutMs;
    this.#onAppended = onAppended;
    this.#unansweredError = unansweredError;
  }

  /**
   * As `Broker.append()`.
   * @param owner names this node if it holds the channel; otherwise empty
   */
  add(publication: Publication, owner: string = ''): Promise<{ id: string }> {
    const item = this.#client.toAppendItem(publication, owner);
    const isFull =
      this.#queue.length >= MAX_QUEUED_ITEMS ||
      (this.#queue.length > 0 && this.#queuedBytes + item.bytes > MAX_QUEUED_BYTES);
    if (isFull) {
      const problem = 'too many publishes wait for Redis; this publish was not sent';
      return Promise.reject(noEffectError(problem));
    }
    const published = deferred<{ id: string }>();
    this.#queue.push({ item, deadline: performance.now() + this.#timeoutMs, published });
    this.#queuedBytes += item.bytes;
    this.#setTimer();
    // In a microtask, so that publishes that are made now are sent together.
    if (!this.#isSending && this.#queue.length === 1) queueMicrotask(() => void this.#sendAll());
    this.#last = published.promise.catch(() => {});
    return published.promise;
  }

  /** Resolves when all publishes so far have been accepted or rejected, within the timeout. */
  async settled(): Promise<void> {
    await this.#last;
  }

  /** Sends batches until the queue is empty. */
  async #sendAll(): Promise<void> {
    if (this.#isSending) return;
    this.#isSending = true;
    while (this.#queue.length > 0) await this.#sendBatch(this.#dequeue(this.#countBatch()));
    this.#isSending = false;
  }

  /**
   * Sends a batch. Resolves when Redis has answered, or can no longer answer. Until then no other
   * batch is sent, because it could be executed before this batch.
   */
  async #sendBatch(batch: readonly QueuedPublish[]): Promise<void> {
    const controller = new AbortController();
    const [first] = batch as [QueuedPublish];
    const timer = setTimeout(
      () => {
        // If the command has not been written yet, it is removed, and the call rejects at once with
        // the delivery 'none'. Otherwise it is unknown whether the events are published.
        controller.abort();
        setImmediate(() => rejectAll(batch, this.#timeoutError('unknown')));
      },
      Math.max(first.deadline - performance.now(), 1),
    );
    try {
      const items = batch.map(({ item }) => item);
      const answer = await this.#client.append(items, controller.signal);
      this.#onAppended(answer.epoch, answer.head);
      settleAll(batch, answer);
    } catch (error) {
      const { delivery } = error as SseError;
      const isUnsent = controller.signal.aborted && delivery === 'none';
      rejectAll(batch, isUnsent ? this.#timeoutError('none') : (error as SseError));
    } finally {
      clearTimeout(timer);
    }
  }

  #timeoutError(delivery: 'none' | 'unknown'): SseError {
    const consequence = delivery === 'none' ? 'was not sent' : 'may have been published';
    const problem = `has not accepted the event in time; the event ${consequence}`;
    return this.#unansweredError(problem, delivery);
  }

  /** @returns number of publishes in the next batch */
  #countBatch(): number {
    let count = 0;
    let bytes = 0;
    for (const { item } of this.#queue) {
      const isFull = count === MAX_BATCH_ITEMS || bytes + item.bytes > MAX_BATCH_BYTES;
      if (count > 0 && isFull) break;
      count++;
      bytes += item.bytes;
    }
    return count;
  }

  /** Removes the oldest publishes. @returns the removed publishes */
  #dequeue(count: number): QueuedPublish[] {
    const removed = this.#queue.splice(0, count);
    for (const { item } of removed) this.#queuedBytes -= item.bytes;
    this.#setTimer();
    return removed;
  }

  /** Sets the timer for the oldest publish, whose deadline is the first. */
  #setTimer(): void {
    const [first] = this.#queue;
    if (first === undefined) {
      clearTimeout(this.#timer);
      this.#timer = undefined;
      return;
    }
    const ms = Math.max(first.deadline - performance.now(), 1);
    this.#timer ??= setTimeout(() => {
      this.#timer = undefined;
      const now = performance.now();
      const index = this.#queue.findIndex(({ deadline }) => deadline > now);
      const expired = this.#dequeue(index === -1 ? this.#queue.length : index);
      rejectAll(expired, this.#timeoutError('none'));
    }, ms);
  }
}

function rejectAll(batch: readonly QueuedPublish[], error: SseError): void {
  for (const { published } of batch) published.reject(error);
}

/** Resolves or rejects each publish of a batch that Redis has answered. */
function settleAll(batch: readonly QueuedPublish[], answer: AppendResult): void {
  const { headerProblem, results } = answer;
  const items = batch.map(({ item }) => item);
  const unannounced = headerProblem === '' ? undefined : newIds(items, answer);
  for (const [index, { item, published }] of batch.entries()) {
    const result = results[index];
    if (result !== undefined && 'firstEnd' in result) {
      if (item.isOnlyEnd) published.resolve({ id: result.firstEnd });
      else published.reject(endedError(item.channel));
    } else if (result === undefined || 'problem' in result) {
      published.reject(notAcceptedError(result));
    } else if (unannounced?.has(result.id) === true) {
      published.reject(unannouncedError(headerProblem));
    } else published.resolve(result);
  }
}

/**
 * Finds the ids that this append has assigned. The results of publications that were published
 * before, with the same key, have the earlier ids.
 *
 * The offsets that an append assigns are consecutive, and the last one is the head. So the results
 * are read from the last to the first. A publication whose delivery is unknown may have used its
 * offsets; an id that is not the expected one was assigned earlier and uses none:
 *
 * ```text
 * results     a '=e.98'    b '=e.41'           c '=e.99'    d problem, delivery unknown
 * offset      98 new       98 earlier, key     99 new       100 = head, may have been used
 * ```
 */
function newIds(items: readonly AppendItem[], { epoch, head, results }: AppendResult): Set<string> {
  const ids = new Set<string>();
  // The highest offset that the current publication can have, if its id is new.
  let offset = head;
  for (let index = items.length - 1; index >= 0; index--) {
    const result = results[index];
    const { entries } = items[index] as AppendItem;
    if (result === undefined || 'firstEnd' in result) continue;
    if ('problem' in result) {
      if (result.isDeliveryUnknown) offset -= entries;
    } else if (result.id === formatCursor(epoch, offset)) {
      ids.add(result.id);
      offset -= entries;
    }
  }
  return ids;
}

/** Makes the error of one event that the script has not accepted. */
function notAcceptedError(result: PublishResult | undefined): SseError {
  const { problem = 'no answer', isDeliveryUnknown = true } =
    result !== undefined && 'problem' in result ? result : {};
  const message = `Redis has not accepted the event: ${problem}`;
  return new SseError('ERR_SSE_BROKER', message, {
    delivery: isDeliveryUnknown ? 'unknown' : 'none',
  });
}

/**
 * Makes the error of an event that is in the log, but of which no header was sent to the nodes, for
 * example because the Redis user has no permission.
 */
function unannouncedError(problem: string): SseError {
  const message = `Redis keeps the event, but has not notified the nodes: ${problem}`;
  return new SseError('ERR_SSE_BROKER', message, { delivery: 'unknown' });
}
