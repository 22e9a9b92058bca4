/**
 * A remote broker with what tests of interruptions need: pages come late, the log can be lost, and
 * channels do not end.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Broker, Publication } from '../../src/index.ts';
import type { ChannelState, Page, Receiver } from '../../src/brokers/broker.ts';
import type { Cursor } from '../../src/protocol/cursor.ts';
import { LogEntry } from '../../src/log/log-entry.ts';

export class LossyBroker implements Broker {
  readonly state = 'open';
  readonly held = { events: 0, bytes: 0 };
  /**
   * Resolves when the broker listens to a channel. Channels without a promise are listened to at
   * once.
   */
  readonly listening: Map<string, Promise<void>> = new Map();
  /** Reads wait for this promise. */
  gate: Promise<void> = Promise.resolve();
  #epoch = 'A';
  #entries: LogEntry[] = [];
  #receiver: Receiver | undefined;

  get head(): number {
    return this.#entries.at(-1)?.offset ?? 0;
  }

  open(receiver: Receiver): void {
    this.#receiver = receiver;
  }

  append({ data = '', ...fields }: Publication): Promise<{ id: string }> {
    const entry = new LogEntry({ ...fields, data, epoch: this.#epoch, offset: this.head + 1 });
    this.#entries.push(entry);
    if (this.#receiver?.follows(entry.channel) === true) this.#receiver.receive(entry);
    return Promise.resolve({ id: entry.id });
  }

  listen(channel: string): Promise<void> | undefined {
    return this.listening.get(channel);
  }

  unlisten(): void {}

  position(): Cursor {
    return { epoch: this.#epoch, offset: this.head };
  }

  async read(channels: readonly string[], after: number): Promise<Page> {
    await nextTurn();
    await this.gate;
    const entries = this.#entries.filter(
      ({ channel, offset }) => channels.includes(channel) && offset > after,
    );
    return {
      entries,
      complete: true,
      trimmed: channels.map(() => 0),
      ended: channels.map(() => false),
      position: this.position(),
    };
  }

  countHeld(): number {
    return 0;
  }

  startsOfNewest(channels: readonly string[]): readonly number[] {
    return channels.map(() => 0);
  }

  channelState(name: string): Promise<ChannelState> {
    const isKnown = this.#entries.some(({ channel }) => channel === name);
    return Promise.resolve(isKnown ? 'open' : 'unknown');
  }

  clear(): Promise<void> {
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }

  /** The log is lost and another one begins, as after FLUSHALL. */
  lose(): void {
    this.#epoch = 'B';
    this.#entries = [];
    this.#receiver?.interrupted();
  }
}
