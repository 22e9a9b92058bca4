/** A log in the memory of the test, and brokers of several nodes that a test cuts off. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type {
  Broker,
  ChannelState,
  Page,
  Publication,
  Receiver,
} from '../../src/brokers/broker.ts';
import { lostOffset } from '../../src/brokers/redis/log-snapshot.ts';
import { deferred, withLimits, type Deferred } from '../../src/common/async.ts';
import { Log, type HistoryLimits } from '../../src/log/log.ts';
import { LogEntry } from '../../src/log/log-entry.ts';
import type { Cursor } from '../../src/protocol/cursor.ts';

// How far the offsets jump when the log goes back.
const JUMP = 1_000;

let logs = 0;

/** A change of the log: an entry was appended, or the log has gone back and the offset jumps. */
type Change =
  | { readonly entry: LogEntry; readonly history: HistoryLimits }
  | { readonly from: number; readonly to: number };

/** A log that can go back to an earlier state, as Redis does that restarts from a snapshot. */
class NetworkLog {
  readonly epoch = `log${++logs}`;
  offset = 0;
  #changes: readonly Change[] = [];
  #log = makeLog();

  append(publication: Publication): LogEntry {
    const { history, data = '' } = publication;
    if (history === false) {
      return new LogEntry({ ...publication, data, epoch: undefined, offset: 0 });
    }
    const { epoch } = this;
    const entry = new LogEntry({ ...publication, data, epoch, offset: ++this.offset });
    this.#changes = [...this.#changes, { entry, history }];
    this.#log.append(entry, history);
    return entry;
  }

  /** Loses the newest changes. The offsets continue at a higher place. */
  goBack(count: number): void {
    const kept = this.#changes.slice(0, Math.max(0, this.#changes.length - count));
    this.#log = makeLog();
    let from = 0;
    for (const change of kept) {
      from = 'to' in change ? change.to : change.entry.offset;
      if ('entry' in change) this.#log.append(change.entry, change.history);
    }
    this.offset += JUMP;
    this.#changes = [...kept, { from, to: this.offset }];
  }

  read(channels: readonly string[], after: number, maxBytes: number): Page {
    const read = this.#log.read(channels, after, maxBytes);
    const jumps = this.#changes.filter((change) => 'to' in change);
    const lost = lostOffset({ origin: 0, jumps }, after);
    return {
      ...read,
      trimmed: read.trimmed.map((offset) => Math.max(offset, lost)),
      position: { epoch: this.epoch, offset: this.offset },
      resumedAt: jumps.at(-1)?.to,
    };
  }
}

function makeLog(): Log {
  return new Log(
    1e9,
    1_000,
    () => true,
    () => 0,
  );
}

/** The log, and the nodes that it notifies. */
export class Network {
  readonly nodes: NetworkBroker[] = [];
  log: NetworkLog = new NetworkLog();

  makeNode(): NetworkBroker {
    const node = new NetworkBroker(this);
    this.nodes.push(node);
    return node;
  }

  append(publication: Publication): LogEntry {
    const entry = this.log.append(publication);
    // A node decides when the entry arrives.
    for (const node of this.nodes) node.send(entry);
    return entry;
  }

  /** The log is lost, and another one begins. */
  lose(): void {
    this.log = new NetworkLog();
    for (const node of this.nodes) node.onRestarted(true);
  }

  /** The log loses its newest entries. */
  goBack(count: number): void {
    this.log.goBack(count);
    for (const node of this.nodes) node.onRestarted(false);
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

  /** The log has restarted: it is another one, or an earlier state of the same log. */
  onRestarted(isOtherLog: boolean): void {
    this.#inTransit = [];
    if (this.#connected === undefined) this.#receiver?.interrupted();
    if (isOtherLog) this.head = 0;
    void this.#catchUp();
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
    if (this.#connected !== undefined || this.#inTransit.length > 0) return;
    this.head = Math.max(this.head, this.#network.log.offset);
  }

  async append(publication: Publication): Promise<{ id: string }> {
    if (this.#connected !== undefined) throw new Error('the node is cut off');
    const { id } = this.#network.append(publication);
    await nextTurn();
    return { id };
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
      const { epoch, offset } = this.#network.log;
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
    const page = this.#network.log.read(channels, after, maxBytes);
    await nextTurn();
    return page;
  }

  startsOfNewest(channels: readonly string[]): readonly number[] {
    return channels.map(() => 0);
  }

  countHeld(): number {
    return 0;
  }

  channelState(): Promise<ChannelState> {
    return Promise.resolve('unknown');
  }

  clear(): Promise<void> {
    return Promise.resolve();
  }

  close(): Promise<void> {
    return Promise.resolve();
  }
}
