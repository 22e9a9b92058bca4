/** `channels.pipe()`: publishes the items of a source to one channel, and ends the channel. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Lease } from '../brokers/broker.ts';
import { ignoreRejection, isThenable } from '../common/async.ts';
import { SseError } from '../common/errors.ts';
import { readSource, type PipeSource } from '../common/source.ts';
import { formatCursor, parseCursor } from '../protocol/cursor.ts';
import type { EndOptions, LastEvent, PipeToChannelOptions } from './channels.ts';

// Number of publishes that may wait for the broker at the same time.
const MAX_IN_FLIGHT = 64;

// Number of items after which other work gets its turn.
const ITEMS_PER_TURN = 256;

// Codes of errors after which the broker accepts no event of the channel.
const REFUSALS: ReadonlySet<string> = new Set([
  'ERR_SSE_BROKER',
  'ERR_SSE_CLOSED',
  'ERR_SSE_ENDED',
]);

/** Whether, after this error, the broker accepts neither events of the channel nor its end. */
function isRefusal(error: unknown): boolean {
  return error instanceof SseError && REFUSALS.has(error.code);
}

function hasEnded(error: unknown): boolean {
  return error instanceof SseError && error.code === 'ERR_SSE_ENDED';
}

/** @throws {SseError} `ERR_SSE_DATA` if a function of the options has returned a promise */
function assertNoPromise(option: string, value: unknown): void {
  if (!isThenable(value)) return;
  ignoreRejection(value);
  throw new SseError(
    'ERR_SSE_DATA',
    `expected \`${option}\` of pipe() to return a value, got a promise; await it in the source`,
  );
}

/** The calls of one channel that a pipe makes. */
export interface PipeChannel {
  publish(data: unknown, options: { event?: string | undefined }): Promise<{ id: string }>;
  end(data: unknown, options: EndOptions): Promise<{ id: string }>;
  /**
   * As `Broker.hold()`. `undefined` if the broker has no leases.
   */
  hold(): Lease | undefined;
}

/** The result of `channels.pipe()`. */
interface PipeResult {
  readonly id: string;
  readonly events: number;
}

/**
 * Publishes each item. See `Channels.pipe()` for the contract.
 *
 * ```text
 * source ──► item ──map()──► items of `every` ms ──join()──► publish ──► at most 64 in flight
 *              ▲                                                              │
 *              └──────────── the next item is read when there is room ◄──────┘
 * ```
 *
 * @param closing stops the pipe, as the `signal` of the options does
 */
export async function pipeToChannel<T, M>(
  channel: PipeChannel,
  source: PipeSource<T>,
  options: PipeToChannelOptions<T, M>,
  closing: AbortSignal,
): Promise<PipeResult> {
  const { end = true } = options;
  const lease = end === false ? undefined : channel.hold();
  const run = new PipeRun(channel, options);
  let failure: { readonly error: unknown } | undefined;
  try {
    await run.read(source, options.signal, closing);
  } catch (error) {
    failure = { error };
  }
  if (failure !== undefined && run.isRefused) {
    // The channel has ended, or this process cannot end it. In the second case the lease expires,
    // unless a later call of `pipe` holds the channel again.
    if (hasEnded(failure.error)) lease?.release();
    else lease?.abandon();
    throw failure.error;
  }
  try {
    // `undefined` tells `end` that the source has ended. A falsy error is replaced, because `end`
    // may test `if (error)`.
    const reason =
      failure &&
      (failure.error || new Error('the source failed without an error', { cause: failure.error }));
    await run.end(end, reason);
    lease?.release();
  } catch (error) {
    lease?.abandon();
    failure ??= { error };
  }
  if (failure !== undefined) throw failure.error;
  return run.result;
}

/** The state of one call: the items that will be joined, and the publishes in flight. */
class PipeRun<T, M> {
  readonly #channel: PipeChannel;
  readonly #options: PipeToChannelOptions<T, M>;
  // Aborted when the source must not be read any more.
  readonly #stopped = new AbortController();
  // The first error of the source, of a function of the application, of a publish or of the signal.
  #failure: { readonly error: unknown } | undefined;
  /** Whether the broker has not accepted an event, so that an end would not be accepted either. */
  isRefused = false;
  // Whether a publish has failed: later items are not published, because one event would be missing
  // before them.
  #hasFailedPublish = false;
  // The items since the last event, and the last of them before `map`.
  #items: M[] = [];
  #lastItem: T | undefined;
  #timer: NodeJS.Timeout | undefined;
  #events = 0;
  #inFlight = 0;
  #waiters: (() => void)[] = [];
  #lastId = '';

  constructor(channel: PipeChannel, options: PipeToChannelOptions<T, M>) {
    this.#channel = channel;
    this.#options = options;
  }

  /** The id of the last event, and the number of events. */
  get result(): PipeResult {
    return { id: this.#lastId, events: this.#events };
  }

  /** Reads no more items of the source, because of an error or a signal. */
  #stop(error: unknown): void {
    this.#failure ??= { error };
    this.#stopped.abort();
    this.#resolveWaiters();
  }

  /**
   * Reads the source to its end, and waits until all events are accepted. Rejects with the first
   * error of the source, of a function of the application, of the broker, or with the reason of a
   * signal.
   * @param signals stop the pipe
   */
  async read(source: PipeSource<T>, ...signals: (AbortSignal | undefined)[]): Promise<void> {
    const stop = ({ target }: { target: unknown }): void =>
      this.#stop((target as AbortSignal).reason);
    for (const signal of signals) {
      if (signal?.aborted === true) this.#stop(signal.reason);
      signal?.addEventListener('abort', stop, { once: true });
    }
    try {
      await readSource(source, this.#stopped.signal, (item, index) => this.#add(item, index));
    } catch (error) {
      this.#failure ??= { error };
    } finally {
      for (const signal of signals) signal?.removeEventListener('abort', stop);
    }
    clearTimeout(this.#timer);
    try {
      // Also after an error: these items came before it.
      await this.#publishItems();
    } catch (error) {
      this.#failure ??= { error };
    }
    await this.#whenBelow(1);
    if (this.#failure !== undefined) throw this.#failure.error;
  }

  /**
   * Ends the channel, even if the function `end` throws or returns data that cannot be sent. In
   * these cases the promise rejects.
   * @param error the error of the source; `undefined` if there was none
   */
  async end(end: PipeToChannelOptions<T, M>['end'], error: unknown): Promise<void> {
    if (end === false) return;
    if (typeof end !== 'function') {
      await this.#channel.end(undefined, {});
      return;
    }
    try {
      await this.#endWith(end(error));
    } catch (failure) {
      // Without an end, the readers would wait for ever.
      if (!isRefusal(failure)) await this.#channel.end(undefined, {});
      throw failure;
    }
  }

  async #endWith(last: LastEvent | undefined): Promise<void> {
    assertNoPromise('end', last);
    if (last === undefined) {
      await this.#channel.end(undefined, {});
      return;
    }
    const { id } = await this.#channel.end(last.data, { event: last.event });
    this.#events++;
    // The end has the offset after the offset of its event.
    const cursor = parseCursor(id);
    if (cursor !== undefined) this.#lastId = formatCursor(cursor.epoch, cursor.offset - 1);
  }

  /** Publishes an item, or keeps it until the time of `every` is over. */
  #add(item: T, index: number): Promise<void> | undefined {
    const { map, every } = this.#options;
    // Without `map`, the data is the item.
    const data = map === undefined ? (item as unknown as M) : map(item, index);
    assertNoPromise('map', data);
    this.#items.push(data);
    this.#lastItem = item;
    // If neither the source nor the broker ever waits, other work must get its turn anyway.
    const turn = index % ITEMS_PER_TURN === ITEMS_PER_TURN - 1 ? nextTurn() : undefined;
    if (every === undefined) return turn?.then(() => this.#publishItems()) ?? this.#publishItems();
    this.#timer ??= setTimeout(() => {
      this.#publishItems().catch((error: unknown) => this.#stop(error));
    }, every);
    // No further item is read before the broker has accepted earlier ones.
    return this.#inFlight < MAX_IN_FLIGHT ? turn : this.#whenBelow(MAX_IN_FLIGHT);
  }

  /** Publishes the items as one event, as soon as fewer than 64 publishes are in flight. */
  async #publishItems(): Promise<void> {
    await this.#whenBelow(MAX_IN_FLIGHT);
    clearTimeout(this.#timer);
    this.#timer = undefined;
    const items = this.#items;
    this.#items = [];
    if (items.length === 0 || this.#hasFailedPublish) return;
    const { event } = this.#options;
    const name = typeof event === 'function' ? event(this.#lastItem as T, this.#events) : event;
    ignoreRejection(name);
    const published = this.#channel.publish(this.#join(items), { event: name });
    this.#events++;
    this.#inFlight++;
    void this.#awaitAccepted(published);
  }

  async #awaitAccepted(published: Promise<{ id: string }>): Promise<void> {
    try {
      this.#lastId = (await published).id;
    } catch (error) {
      this.#hasFailedPublish = true;
      this.isRefused = isRefusal(error);
      this.#stop(error);
    }
    this.#inFlight--;
    this.#resolveWaiters();
  }

  /** Joins items to the data of one event. */
  #join(items: readonly M[]): unknown {
    const { every, join } = this.#options;
    if (every === undefined) return items[0];
    if (join !== undefined) return join(items);
    return items.every((item) => typeof item === 'string') ? items.join('') : items;
  }

  /** Resolves when fewer publishes than the limit are in flight. */
  async #whenBelow(limit: number): Promise<void> {
    while (this.#inFlight >= limit) {
      await new Promise<void>((resolve) => {
        this.#waiters.push(resolve);
      });
    }
  }

  #resolveWaiters(): void {
    const waiting = this.#waiters;
    this.#waiters = [];
    for (const resolve of waiting) resolve();
  }
}
