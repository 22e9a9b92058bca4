/**
 * Records the publishes on all nodes, and checks for each client the id rule: *when an id is
 * written to a stream, each event of its channels up to this id has been written before, or has
 * been reported in a gap*.
 *
 * The ledger does not depend on the implementation of the library. It uses the results of the
 * publishes, the items of the clients, and the content of the log at the end. An event that the log
 * holds at the end was never lost, so no gap excuses its absence.
 */
import { until } from '../support/wait.ts';
import { Client, type Item } from './client.ts';
import type { PublishResult, TestNode } from './nodes.ts';

/** One publish and its result. */
interface Entry {
  readonly n: number;
  readonly channel: string;
  readonly key: string | undefined;
  readonly startedAt: number;
  /** `'unknown'` also if the node died before it answered. */
  outcome: 'pending' | 'accepted' | 'none' | 'unknown';
  /** The id from the publish, or from a client that received the event. */
  id: string | undefined;
  error: string;
}

/** An id, parsed. */
interface Position {
  readonly epoch: string;
  readonly offset: number;
}

/** An error: the id rule was violated. */
export class Violation extends Error {}

export interface PublishOptions {
  /** Gives each event a key, so that `retry` is safe. */
  keyed?: boolean;
  /** Additional bytes of data for each event. */
  padding?: number;
}

/** A node, reduced to its method for publishing. */
export type Publisher = Pick<TestNode, 'publish'>;

/** The items that a client received. */
export type ClientRecord = Pick<Client, 'channels' | 'items'>;

export interface VerifyOptions {
  /**
   * A node that was started just now and has an empty cache. If the log was trimmed, such a node
   * must read the log, because the cache of another node may hold events that Redis does not hold
   * any more.
   */
  fresh?: TestNode;
  ms?: number;
}

export class Ledger {
  readonly #entries: Entry[] = [];
  // Entries of one request. The node must append them in this order.
  readonly #batches: Entry[][] = [];
  #pending = 0;
  // Violations in the results of publishes.
  readonly #faults: string[] = [];

  get published(): number {
    return this.#entries.length;
  }

  /** Number of publishes with this outcome. */
  count(outcome: Entry['outcome']): number {
    return this.#entries.filter((entry) => entry.outcome === outcome).length;
  }

  /** The errors of publishes that were not accepted. */
  get errors(): readonly string[] {
    return this.#entries.map(({ error }) => error).filter((error) => error !== '');
  }

  /**
   * Publishes events on a node, all in one turn of that node. Never rejects.
   * @returns the numbers of the accepted events
   */
  async publish(
    node: Publisher,
    channel: string,
    count = 1,
    { keyed = false, padding = 0 }: PublishOptions = {},
  ): Promise<number[]> {
    const startedAt = performance.now();
    const batch = Array.from({ length: count }, (): Entry => {
      const n = this.#entries.length;
      const key = keyed ? `publish ${n}` : undefined;
      const entry: Entry = {
        n,
        channel,
        key,
        startedAt,
        outcome: 'pending',
        id: undefined,
        error: '',
      };
      this.#entries.push(entry);
      return entry;
    });
    this.#batches.push(batch);
    await this.#send(node, channel, batch, padding);
    return batch.filter(({ outcome }) => outcome === 'accepted').map(({ n }) => n);
  }

  /**
   * Publishes events that were not accepted again, if they have a key.
   * @returns the number of events that were still not accepted
   */
  async retry(node: Publisher): Promise<number> {
    const refused = this.#entries.filter(
      ({ key, outcome }) => key !== undefined && (outcome === 'none' || outcome === 'unknown'),
    );
    for (const entry of refused) await this.#send(node, entry.channel, [entry], 0);
    return refused.filter(({ outcome }) => outcome !== 'accepted').length;
  }

  async #send(
    node: Publisher,
    channel: string,
    batch: readonly Entry[],
    padding: number,
  ): Promise<void> {
    const pad = 'x'.repeat(padding);
    this.#pending++;
    try {
      const answers = await node.publish(
        channel,
        batch.map(({ n, key }) => ({ data: { n, channel, pad }, key })),
      );
      for (const [index, entry] of batch.entries()) {
        this.#recordAnswer(entry, answers[index] as PublishResult);
      }
    } catch (error) {
      for (const entry of batch) {
        entry.outcome = 'unknown';
        entry.error = String(error);
      }
    } finally {
      this.#pending--;
    }
  }

  /**
   * Publishes events until one is accepted.
   * @returns the number of the accepted event
   */
  async publishWithRetry(
    choose: () => TestNode | undefined,
    channel: string,
    ms = 40_000,
  ): Promise<number> {
    let n: number | undefined;
    await until(
      `a publish to ${channel} to be accepted`,
      async () => {
        const node = choose();
        if (node !== undefined) [n] = await this.publish(node, channel);
        return n !== undefined;
      },
      ms,
    );
    return n as number;
  }

  /**
   * Waits until all nodes work again and every client has every event. Then checks the id rule for
   * each client.
   * @param choose returns one of the running nodes
   * @throws {Violation} if the rule was violated for a client
   */
  async verify(
    clients: readonly Client[],
    choose: () => TestNode | undefined,
    { fresh, ms = 40_000 }: VerifyOptions = {},
  ): Promise<void> {
    await until('the results of all publishes', () => this.#pending === 0, ms);
    await until(
      'a position of every client',
      () => clients.every((client) => client.hasPosition),
      ms,
    );
    const channels = [...new Set(clients.flatMap((client) => client.channels))];
    const last = new Map<string, Position>();
    for (const channel of channels) {
      const n = await this.publishWithRetry(choose, channel, ms);
      last.set(channel, parsePosition(this.#entries[n]?.id as string));
    }
    // A client may also be beyond the last event: losses up to there have been reported.
    const isAtHead = (client: Client) => {
      const { epoch, offset } = parsePosition(client.lastEventId || 'none.0');
      return client.channels.every(
        (channel) =>
          epoch === last.get(channel)?.epoch && offset >= (last.get(channel)?.offset ?? 0),
      );
    };
    const waitFor = async (all: readonly Client[], who: string): Promise<void> => {
      try {
        await until(`${who} to reach the head of the log`, () => all.every(isAtHead), ms);
      } catch (error) {
        const behind = all.find((client) => !isAtHead(client));
        throw new Violation(
          `${String(error)}; last items of a client:\n${formatLastItems(behind?.items ?? [])}`,
          {
            cause: error,
          },
        );
      }
    };
    await waitFor(clients, 'every client');
    // The content of the log, as two nodes read it.
    using one = new Client(channels, {
      choose: chooseOnce(() => fresh ?? choose()),
      path: '/history',
    });
    using other = new Client(channels, {
      choose: chooseOnce(() => fresh ?? choose()),
      path: '/history',
    });
    await waitFor([one, other], 'both readers of the log');
    this.audit(clients, one, other);
  }

  /**
   * Checks the id rule for each client.
   * @param held the content of the log, as one node reads it
   * @param heldElsewhere the content of the log, as another node reads it
   * @throws {Violation} if the rule was violated
   */
  audit(
    clients: readonly ClientRecord[],
    held: ClientRecord,
    heldElsewhere: ClientRecord = held,
  ): void {
    this.#collectIds([...clients, held, heldElsewhere]);
    const [heldNumbers, otherNumbers] = [eventNumbersOf(held), eventNumbersOf(heldElsewhere)];
    const difference = [...heldNumbers, ...otherNumbers].find(
      (n) => !heldNumbers.has(n) || !otherNumbers.has(n),
    );
    if (difference !== undefined) {
      throw new Violation(`one node reads ${difference} in the log, another does not`);
    }
    this.#expectOrderOfCalls();
    const truth = new Truth(this.#entries, heldNumbers);
    for (const client of clients) new ClientAudit(client, truth).audit();
  }

  #recordAnswer(entry: Entry, answer: PublishResult): void {
    if ('id' in answer) {
      entry.outcome = 'accepted';
      entry.id ??= answer.id;
      if (entry.id !== answer.id) {
        this.#faults.push(`${entry.n} has id ${entry.id}, but ${answer.id} with the same key`);
      }
      return;
    }
    const { code, message, delivery } = answer;
    if (delivery === undefined) {
      this.#faults.push(`${entry.n} was refused without a delivery: ${message}`);
    }
    entry.outcome = delivery ?? 'unknown';
    entry.error = `${code} ${delivery}: ${message}`;
  }

  /**
   * Combines the results of publishes with the items of clients. Each event must have one id, and
   * no two events the same id.
   */
  #collectIds(clients: readonly ClientRecord[]): void {
    if (this.#faults[0] !== undefined) throw new Violation(this.#faults[0]);
    for (const { items } of clients) {
      for (const item of items) {
        if (item.kind === 'fault') throw new Violation(item.description);
        if (item.kind === 'event') this.#matchEvent(item);
      }
    }
    const byId = new Map<string, number>();
    for (const { n, id } of this.#entries) {
      if (id === undefined) continue;
      if (byId.has(id)) throw new Violation(`${byId.get(id)} and ${n} have the same id ${id}`);
      byId.set(id, n);
    }
  }

  #matchEvent({ n, channel, id }: Item & { kind: 'event' }): void {
    const entry = this.#entries[n];
    if (entry?.channel !== channel) throw new Violation(`${n} of ${channel} was never published`);
    if (entry.outcome === 'none') {
      throw new Violation(`${n} came as ${id}, but its publish failed: ${entry.error}`);
    }
    if (entry.outcome === 'pending') {
      throw new Violation(`${n} came as ${id}, but its publish has no result`);
    }
    entry.id ??= id;
    if (entry.id !== id) throw new Violation(`${n} came as ${id}, but has id ${entry.id}`);
  }

  #expectOrderOfCalls(): void {
    for (const batch of this.#batches) {
      let before: Position | undefined;
      for (const { n, id } of batch) {
        if (id === undefined) continue;
        const place = parsePosition(id);
        if (before !== undefined && before.epoch === place.epoch && before.offset >= place.offset) {
          throw new Violation(
            `${n} was published later in the same turn, but has the lower id ${id}`,
          );
        }
        before = place;
      }
    }
  }
}

/** All events, in the order of the logs. */
class Truth {
  /** Events by epoch and channel, in order. */
  readonly #events = new Map<string, { n: number; offset: number }[]>();
  readonly #heldEvents: ReadonlySet<number>;
  // By epoch, in the order of the starts of the publishes: the lowest offset of this and all later
  // publishes.
  readonly #lowestOffsets = new Map<string, { startedAt: number; lowest: number }[]>();

  constructor(entries: readonly Entry[], heldNumbers: ReadonlySet<number>) {
    this.#heldEvents = heldNumbers;
    for (const { n, channel, id, startedAt } of entries) {
      if (id === undefined) continue;
      const { epoch, offset } = parsePosition(id);
      getOrCreateList(this.#events, `${epoch} ${channel}`).push({ n, offset });
      getOrCreateList(this.#lowestOffsets, epoch).push({ startedAt, lowest: offset });
    }
    for (const events of this.#events.values()) {
      events.sort((one, other) => one.offset - other.offset);
    }
    for (const fresh of this.#lowestOffsets.values()) {
      fresh.sort((one, other) => one.startedAt - other.startedAt);
      for (let index = fresh.length - 2; index >= 0; index--) {
        fresh[index]!.lowest = Math.min(fresh[index]!.lowest, fresh[index + 1]!.lowest);
      }
    }
  }

  /** Events of the channel with an offset in the interval (after, upTo]. */
  between(
    epoch: string,
    channel: string,
    after: number,
    upTo: number,
  ): { n: number; offset: number }[] {
    const events = this.#events.get(`${epoch} ${channel}`) ?? [];
    const isBeyond = (bound: number) => (event: { offset: number }) => event.offset > bound;
    return events.slice(
      findFirstIndex(events, isBeyond(after)),
      findFirstIndex(events, isBeyond(upTo)),
    );
  }

  isHeld(n: number): boolean {
    return this.#heldEvents.has(n);
  }

  /** The lowest offset of all events whose publish started after this time. */
  lowestSince(epoch: string, at: number): number {
    const fresh = this.#lowestOffsets.get(epoch) ?? [];
    return fresh[findFirstIndex(fresh, ({ startedAt }) => startedAt > at)]?.lowest ?? Infinity;
  }
}

/** Checks the items of one client, one after the other. */
class ClientAudit {
  readonly #client: ClientRecord;
  readonly #truth: Truth;
  // All events up to here were checked. `undefined` before the first checkpoint.
  #position: Position | undefined;
  // Whether a gap reported that the cursor belongs to another log. The next id may then be
  // anywhere.
  #isForeign = false;
  // Channels with a reported loss, up to this offset.
  #reportedLosses = new Map<string, number>();
  // Channels of snapshots since the client has connected, each with the cursor of the snapshot.
  #snapshots = new Map<string, Position>();
  // Whether the client has connected with an id.
  #isResumed = false;
  // Events that the client received from this log.
  #received = new Set<number>();
  #index = 0;

  constructor(client: ClientRecord, truth: Truth) {
    this.#client = client;
    this.#truth = truth;
  }

  audit(): void {
    for (const [index, item] of this.#client.items.entries()) {
      this.#index = index;
      if (item.kind === 'connected') this.#onConnected(item.lastEventId);
      else if (item.kind === 'gap') this.#onGap(item);
      else if (item.kind === 'snapshot') this.#onSnapshot(item);
      else if (item.kind === 'checkpoint') this.#onCheckpoint(parsePosition(item.id), item.at);
      else if (item.kind === 'event') this.#onEvent(item, parsePosition(item.id));
    }
  }

  #onConnected(lastEventId: string): void {
    // A gap must be reported again if the client disconnected before an id beyond the gap.
    this.#reportedLosses = new Map();
    this.#snapshots = new Map();
    this.#isForeign = false;
    this.#isResumed = lastEventId !== '';
    if (lastEventId === '') this.#position = undefined;
  }

  #onGap({
    channels,
    after,
    cursor,
  }: Pick<Item & { kind: 'gap' }, 'channels' | 'after' | 'cursor'>): void {
    if (
      channels.length === 0 ||
      channels.some((channel) => !this.#client.channels.includes(channel))
    ) {
      this.#violation(`gap in ${channels.join()}`);
    }
    if (this.#position === undefined && after !== '') {
      this.#violation('gap after an id that the client did not receive');
    }
    if (after === '') {
      this.#isForeign = true;
      if (channels.length !== this.#client.channels.length) {
        this.#violation('gap for another log does not name all channels');
      }
    } else if (
      parsePosition(after).offset < (this.#position as Position).offset ||
      parsePosition(cursor).epoch !== this.#position?.epoch
    ) {
      this.#violation(
        `gap after ${after} up to ${cursor}, but the client is at ${formatId(this.#position)}`,
      );
    }
    for (const channel of channels) this.#reportedLosses.set(channel, parsePosition(cursor).offset);
  }

  #onCheckpoint(to: Position, at: number): void {
    if (this.#position === undefined) {
      this.#position = to;
      this.#isForeign = false;
    } else {
      this.#enterLog(to);
      if (to.offset < this.#position.offset) {
        this.#violation(
          `the checkpoint ${formatId(to)} steps back from ${formatId(this.#position)}`,
        );
      }
    }
    this.#moveTo(to, at);
  }

  /**
   * The snapshot stands for all events of its channels up to its cursor, also for those that the log
   * holds.
   */
  #onSnapshot({ reason, channels, lastEventId, cursor }: Item & { kind: 'snapshot' }): void {
    const isStart = reason === 'start';
    if (isStart && (this.#isResumed || this.#received.size > 0)) {
      this.#violation('a snapshot of the start, for a client that has an id');
    }
    if (isStart && channels.length !== this.#client.channels.length) {
      this.#violation('a snapshot of the start does not name all channels');
    }
    const to = parsePosition(cursor);
    if (isStart) this.#position ??= to;
    else {
      // The application gets the id of the client, also if it belongs to another log.
      const isForeign = lastEventId === '' || parsePosition(lastEventId).epoch !== to.epoch;
      this.#onGap({ channels, after: isForeign ? '' : lastEventId, cursor });
    }
    for (const channel of channels) this.#snapshots.set(channel, to);
  }

  #onEvent({ n, channel, at }: Item & { kind: 'event' }, to: Position): void {
    if (this.#position === undefined) {
      this.#violation(`the event ${formatId(to)} comes before any checkpoint`);
    }
    this.#enterLog(to);
    if (to.offset <= this.#position.offset) {
      this.#violation(`${formatId(to)} comes after ${formatId(this.#position)}`);
    }
    if (this.#received.has(n)) this.#violation(`${n} comes twice`);
    if (this.#isInSnapshot(channel, to)) {
      this.#violation(`${formatId(to)} comes after the snapshot of ${channel} that contains it`);
    }
    this.#received.add(n);
    this.#moveTo(to, at);
  }

  /** Continues with another log, if a gap was reported. */
  #enterLog(to: Position): void {
    if (this.#isForeign) {
      this.#isForeign = false;
      this.#position = { epoch: to.epoch, offset: 0 };
      this.#received = new Set();
    } else if (to.epoch !== this.#position?.epoch) {
      this.#violation(
        `${formatId(to)} is of another log than ${formatId(this.#position)}, without a gap`,
      );
    }
  }

  /**
   * The id rule: each event up to the id was written, or was reported as lost and is not in the
   * log.
   */
  #moveTo(to: Position, at: number): void {
    const { epoch, offset: from } = this.#position as Position;
    for (const channel of this.#client.channels) {
      for (const { n, offset } of this.#truth.between(epoch, channel, from, to.offset)) {
        if (this.#received.has(n)) continue;
        if (this.#isInSnapshot(channel, { epoch, offset })) continue;
        const isReported = offset <= (this.#reportedLosses.get(channel) ?? 0);
        if (isReported && !this.#truth.isHeld(n)) continue;
        const reason = isReported
          ? 'a gap was reported, but the log holds it'
          : 'no gap was reported';
        this.#violation(
          `${formatId(to)} was written, ${channel}@${offset} (${n}) was not; ${reason}`,
        );
      }
    }
    const lowest = this.#truth.lowestSince(epoch, at);
    if (to.offset >= lowest) {
      this.#violation(`${formatId(to)} was written before ${epoch}.${lowest} was published`);
    }
    this.#position = to;
  }

  #isInSnapshot(channel: string, { epoch, offset }: Position): boolean {
    const snapshot = this.#snapshots.get(channel);
    return snapshot?.epoch === epoch && offset <= snapshot.offset;
  }

  #violation(description: string): never {
    throw new Violation(
      `${description}\n${formatLastItems(this.#client.items.slice(0, this.#index + 1))}`,
    );
  }
}

function eventNumbersOf({ items }: ClientRecord): Set<number> {
  return new Set(items.flatMap((item) => (item.kind === 'event' ? [item.n] : [])));
}

function parsePosition(id: string): Position {
  const [, epoch, digits] = /^([\w-]+)\.(\d+)$/.exec(id) ?? [];
  if (epoch === undefined) throw new Violation(`${JSON.stringify(id)} is not an id`);
  return { epoch, offset: Number(digits) };
}

function formatId(place: Position | undefined): string {
  return place === undefined ? 'no position' : `${place.epoch}.${place.offset}`;
}

function formatLastItems(items: readonly Item[]): string {
  return items
    .slice(-12)
    .map((item) => `  ${JSON.stringify(item)}`)
    .join('\n');
}

/**
 * Binary search: index of the first item for which the test is true. The test must be true for all
 * later items.
 */
function findFirstIndex<T>(sorted: readonly T[], test: (item: T) => boolean): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (test(sorted[middle] as T)) high = middle;
    else low = middle + 1;
  }
  return low;
}

function getOrCreateList<T>(map: Map<string, T[]>, key: string): T[] {
  let list = map.get(key);
  if (list === undefined) map.set(key, (list = []));
  return list;
}

/**
 * Returns a function that chooses a node only once, so that a reader of the whole log does not
 * reconnect.
 */
function chooseOnce(choose: () => TestNode | undefined): () => TestNode | undefined {
  let isChosen = false;
  return () => {
    const node = isChosen ? undefined : choose();
    isChosen ||= node !== undefined;
    return node;
  };
}
