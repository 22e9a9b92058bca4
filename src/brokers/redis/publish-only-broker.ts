/**
 * A process that only publishes, such as a worker: one connection, and nothing is listened to.
 *
 *     append() ─▶ PublishQueue ─▶ LogClient ─▶ script in Redis
 *     hold()   ─▶ Leases ──────────────┘
 */
import { SseError } from '../../common/errors.ts';
import type { HistoryLimits } from '../../log/log.ts';
import type { Cursor } from '../../protocol/cursor.ts';
import type {
  Broker,
  BrokerState,
  ChannelState,
  Lease,
  LogBounds,
  Publication,
  Receiver,
} from '../broker.ts';
import { closedError, otherRegistryError } from '../errors.ts';
import { FailureReporter } from './failure-reporter.ts';
import { Leases } from './leases.ts';
import { LogClient } from './log-client.ts';
import { toChannelState } from './log-snapshot.ts';
import { PublishQueue } from './publish-queue.ts';
import type { RedisConnection } from './redis-connection.ts';
import { DEFAULT_LEASE_MS, type Timing } from './timing.ts';

/** The `Broker` that `redisBroker({ publishOnly: true })` returns. */
export class PublishOnlyBroker implements Broker {
  readonly held: Broker['held'] = { events: 0, bytes: 0 };
  readonly #connection: RedisConnection;
  readonly #failures: FailureReporter;
  readonly #client: LogClient;
  readonly #publishQueue: PublishQueue;
  readonly #leases: Leases;
  // The head of the log after the last append.
  #appended: Cursor = { epoch: '', offset: 0 };
  #state: BrokerState = 'connecting';
  #isOpened = false;
  #closing: Promise<void> | undefined;

  /** @param connection access to Redis; closed together with the broker */
  constructor(connection: RedisConnection, prefix: string, timing: Timing) {
    const { timeout, lease = DEFAULT_LEASE_MS } = timing;
    const failures = new FailureReporter(this, connection.address, () => this.#state === 'open');
    const client = new LogClient(
      connection,
      prefix,
      timeout,
      () => this.#appended,
      (problem) => failures.report(new Error(problem)),
    );
    this.#connection = connection;
    this.#failures = failures;
    this.#client = client;
    this.#publishQueue = new PublishQueue(
      client,
      timeout,
      (epoch, offset) => this.#onAppended({ epoch, offset }),
      (problem, delivery) => this.#onUnanswered(problem, delivery),
    );
    this.#leases = new Leases(client, lease, (error) => failures.report(error));
  }

  get state(): BrokerState {
    return this.#closing === undefined ? this.#state : 'closed';
  }

  get head(): number {
    return this.#appended.offset;
  }

  open(_receiver: Receiver, bounds: LogBounds): void {
    if (this.#isOpened) throw otherRegistryError();
    this.#isOpened = true;
    this.#client.bounds = bounds;
    this.#leases.start();
  }

  append(publication: Publication): Promise<{ id: string }> {
    if (this.#closing !== undefined) return Promise.reject(closedError());
    return this.#publishQueue.add(publication, this.#leases.ownerOf(publication.channel));
  }

  async position(): Promise<Cursor> {
    if (this.#closing !== undefined) throw closedError();
    await this.#publishQueue.settled();
    const { epoch, head } = await this.#client.look([]);
    return { epoch, offset: head };
  }

  async channelState(channel: string): Promise<ChannelState> {
    if (this.#closing !== undefined) throw closedError();
    // Events that were published before are counted, too.
    await this.#publishQueue.settled();
    const { channels } = await this.#client.look([{ channel, after: undefined }]);
    return toChannelState(channels[0]);
  }

  hold(channel: string, history: HistoryLimits): Lease {
    return this.#leases.hold(channel, history);
  }

  async clear(channel: string): Promise<void> {
    if (this.#closing !== undefined) throw closedError();
    await this.#publishQueue.settled();
    const { epoch, offset } = await this.#client.clear(channel);
    this.#onAppended({ epoch, offset });
  }

  close(): Promise<void> {
    this.#closing ??= this.#close();
    return this.#closing;
  }

  async #close(): Promise<void> {
    await this.#publishQueue.settled();
    await this.#leases.stop();
    this.#client.close();
    this.#connection.close();
  }

  /** Reports an error of the connection to the application. */
  report(error: unknown): void {
    this.#failures.report(error);
  }

  #onAppended(appended: Cursor): void {
    this.#state = 'open';
    this.#failures.clear();
    this.#appended = appended;
  }

  #onUnanswered(problem: string, delivery: 'none' | 'unknown'): SseError {
    this.#state = 'broken';
    return this.#failures.unansweredError(problem, delivery);
  }

  // Methods that need the events of the log, which this process does not receive.

  listen(): Promise<never> {
    return Promise.reject(publishOnlyError());
  }

  unlisten(): void {}

  read(): Promise<never> {
    return Promise.reject(publishOnlyError());
  }

  countHeld(): number {
    return 0;
  }

  startsOfNewest(): Promise<never> {
    return Promise.reject(publishOnlyError());
  }
}

function publishOnlyError(): SseError {
  return new SseError(
    'ERR_SSE_OPTION',
    'this process only publishes (redisBroker({ publishOnly: true })), so it cannot ' +
      'read or follow channels; make the broker without `publishOnly`',
  );
}
