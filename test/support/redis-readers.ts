/**
 * A node with readers that follow its channels as streams do, and that write down what they were
 * given.
 */
import type { Broker, LogEntry } from '../../src/index.ts';
import { Node } from '../brokers/contract.ts';

const PAGE = 4_096;

/** Follows some channels from where the log stands when it begins. */
class Reader {
  /** Data of the events that it was given, in this order. */
  readonly delivered: string[] = [];
  gaps = 0;
  isLive = false;
  readonly #node: ReaderNode;
  readonly #channels: readonly string[];
  #cursor = 0;
  #epoch = '';
  #newest = 0;
  #reading: Promise<void> | undefined;

  constructor(node: ReaderNode, channels: readonly string[]) {
    this.#node = node;
    this.#channels = channels;
  }

  async start(): Promise<void> {
    await Promise.all(this.#channels.map((channel) => this.#node.listen(channel)));
    const { epoch, offset } = await this.#node.broker.position(undefined, this.#node.signal);
    this.#epoch = epoch;
    this.#cursor = offset;
    this.catchUp();
  }

  follows(channel: string): boolean {
    return this.#channels.includes(channel);
  }

  receive(entry: LogEntry): void {
    this.#newest = entry.offset;
    if (this.isLive && entry.offset > this.#cursor) this.#deliver([entry]);
  }

  catchUp(): void {
    this.isLive = false;
    this.#newest = 0;
    this.#reading ??= this.#read()
      // The broker is closed.
      .catch(() => {})
      .finally(() => {
        this.#reading = undefined;
      });
  }

  async stopped(): Promise<void> {
    await this.#reading;
  }

  async #read(): Promise<void> {
    while (!this.isLive) {
      const { interruptions, broker } = this.#node;
      const asked = broker.read(this.#channels, this.#cursor, PAGE, this.#node.signal);
      const page = await asked;
      if (page.position.epoch !== this.#epoch) {
        this.#epoch = page.position.epoch;
        this.#cursor = 0;
        this.gaps++;
        continue;
      }
      const trimmed = Math.max(...page.trimmed);
      if (trimmed > this.#cursor) this.gaps++;
      this.#deliver(page.entries.filter((entry) => entry.offset > this.#cursor));
      if (page.complete) this.#cursor = Math.max(this.#cursor, page.position.offset, trimmed);
      this.isLive =
        page.complete && interruptions === this.#node.interruptions && this.#newest <= this.#cursor;
    }
  }

  #deliver(entries: readonly LogEntry[]): void {
    for (const entry of entries) {
      this.delivered.push(entry.data);
      this.#cursor = entry.offset;
    }
  }
}

export class ReaderNode extends Node {
  readonly readers: Reader[] = [];
  /** Data of the events without history that came. */
  readonly passed: string[] = [];
  // Its readers wait for as long as it takes.
  readonly signal: AbortSignal = new AbortController().signal;

  constructor(broker: Broker) {
    super(broker, { maxHistory: 67_108_864, maxChannels: 100_000 });
  }

  /** Resolves when the start of the reader is known. */
  async follow(...channels: string[]): Promise<Reader> {
    const reader = new Reader(this, channels);
    this.readers.push(reader);
    await reader.start();
    return reader;
  }

  override receive(entry: LogEntry): void {
    if (entry.id === '') {
      this.passed.push(entry.data);
      return;
    }
    for (const reader of this.readers) if (reader.follows(entry.channel)) reader.receive(entry);
  }

  override interrupted(): void {
    super.interrupted();
    for (const reader of this.readers) reader.catchUp();
  }

  override async [Symbol.asyncDispose](): Promise<void> {
    await super[Symbol.asyncDispose]();
    for (const reader of this.readers) await reader.stopped();
  }
}
