/** The fields of a stream that only few streams need. */
import { randomUUID } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { deferred, type Deferred } from '../common/async.ts';
import type { GzipBody } from '../protocol/gzip-body.ts';
import type { CloseReason } from './close-reason.ts';
import type { StreamGuard } from './revocation-types.ts';

/** Made when a stream uses one of the fields. Most streams without compression have none. */
export class RareState {
  /** Whether the application has sent events with ids of its own. */
  hasOwnIds = false;
  /** Number of events that were dropped, see `SendLimit.dropped`. */
  droppedEvents = 0;
  /** Whether a message of the diagnostics channel `res-sse:slow` is being published. */
  isPublishingSlow = false;
  /** Whether the stream was closed, but is still open to write pending events or last bytes. */
  isClosing = false;
  /** The identity of the stream, for `revoke()`; `undefined` without `sse({ identity })`. */
  guard: StreamGuard | undefined;
  /** The body of a compressed stream. */
  gzip: GzipBody | undefined;
  #id: string | undefined;
  #drainWaiters: (() => void)[] | undefined;
  #controller: AbortController | undefined;
  #closed: Deferred<CloseReason> | undefined;

  /** A random id, made on the first read. */
  get id(): string {
    this.#id ??= randomUUID();
    return this.#id;
  }

  /** Makes the controller of `stream.signal` on the first call. */
  abortController(): AbortController {
    if (this.#controller === undefined) {
      this.#controller = new AbortController();
      // Each `pipe()` and each wait of the application adds a listener. From eleven listeners on,
      // Node 20 would warn of a leak.
      setMaxListeners(0, this.#controller.signal);
    }
    return this.#controller;
  }

  /** Makes the promise of `stream.closed` on the first call. */
  closedPromise(): Deferred<CloseReason> {
    this.#closed ??= deferred();
    return this.#closed;
  }

  /** @returns a promise that resolves with the next {@link onDrain} or {@link onEnded} */
  whenDrained(): Promise<void> {
    return new Promise((resolve) => {
      (this.#drainWaiters ??= []).push(resolve);
    });
  }

  /** The stream has ended. */
  onEnded(reason: CloseReason): void {
    this.#controller?.abort();
    this.#closed?.resolve(reason);
    this.onDrain();
  }

  /** No sender must wait any more. */
  onDrain(): void {
    const waiters = this.#drainWaiters;
    this.#drainWaiters = undefined;
    for (const resolve of waiters ?? []) resolve();
  }
}
