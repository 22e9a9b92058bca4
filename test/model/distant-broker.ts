/** A broker somewhere else: a log that is asked and answers over lines which take their time, each in order. */
import { memoryBroker, type Broker } from '../../src/index.ts';
import type {
  BrokerState,
  LogBounds,
  Page,
  Publication,
  Receiver,
} from '../../src/brokers/broker.ts';
import type { Cursor } from '../../src/protocol/cursor.ts';
import type { LogEntry } from '../../src/log/log-entry.ts';

// No message is longer on its way than so many ticks, unless one before it on the same line is. Some lines are faster than others.
const LONGEST_DELAY = 6;

/** Messages in order, each arriving some ticks after it was sent. */
class Line {
  readonly #random: () => number;
  readonly #longest: number;
  #messages: { due: number; arrive: () => void; canBeLost: boolean }[] = [];
  #now = 0;

  constructor(random: () => number) {
    this.#random = random;
    this.#longest = 1 + Math.floor(random() * LONGEST_DELAY);
  }

  get isEmpty(): boolean {
    return this.#messages.length === 0;
  }

  /** Loses what is on its way and can be lost. */
  lose(): void {
    this.#messages = this.#messages.filter(({ canBeLost }) => !canBeLost);
  }

  send(arrive: () => void, canBeLost = false): void {
    const due = Math.max(
      this.#messages.at(-1)?.due ?? 0,
      this.#now + 1 + Math.floor(this.#random() * this.#longest),
    );
    this.#messages.push({ due, arrive, canBeLost });
  }

  tick(): void {
    this.#now++;
    while (this.#messages[0] !== undefined && this.#messages[0].due <= this.#now) {
      this.#messages.shift()!.arrive();
    }
  }
}

/** The log is a memory broker; only what is between differs. A test drives the time with {@link tick}. */
export class DistantBroker implements Broker {
  readonly log: Broker;
  /** Offset of the newest entry that has come here. */
  arrived = 0;
  readonly #requests: Line;
  readonly #answers: Line;
  // As in Redis: subscribing and what is received share a connection of their own.
  readonly #subscribing: Line;
  readonly #received: Line;
  readonly #listened = new Set<string>();
  #receiver: Receiver | undefined;

  /** @param random from 0 to below 1, as `Math.random` */
  constructor(random: () => number, log: Broker = memoryBroker()) {
    this.log = log;
    this.#requests = new Line(random);
    this.#answers = new Line(random);
    this.#subscribing = new Line(random);
    this.#received = new Line(random);
  }

  get state(): BrokerState {
    return this.log.state;
  }

  get head(): number {
    return this.arrived;
  }

  get held(): { events: number; bytes: number } {
    return this.log.held;
  }

  /** Whether nothing is on its way. */
  get isQuiet(): boolean {
    return (
      this.#requests.isEmpty &&
      this.#answers.isEmpty &&
      this.#subscribing.isEmpty &&
      this.#received.isEmpty
    );
  }

  tick(): void {
    this.#subscribing.tick();
    this.#requests.tick();
    this.#received.tick();
    this.#answers.tick();
  }

  /** The connection breaks and is there again: entries that were on their way are lost, and only the log has them. */
  interrupt(): void {
    this.#received.lose();
    this.#receiver?.interrupted();
  }

  open(receiver: Receiver, bounds: LogBounds): void {
    this.#receiver = receiver;
    const relay: Receiver = {
      follows: (channel) => this.#listened.has(channel),
      receive: (entry) => this.#send(entry),
      interrupted: () => this.#receiver?.interrupted(),
    };
    this.log.open(relay, bounds);
  }

  append(publication: Publication): Promise<{ id: string }> {
    return this.#ask(() => this.log.append(publication));
  }

  listen(channel: string): Promise<void> {
    return new Promise((resolve) => {
      this.#subscribing.send(() => {
        this.#listened.add(channel);
        void this.log.listen(channel);
        this.#received.send(resolve);
      });
    });
  }

  unlisten(channel: string): void {
    this.#subscribing.send(() => {
      this.#listened.delete(channel);
      this.log.unlisten(channel);
    });
  }

  position(): Promise<Cursor> {
    return this.#ask(() => this.log.position());
  }

  read(channels: readonly string[], after: number, maxBytes: number): Promise<Page> {
    return this.#ask(() => this.log.read(channels, after, maxBytes));
  }

  clear(channel: string): Promise<void> {
    return this.#ask(() => this.log.clear(channel));
  }

  close(): Promise<void> {
    return this.log.close();
  }

  #send(entry: LogEntry): void {
    this.#received.send(() => {
      if (entry.epoch !== undefined) this.arrived = entry.offset;
      this.#receiver?.receive(entry);
    }, true);
  }

  #ask<T>(question: () => T | Promise<T>): Promise<T> {
    return new Promise((resolve) => {
      this.#requests.send(() => {
        const answer = question();
        this.#answers.send(() => resolve(answer));
      });
    });
  }
}
