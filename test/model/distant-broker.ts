/**
 * A remote broker: requests, answers and deliveries reach the log or the node after a delay, each
 * kind in order.
 */
import { memoryBroker, type Broker } from '../../src/index.ts';
import type {
  BrokerState,
  ChannelState,
  LogBounds,
  Page,
  Publication,
  Receiver,
} from '../../src/brokers/broker.ts';
import type { Cursor } from '../../src/protocol/cursor.ts';
import type { LogEntry } from '../../src/log/log-entry.ts';

// Maximum delay of a message in ticks, unless an earlier message of the same queue takes longer.
// Each queue draws its own maximum.
const MAX_DELAY_TICKS = 6;

/** Messages in order. Each message arrives some ticks after it was sent. */
class DelayedQueue {
  readonly #random: () => number;
  readonly #maxDelay: number;
  #messages: { arrivesAt: number; arrive: () => void; canBeLost: boolean }[] = [];
  #now = 0;

  constructor(random: () => number) {
    this.#random = random;
    this.#maxDelay = 1 + Math.floor(random() * MAX_DELAY_TICKS);
  }

  get isEmpty(): boolean {
    return this.#messages.length === 0;
  }

  /** Discards the messages in transit that can be lost. */
  dropMessages(): void {
    this.#messages = this.#messages.filter(({ canBeLost }) => !canBeLost);
  }

  send(arrive: () => void, canBeLost = false): void {
    const arrivesAt = Math.max(
      this.#messages.at(-1)?.arrivesAt ?? 0,
      this.#now + 1 + Math.floor(this.#random() * this.#maxDelay),
    );
    this.#messages.push({ arrivesAt, arrive, canBeLost });
  }

  tick(): void {
    this.#now++;
    while (this.#messages[0] !== undefined && this.#messages[0].arrivesAt <= this.#now) {
      this.#messages.shift()!.arrive();
    }
  }
}

/**
 * A broker with a delay between node and log. The log itself is a memory broker. A test advances
 * the time with {@link tick}.
 */
export class DistantBroker implements Broker {
  readonly log: Broker;
  /** Offset of the newest entry that this node has received. */
  receivedOffset = 0;
  readonly #requests: DelayedQueue;
  readonly #answers: DelayedQueue;
  // As with Redis, subscriptions and deliveries have a connection of their own.
  readonly #subscribes: DelayedQueue;
  readonly #deliveries: DelayedQueue;
  readonly #channels = new Set<string>();
  #receiver: Receiver | undefined;

  /** @param random returns numbers as `Math.random` does */
  constructor(random: () => number, log: Broker = memoryBroker()) {
    this.log = log;
    this.#requests = new DelayedQueue(random);
    this.#answers = new DelayedQueue(random);
    this.#subscribes = new DelayedQueue(random);
    this.#deliveries = new DelayedQueue(random);
  }

  get state(): BrokerState {
    return this.log.state;
  }

  get head(): number {
    return this.receivedOffset;
  }

  get held(): { events: number; bytes: number } {
    return this.log.held;
  }

  /** Whether no message is in transit. */
  get isQuiet(): boolean {
    return (
      this.#requests.isEmpty &&
      this.#answers.isEmpty &&
      this.#subscribes.isEmpty &&
      this.#deliveries.isEmpty
    );
  }

  tick(): void {
    this.#subscribes.tick();
    this.#requests.tick();
    this.#deliveries.tick();
    this.#answers.tick();
  }

  /**
   * Simulates a connection that breaks and reconnects. Entries in transit are lost; only the log
   * has them.
   */
  interrupt(): void {
    this.#deliveries.dropMessages();
    this.#receiver?.interrupted();
  }

  open(receiver: Receiver, bounds: LogBounds): void {
    this.#receiver = receiver;
    const relay: Receiver = {
      follows: (channel) => this.#channels.has(channel),
      receive: (entry) => this.#send(entry),
      interrupted: () => this.#receiver?.interrupted(),
    };
    this.log.open(relay, bounds);
  }

  append(publication: Publication): Promise<{ id: string }> {
    return this.#request(() => this.log.append(publication));
  }

  listen(channel: string): Promise<void> {
    return new Promise((resolve) => {
      this.#subscribes.send(() => {
        this.#channels.add(channel);
        void this.log.listen(channel);
        this.#deliveries.send(resolve);
      });
    });
  }

  unlisten(channel: string): void {
    this.#subscribes.send(() => {
      this.#channels.delete(channel);
      this.log.unlisten(channel);
    });
  }

  position(): Promise<Cursor> {
    return this.#request(() => this.log.position());
  }

  read(channels: readonly string[], after: number, maxBytes: number): Promise<Page> {
    return this.#request(() => this.log.read(channels, after, maxBytes));
  }

  countHeld(): number {
    return 0;
  }

  startsOfNewest(channels: readonly string[], count: number): Promise<readonly number[]> {
    return this.#request(() => this.log.startsOfNewest(channels, count));
  }

  channelState(channel: string): Promise<ChannelState> {
    return this.#request(() => this.log.channelState(channel));
  }

  clear(channel: string): Promise<void> {
    return this.#request(() => this.log.clear(channel));
  }

  close(): Promise<void> {
    return this.log.close();
  }

  #send(entry: LogEntry): void {
    this.#deliveries.send(() => {
      if (entry.epoch !== undefined) this.receivedOffset = entry.offset;
      this.#receiver?.receive(entry);
    }, true);
  }

  #request<T>(query: () => T | Promise<T>): Promise<T> {
    return new Promise((resolve) => {
      this.#requests.send(() => {
        const answer = query();
        // A rejection travels to the node like any other answer.
        if (answer instanceof Promise) answer.catch(() => {});
        this.#answers.send(() => resolve(answer));
      });
    });
  }
}
