/** Probes: headers that a node asks Redis to publish, to find out whether messages arrive. */
import { randomBytes } from 'node:crypto';
import { deferred, withLimits } from '../../common/async.ts';
import type { LogClient } from './log-client.ts';
import type { SequenceHeader } from './message-format.ts';
import { undeliveredError } from './redis-errors.ts';
import type { SubscriberConnection } from './subscriber-connection.ts';

/**
 * The probes of this node that have not arrived. A probe is identified by a nonce: the script
 * publishes a header with the nonce at the moment of its answer.
 *
 *     node ── query, nonce ─▶ script ── header with nonce ──▶ subscriber connection ──▶ node
 *       ◀────── answer ───────┘
 */
export class Probes {
  readonly #client: LogClient;
  readonly #timeoutMs: number;
  readonly #pending = new Map<string, (header: SequenceHeader) => void>();

  /** @param timeoutMs time in ms after which a probe counts as lost */
  constructor(client: LogClient, timeoutMs: number) {
    this.#client = client;
    this.#timeoutMs = timeoutMs;
  }

  /**
   * Sends a probe and waits for its header. Without a probe, a node would not notice that a
   * connection that is up delivers no messages, or that the last messages before a silence were
   * lost.
   * @returns `undefined` if the probe has arrived; otherwise the error. If Redis has refused the
   * query, which is an error reply, then no header was published
   */
  async check(connection: SubscriberConnection): Promise<unknown> {
    const nonce = this.createNonce();
    const query = this.#client.look([], nonce);
    const arrival = this.wait(nonce, connection, query);
    const [answered, arrived] = await Promise.allSettled([query, arrival]);
    if (arrived.status === 'fulfilled') return undefined;
    return answered.status === 'rejected' ? answered.reason : arrived.reason;
  }

  /** @returns a new nonce */
  createNonce(): string {
    return randomBytes(9).toString('base64url');
  }

  /** Called with every header that arrives. */
  onHeader(header: SequenceHeader): void {
    this.#pending.get(header.nonce)?.(header);
  }

  /**
   * Waits for the header with the nonce.
   * @param query the query with the nonce. The timeout of the header begins when Redis has answered
   * the query, because the query may have to wait for other answers before it is sent
   * @param onArrived called at once when the header arrives, before later messages are processed
   * @returns a promise that rejects after the timeout, or when the connection breaks
   */
  async wait(
    nonce: string,
    connection: SubscriberConnection,
    query: Promise<unknown>,
    onArrived?: (header: SequenceHeader) => void,
  ): Promise<void> {
    const arrival = deferred();
    this.#pending.set(nonce, (header) => {
      onArrived?.(header);
      arrival.resolve();
    });
    const signal = connection.broken;
    try {
      await withLimits(Promise.race([arrival.promise, query.catch(() => {})]), { signal });
      await withLimits(arrival.promise, {
        signal,
        timeoutMs: this.#timeoutMs,
        timeoutError: undeliveredError,
      });
    } finally {
      this.#pending.delete(nonce);
    }
  }
}
