/**
 * What was published on all nodes, and whether every client got its due of it by the id rule (DESIGN.md, 2.3, rule 0): *when an id
 * is written to a stream, everything at or below it that the stream follows has been written before it, or has been told as a gap*.
 * It knows nothing of how the library does it: it has the answers to the publishes, what the clients got, and what the log holds
 * at the end. What it holds then it has held since, so of that no gap excuses anything.
 */
import { until } from '../support/wait.ts';
import { Client, type Item } from './client.ts';
import type { Published, TestNode } from './nodes.ts';

/** One publish, and what the publisher was told. */
interface Entry {
  readonly n: number;
  readonly channel: string;
  readonly key: string | undefined;
  readonly startedAt: number;
  /** `'unknown'` also where the node died before it answered. */
  outcome: 'pending' | 'accepted' | 'none' | 'unknown';
  /** As it was accepted, or as a client got it. */
  id: string | undefined;
  error: string;
}

interface Place {
  readonly epoch: string;
  readonly offset: number;
}

/** A promise that was not kept. */
export class Violation extends Error {}

export interface PublishOptions {
  /** Gives each a key of its own, so that `retry` is safe. */
  keyed?: boolean;
  /** Bytes of data besides what the ledger needs. */
  padding?: number;
}

/** Whoever publishes. */
export type Publisher = Pick<TestNode, 'publish'>;

/** Whoever got something. */
export type Witness = Pick<Client, 'channels' | 'items'>;

export interface SettleOptions {
  /**
   * A node that was started just now and so knows only what Redis holds. Where histories are cut it has to be asked: another may
   * still have what Redis has not.
   */
  fresh?: TestNode;
  ms?: number;
}

export class Ledger {
  readonly #entries: Entry[] = [];
  // Those of one request, which the node was to append in this order.
  readonly #batches: Entry[][] = [];
  #pending = 0;
  // Of answers to publishers.
  readonly #faults: string[] = [];

  get published(): number {
    return this.#entries.length;
  }

  /** Publishes whose fate is known by now. */
  count(outcome: Entry['outcome']): number {
    return this.#entries.filter((entry) => entry.outcome === outcome).length;
  }

  /** What the publishers were told that were refused. */
  get errors(): readonly string[] {
    return this.#entries.map(({ error }) => error).filter((error) => error !== '');
  }

  /** Publishes so many events on a node, in one turn of it. Never rejects. @returns those that were accepted */
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

  /** Publishes what was refused once more, with the same keys, where the keys make that safe. @returns how many are still refused */
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
      for (const [index, entry] of batch.entries()) this.#note(entry, answers[index] as Published);
    } catch (error) {
      for (const entry of batch) {
        entry.outcome = 'unknown';
        entry.error = String(error);
      }
    } finally {
      this.#pending--;
    }
  }

  /** Publishes until one is accepted. @returns its number */
  async publishSurely(
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
   * Waits until all is well again and everybody has everything, and then looks whether the id rule was kept for each of them.
   * @param choose one of the nodes that run
   * @throws {Violation}
   */
  async settle(
    clients: readonly Client[],
    choose: () => TestNode | undefined,
    { fresh, ms = 40_000 }: SettleOptions = {},
  ): Promise<void> {
    await until('every publish to have its answer', () => this.#pending === 0, ms);
    await until('everybody to have a place', () => clients.every((client) => client.isPlaced), ms);
    const channels = [...new Set(clients.flatMap((client) => client.channels))];
    const last = new Map<string, Place>();
    for (const channel of channels) {
      const n = await this.publishSurely(choose, channel, ms);
      last.set(channel, placeOf(this.#entries[n]?.id as string));
    }
    // Or beyond: what has been lost by now it has been told of.
    const isThere = (client: Client) => {
      const { epoch, offset } = placeOf(client.lastEventId || 'nowhere.0');
      return client.channels.every(
        (channel) =>
          epoch === last.get(channel)?.epoch && offset >= (last.get(channel)?.offset ?? 0),
      );
    };
    const waitFor = async (all: readonly Client[], who: string): Promise<void> => {
      try {
        await until(`${who} to be where the log is`, () => all.every(isThere), ms);
      } catch (error) {
        const behind = all.find((client) => !isThere(client));
        throw new Violation(`${String(error)}; the last of one:\n${tailOf(behind?.items ?? [])}`, {
          cause: error,
        });
      }
    };
    await waitFor(clients, 'everybody');
    // What the log holds now, as one node reads it, and as another.
    using one = new Client(channels, {
      choose: onlyOnce(() => fresh ?? choose()),
      path: '/history',
    });
    using other = new Client(channels, {
      choose: onlyOnce(() => fresh ?? choose()),
      path: '/history',
    });
    await waitFor([one, other], 'who reads the log');
    this.audit(clients, one, other);
  }

  /** @throws {Violation} */
  audit(clients: readonly Witness[], held: Witness, heldElsewhere: Witness = held): void {
    this.#collect([...clients, held, heldElsewhere]);
    const [holding, elsewhere] = [numbersOf(held), numbersOf(heldElsewhere)];
    const differing = [...holding, ...elsewhere].find((n) => !holding.has(n) || !elsewhere.has(n));
    if (differing !== undefined) {
      throw new Violation(`one node reads ${differing} in the log, another does not`);
    }
    this.#expectOrderOfCalls();
    const truth = new Truth(this.#entries, holding);
    for (const client of clients) new Account(client, truth).audit();
  }

  #note(entry: Entry, answer: Published): void {
    if ('id' in answer) {
      entry.outcome = 'accepted';
      entry.id ??= answer.id;
      if (entry.id !== answer.id) {
        this.#faults.push(`${entry.n} is ${entry.id}, and with the same key ${answer.id}`);
      }
      return;
    }
    const { code, message, delivery } = answer;
    if (delivery === undefined) {
      this.#faults.push(`${entry.n} was refused without a word on its delivery: ${message}`);
    }
    entry.outcome = delivery ?? 'unknown';
    entry.error = `${code} ${delivery}: ${message}`;
  }

  /** Brings together what publishers were told and what clients got: each event has one id, and no two have the same. */
  #collect(clients: readonly Witness[]): void {
    if (this.#faults[0] !== undefined) throw new Violation(this.#faults[0]);
    for (const { items } of clients) {
      for (const item of items) {
        if (item.kind === 'fault') throw new Violation(item.what);
        if (item.kind === 'event') this.#match(item);
      }
    }
    const byId = new Map<string, number>();
    for (const { n, id } of this.#entries) {
      if (id === undefined) continue;
      if (byId.has(id)) throw new Violation(`${byId.get(id)} and ${n} have the same id ${id}`);
      byId.set(id, n);
    }
  }

  #match({ n, channel, id }: Item & { kind: 'event' }): void {
    const entry = this.#entries[n];
    if (entry?.channel !== channel) throw new Violation(`${n} of ${channel} was never published`);
    if (entry.outcome === 'none') {
      throw new Violation(`${n} came as ${id}, but its publisher was told: ${entry.error}`);
    }
    if (entry.outcome === 'pending') {
      throw new Violation(`${n} came as ${id}, and its publisher was never told`);
    }
    entry.id ??= id;
    if (entry.id !== id) throw new Violation(`${n} came as ${id} and is ${entry.id}`);
  }

  #expectOrderOfCalls(): void {
    for (const batch of this.#batches) {
      let before: Place | undefined;
      for (const { n, id } of batch) {
        if (id === undefined) continue;
        const place = placeOf(id);
        if (before !== undefined && before.epoch === place.epoch && before.offset >= place.offset) {
          throw new Violation(
            `${n} was published later in the same turn, and got the lower id ${id}`,
          );
        }
        before = place;
      }
    }
  }
}

/** Everything that there was, in the order of the logs. */
class Truth {
  /** By epoch and channel, in order. */
  readonly #events = new Map<string, { n: number; offset: number }[]>();
  readonly #holding: ReadonlySet<number>;
  // By epoch: in the order in which publishing began, with the lowest offset of any from there on.
  readonly #fresh = new Map<string, { startedAt: number; lowest: number }[]>();

  constructor(entries: readonly Entry[], holding: ReadonlySet<number>) {
    this.#holding = holding;
    for (const { n, channel, id, startedAt } of entries) {
      if (id === undefined) continue;
      const { epoch, offset } = placeOf(id);
      listIn(this.#events, `${epoch} ${channel}`).push({ n, offset });
      listIn(this.#fresh, epoch).push({ startedAt, lowest: offset });
    }
    for (const events of this.#events.values()) {
      events.sort((one, other) => one.offset - other.offset);
    }
    for (const fresh of this.#fresh.values()) {
      fresh.sort((one, other) => one.startedAt - other.startedAt);
      for (let index = fresh.length - 2; index >= 0; index--) {
        fresh[index]!.lowest = Math.min(fresh[index]!.lowest, fresh[index + 1]!.lowest);
      }
    }
  }

  /** Events of the channel in (after, upTo]. */
  between(
    epoch: string,
    channel: string,
    after: number,
    upTo: number,
  ): { n: number; offset: number }[] {
    const events = this.#events.get(`${epoch} ${channel}`) ?? [];
    const isBeyond = (bound: number) => (event: { offset: number }) => event.offset > bound;
    return events.slice(firstOf(events, isBeyond(after)), firstOf(events, isBeyond(upTo)));
  }

  isHeld(n: number): boolean {
    return this.#holding.has(n);
  }

  /** The lowest offset of what was published only after the moment. */
  lowestSince(epoch: string, at: number): number {
    const fresh = this.#fresh.get(epoch) ?? [];
    return fresh[firstOf(fresh, ({ startedAt }) => startedAt > at)]?.lowest ?? Infinity;
  }
}

/** One client's items, read one by one beside what it was owed. */
class Account {
  readonly #client: Witness;
  readonly #truth: Truth;
  // Up to here everything was accounted for; `undefined` as long as the client has no place.
  #place: Place | undefined;
  // It was told that its cursor is of no use: what comes may begin anywhere.
  #isForeign = false;
  // Of these channels it was told a loss, up to this offset of the log that comes.
  #told = new Map<string, number>();
  // Since the client has its place in this log.
  #received = new Set<number>();
  #index = 0;

  constructor(client: Witness, truth: Truth) {
    this.#client = client;
    this.#truth = truth;
  }

  audit(): void {
    for (const [index, item] of this.#client.items.entries()) {
      this.#index = index;
      if (item.kind === 'connected') this.#connected(item.lastEventId);
      else if (item.kind === 'gap') this.#gap(item);
      else if (item.kind === 'checkpoint') this.#checkpoint(placeOf(item.id), item.at);
      else if (item.kind === 'event') this.#event(item.n, placeOf(item.id), item.at);
    }
  }

  #connected(lastEventId: string): void {
    // As far as no id beyond it has come, it has to be told again.
    this.#told = new Map();
    this.#isForeign = false;
    if (lastEventId === '') this.#place = undefined;
  }

  #gap({ channels, after, cursor }: Item & { kind: 'gap' }): void {
    if (
      channels.length === 0 ||
      channels.some((channel) => !this.#client.channels.includes(channel))
    ) {
      this.#violation(`a gap of ${channels.join()}`);
    }
    if (this.#place === undefined && after !== '') {
      this.#violation('a gap after an id that the client has not got');
    }
    if (after === '') {
      this.#isForeign = true;
      if (channels.length !== this.#client.channels.length) {
        this.#violation('another log, and not all channels are named');
      }
    } else if (
      placeOf(after).offset < (this.#place as Place).offset ||
      placeOf(cursor).epoch !== this.#place?.epoch
    ) {
      this.#violation(
        `a gap after ${after} up to ${cursor}, where the client is at ${show(this.#place)}`,
      );
    }
    for (const channel of channels) this.#told.set(channel, placeOf(cursor).offset);
  }

  #checkpoint(to: Place, at: number): void {
    if (this.#place === undefined) {
      this.#place = to;
      this.#isForeign = false;
    } else {
      this.#enter(to);
      if (to.offset < this.#place.offset) {
        this.#violation(`the checkpoint ${show(to)} steps back from ${show(this.#place)}`);
      }
    }
    this.#moveTo(to, at);
  }

  #event(n: number, to: Place, at: number): void {
    if (this.#place === undefined) {
      this.#violation(`the event ${show(to)} comes before any checkpoint`);
    }
    this.#enter(to);
    if (to.offset <= this.#place.offset) {
      this.#violation(`${show(to)} comes after ${show(this.#place)}`);
    }
    if (this.#received.has(n)) this.#violation(`${n} comes twice`);
    this.#received.add(n);
    this.#moveTo(to, at);
  }

  /** Begins another log, where the client was told so. */
  #enter(to: Place): void {
    if (this.#isForeign) {
      this.#isForeign = false;
      this.#place = { epoch: to.epoch, offset: 0 };
      this.#received = new Set();
    } else if (to.epoch !== this.#place?.epoch) {
      this.#violation(
        `${show(to)} is of another log than ${show(this.#place)}, and no gap was told`,
      );
    }
  }

  /** The rule: all below the id was written, or was told as lost and is. */
  #moveTo(to: Place, at: number): void {
    const { epoch, offset: from } = this.#place as Place;
    for (const channel of this.#client.channels) {
      for (const { n, offset } of this.#truth.between(epoch, channel, from, to.offset)) {
        if (this.#received.has(n)) continue;
        const isTold = offset <= (this.#told.get(channel) ?? 0);
        if (isTold && !this.#truth.isHeld(n)) continue;
        const why = isTold ? 'a gap was told, but the log holds it' : 'no gap was told';
        this.#violation(`${show(to)} was written, ${channel}@${offset} (${n}) was not; ${why}`);
      }
    }
    const lowest = this.#truth.lowestSince(epoch, at);
    if (to.offset >= lowest) {
      this.#violation(`${show(to)} was written before ${epoch}.${lowest} was published`);
    }
    this.#place = to;
  }

  #violation(what: string): never {
    throw new Violation(`${what}\n${tailOf(this.#client.items.slice(0, this.#index + 1))}`);
  }
}

function numbersOf({ items }: Witness): Set<number> {
  return new Set(items.flatMap((item) => (item.kind === 'event' ? [item.n] : [])));
}

function placeOf(id: string): Place {
  const [, epoch, digits] = /^([\w-]+)\.(\d+)$/.exec(id) ?? [];
  if (epoch === undefined) throw new Violation(`${JSON.stringify(id)} is no id`);
  return { epoch, offset: Number(digits) };
}

function show(place: Place | undefined): string {
  return place === undefined ? 'nowhere' : `${place.epoch}.${place.offset}`;
}

function tailOf(items: readonly Item[]): string {
  return items
    .slice(-12)
    .map((item) => `  ${JSON.stringify(item)}`)
    .join('\n');
}

/** Index of the first for which the test is true, where it is true of all after that. */
function firstOf<T>(sorted: readonly T[], test: (item: T) => boolean): number {
  let low = 0;
  let high = sorted.length;
  while (low < high) {
    const middle = (low + high) >>> 1;
    if (test(sorted[middle] as T)) high = middle;
    else low = middle + 1;
  }
  return low;
}

function listIn<T>(map: Map<string, T[]>, key: string): T[] {
  let list = map.get(key);
  if (list === undefined) map.set(key, (list = []));
  return list;
}

/** Goes where it is told, and does not come back: a reader of the whole log begins only once. */
function onlyOnce(choose: () => TestNode | undefined): () => TestNode | undefined {
  let isGone = false;
  return () => {
    const node = isGone ? undefined : choose();
    isGone ||= node !== undefined;
    return node;
  };
}
