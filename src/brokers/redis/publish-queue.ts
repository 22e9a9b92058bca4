/**
 * What this node publishes, in the order of the calls: one call of the script at a time, with all that has been published since
 * the one before. So neither a script that Redis has forgotten, nor a connection that breaks, nor a Cluster that redirects can
 * change the order, and the busier the node is the less each event costs.
 */
import { SseError } from '../../common/errors.ts';
import type { Publication } from '../broker.ts';
import { refused } from './redis-connection.ts';
import type { Appended, AppendItem, LogClient } from './log-client.ts';

// So much goes in one call: Redis does nothing else meanwhile.
const BATCH = { items: 128, bytes: 1_048_576 };

// So much waits while Redis is away.
const MOST = { items: 10_000, bytes: 33_554_432 };

interface Waiting extends AppendItem {
  readonly deadline: number;
  readonly resolve: (appended: { id: string }) => void;
  readonly reject: (error: SseError) => void;
}

export class PublishQueue {
  readonly #store: LogClient;
  readonly #timeout: number;
  readonly #onAppended: (epoch: string, head: number) => void;
  readonly #unanswered: (problem: string, delivery: 'none' | 'unknown') => SseError;
  #waiting: Waiting[] = [];
  #bytes = 0;
  #isSending = false;
  #timer: NodeJS.Timeout | undefined;
  #last: Promise<unknown> = Promise.resolve();

  /**
   * @param timeout ms after which a publish rejects
   * @param onAppended how far the log has come by what was appended here
   * @param unanswered makes the error of a publish that Redis has not answered
   */
  constructor(
    store: LogClient,
    timeout: number,
    onAppended: (epoch: string, head: number) => void,
    unanswered: (problem: string, delivery: 'none' | 'unknown') => SseError,
  ) {
    this.#store = store;
    this.#timeout = timeout;
    this.#onAppended = onAppended;
    this.#unanswered = unanswered;
  }

  add(publication: Publication): Promise<{ id: string }> {
    const item = this.#store.itemOf(publication);
    if (
      this.#waiting.length >= MOST.items ||
      (this.#waiting.length > 0 && this.#bytes + item.bytes > MOST.bytes)
    ) {
      return Promise.reject(refused('too many publishes wait for Redis; this one was not sent'));
    }
    const added = new Promise<{ id: string }>((resolve, reject) => {
      this.#waiting.push({ ...item, deadline: performance.now() + this.#timeout, resolve, reject });
      this.#bytes += item.bytes;
      this.#watch();
      // What else is published now goes with it.
      if (!this.#isSending && this.#waiting.length === 1) queueMicrotask(() => void this.#send());
    });
    this.#last = added.catch(() => {});
    return added;
  }

  /** Resolves when all that was added before is accepted or rejected, which takes no longer than the timeout. */
  async settled(): Promise<void> {
    await this.#last;
  }

  async #send(): Promise<void> {
    if (this.#isSending) return;
    this.#isSending = true;
    while (this.#waiting.length > 0) await this.#sendSome(this.#take(this.#batch()));
    this.#isSending = false;
  }

  /** Returns when Redis has answered, or never will: until then nothing else is sent, so that nothing overtakes it. */
  async #sendSome(items: readonly Waiting[]): Promise<void> {
    const abort = new AbortController();
    const first = items[0] as Waiting;
    const timer = setTimeout(
      () => {
        // What has not been written yet is taken back, and says so at once; of the rest nobody can tell.
        abort.abort();
        setImmediate(() => rejectAll(items, this.#late('unknown')));
      },
      Math.max(first.deadline - performance.now(), 1),
    );
    try {
      const { epoch, head, unsaid, appended } = await this.#store.append(items, abort.signal);
      if (unsaid !== '') throw unheard(unsaid);
      this.#onAppended(epoch, head);
      for (const [index, { resolve, reject }] of items.entries()) {
        const result = appended[index];
        if (result !== undefined && 'id' in result) resolve(result);
        else reject(notAccepted(result));
      }
    } catch (error) {
      rejectAll(
        items,
        abort.signal.aborted && (error as SseError).delivery === 'none'
          ? this.#late('none')
          : (error as SseError),
      );
    } finally {
      clearTimeout(timer);
    }
  }

  #late(delivery: 'none' | 'unknown'): SseError {
    return this.#unanswered(
      `in time; ${delivery === 'none' ? 'it was not sent' : 'it may have been published'}`,
      delivery,
    );
  }

  /** How many of those that wait go next. */
  #batch(): number {
    let count = 0;
    let bytes = 0;
    for (const item of this.#waiting) {
      if (count > 0 && (count === BATCH.items || bytes + item.bytes > BATCH.bytes)) break;
      count++;
      bytes += item.bytes;
    }
    return count;
  }

  #take(count: number): Waiting[] {
    const items = this.#waiting.splice(0, count);
    for (const { bytes } of items) this.#bytes -= bytes;
    this.#watch();
    return items;
  }

  /** Rejects those that have waited too long, the oldest of which is the first. */
  #watch(): void {
    const [first] = this.#waiting;
    if (first === undefined) {
      clearTimeout(this.#timer);
      this.#timer = undefined;
      return;
    }
    this.#timer ??= setTimeout(
      () => {
        this.#timer = undefined;
        const now = performance.now();
        const isFresh = this.#waiting.findIndex(({ deadline }) => deadline > now);
        rejectAll(this.#take(isFresh === -1 ? this.#waiting.length : isFresh), this.#late('none'));
      },
      Math.max(first.deadline - performance.now(), 1),
    );
  }
}

function rejectAll(items: readonly Waiting[], error: SseError): void {
  for (const { reject } of items) reject(error);
}

function notAccepted(result: Appended | undefined): SseError {
  const { problem = 'no answer', isUnknown = true } =
    result !== undefined && 'problem' in result ? result : {};
  const message = `Redis has not accepted it: ${problem}`;
  return new SseError('ERR_SSE_BROKER', message, { delivery: isUnknown ? 'unknown' : 'none' });
}

/** It is in the log, and the others will find it there; but nobody has been told now, and the user of Redis cannot. */
function unheard(problem: string): SseError {
  return new SseError('ERR_SSE_BROKER', `Redis keeps it, but did not tell the nodes: ${problem}`, {
    delivery: 'unknown',
  });
}
