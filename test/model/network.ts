/** A log in the memory of the test, and brokers of several nodes that a test cuts off. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { memoryBroker, type Broker } from '../../src/index.ts';
import type { ChannelState, Page, Publication, Receiver } from '../../src/brokers/broker.ts';
import { deferred, withLimits, type Deferred } from '../../src/common/async.ts';
import type { LogEntry } from '../../src/log/log-entry.ts';
import type { Cursor } from '../../src/protocol/cursor.ts';

/** The log, and the nodes that it notifies. */
export class Network {
  readonly nodes: NetworkBroker[] = [];
  log: Broker = memoryBroker();

  constructor() {
    this.#open();
  }

  makeNode(): NetworkBroker {
    const node = new NetworkBroker(this);
    this.nodes.push(node);
    return node;
  }

  /** The log is lost, and another one begins. */
  lose(): void {
    this.log = memoryBroker();
    this.#open();
    for (const node of this.nodes) node.onLost();
  }

  #open(): void {
    this.log.open(
      {
        // A node decides when the entry arrives.
        follows: () => true,
        receive: (entry) => {
          for (const node of this.nodes) node.send(entry);
        },
        interrupted: () => {},
      },
      { maxHistory: 1e9, maxChannels: 1_000 },
    );
  }
}

/** The broker of one node. Entries arrive some turns after they were appended. */
export class NetworkBroker implements Broker {
  readonly held: Broker['held'] = { events: 0, bytes: 0 };
  head = 0;
  readonly #network: Network;
  #receiver: Receiver | undefined;
  #inTransit: LogEntry[] = [];
  #isDelivering = false;
  #isStalled = false;
  // Resolves when the node is connected.
  #connected: Deferred<void> | undefined;

  constructor(network: Network) {
    this.#network = network;
  }

  get state(): 'open' | 'broken' {
    return this.#connected === undefined ? 'open' : 'broken';
  }

  open(receiver: Receiver): void {
    this.#receiver = receiver;
  }

  /** Nothing arrives any more. */
  cut(): void {
    this.#connected ??= deferred();
    this.#inTransit = [];
  }

  heal(): void {
    if (this.#connected === undefined) return;
    this.#receiver?.interrupted();
    this.#connected.resolve();
    this.#connected = undefined;
    void this.#catchUp();
  }

  /** Entries wait in the network until {@link flow}. */
  stall(): void {
    this.#isStalled = true;
  }

  flow(): void {
    this.#isStalled = false;
    void this.#deliver();
  }

  onLost(): void {
    this.#inTransit = [];
    this.head = 0;
    if (this.#connected === undefined) this.#receiver?.interrupted();
  }

  send(entry: LogEntry): void {
    if (this.#connected !== undefined) return;
    this.#inTransit.push(entry);
    void this.#deliver();
  }

  async #deliver(): Promise<void> {
    if (this.#isDelivering) return;
    this.#isDelivering = true;
    while (this.#inTransit.length > 0 && !this.#isStalled) {
      await nextTurn();
      if (this.#isStalled) break;
      const entry = this.#inTransit.shift();
      if (entry === undefined) continue;
      if (entry.epoch !== undefined) this.head = entry.offset;
      if (this.#receiver?.follows(entry.channel) === true) this.#receiver.receive(entry);
    }
    this.#isDelivering = false;
  }

  /** Entries up to the end of the log count as received: the streams read them from the log. */
  async #catchUp(): Promise<void> {
    await nextTurn();
    const position = this.#network.log.position() as Cursor;
    if (this.#inTransit.length === 0) this.head = Math.max(this.head, position.offset);
  }

  async append(publication: Publication): Promise<{ id: string }> {
    if (this.#connected !== undefined) throw new Error('the node is cut off');
    const answer = this.#network.log.append(publication);
    await nextTurn();
    return answer;
  }

  async listen(): Promise<void> {
    await nextTurn();
    await this.#connected?.promise;
  }

  unlisten(): void {}

  async position(atLeast?: Cursor, signal?: AbortSignal): Promise<Cursor> {
    for (;;) {
      await nextTurn();
      if (this.#connected !== undefined) await withLimits(this.#connected.promise, { signal });
      signal?.throwIfAborted();
      const { epoch, offset } = this.#network.log.position() as Cursor;
      if (atLeast?.epoch !== epoch) return { epoch, offset: this.head };
      const isReached = atLeast.offset <= this.head || atLeast.offset > offset;
      if (isReached) return { epoch, offset: this.head };
    }
  }

  async read(
    channels: readonly string[],
    after: number,
    maxBytes: number,
    signal?: AbortSignal,
  ): Promise<Page> {
    await nextTurn();
    while (this.#connected !== undefined) await withLimits(this.#connected.promise, { signal });
    const page = this.#network.log.read(channels, after, maxBytes) as Page;
    await nextTurn();
    return page;
  }

  startsOfNewest(channels: readonly string[]): readonly number[] {
    return channels.map(() => 0);
  }

  countHeld(): number {
    return 0;
  }

  channelState(channel: string): Promise<ChannelState> {
    return this.#network.log.channelState(channel);
  }

  clear(channel: string): Promise<void> {
    return this.#network.log.clear(channel);
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}
