/**
 * Random schedules of publish, revoke, cut off, heal, loss of the log and of its newest entries over
 * three nodes: no event that was published after a resolved `revoke()` reaches the identity.
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { createChannels, sse, type EventStream, type SseMiddleware } from '../../src/index.ts';
import type { Channels } from '../../src/index.ts';
import { connectFake } from '../support/crowd.ts';
import { turns } from '../support/turns.ts';
import { Network, type NetworkBroker } from './network.ts';

const NODES = 3;
// The random name of a log, which is a part of every id, has no colon.
const USERS = ['user:kim', 'user:lee'] as const;

type User = (typeof USERS)[number];

type Command =
  | {
      readonly kind: 'publish' | 'publish live' | 'cut' | 'heal' | 'stall' | 'flow';
      readonly node: number;
    }
  // miss: a node is cut off while the user is revoked on another node, and events follow at once.
  | { readonly kind: 'connect' | 'revoke' | 'miss'; readonly node: number; readonly user: User }
  | { readonly kind: 'lose' }
  | { readonly kind: 'go back'; readonly count: number }
  | { readonly kind: 'turns'; readonly count: number };

const node = fc.nat(NODES - 1);
const user = fc.constantFrom(...USERS);
const command: fc.Arbitrary<Command> = fc.oneof(
  { weight: 6, arbitrary: fc.record({ kind: fc.constant('publish' as const), node }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('publish live' as const), node }) },
  { weight: 3, arbitrary: fc.record({ kind: fc.constant('connect' as const), node, user }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('revoke' as const), node, user }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('cut' as const), node }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('heal' as const), node }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('stall' as const), node }) },
  { weight: 2, arbitrary: fc.record({ kind: fc.constant('flow' as const), node }) },
  { weight: 1, arbitrary: fc.record({ kind: fc.constant('miss' as const), node, user }) },
  { weight: 1, arbitrary: fc.constant({ kind: 'lose' as const }) },
  {
    weight: 2,
    arbitrary: fc.record({
      kind: fc.constant('go back' as const),
      count: fc.integer({ min: 1, max: 4 }),
    }),
  },
  {
    weight: 4,
    arbitrary: fc.record({
      kind: fc.constant('turns' as const),
      count: fc.integer({ min: 1, max: 6 }),
    }),
  },
);

/** One stream, and what it must not receive. */
interface Client {
  readonly user: User;
  readonly stream: EventStream;
  text: string;
  /** Number of publishes that were called before the identity was revoked; `undefined` before. */
  revokedAt: number | undefined;
}

/** Three nodes, their clients, and what was published. */
class World {
  readonly network = new Network();
  readonly clients: Client[] = [];
  published = 0;
  readonly #nodes: { broker: NetworkBroker; channels: Channels; events: SseMiddleware }[];
  // The users for whom the database of the application says no.
  readonly #refused = new Set<EventStream>();

  constructor(hasAuthorize: boolean) {
    this.#nodes = Array.from({ length: NODES }, () => {
      const broker = this.network.makeNode();
      const channels = createChannels({
        broker,
        historyFor: (name) => (name === 'live' ? false : undefined),
      });
      const events = sse({
        channels,
        warnings: false,
        identity: (req) => req.url.slice(1),
        ...(hasAuthorize
          ? {
              authorize: async (stream: EventStream) => {
                await nextTurn();
                return !this.#refused.has(stream);
              },
            }
          : {}),
      });
      return { broker, channels, events };
    });
  }

  async run(given: Command): Promise<void> {
    if (given.kind === 'turns') await turns(given.count);
    else if (given.kind === 'lose') this.network.lose();
    else if (given.kind === 'go back') this.network.goBack(given.count);
    else if ('user' in given) await this.#runForUser(given.kind, given.node, given.user);
    else this.#runOnNode(given.kind, this.#nodes[given.node]!);
  }

  async #runForUser(kind: 'connect' | 'revoke' | 'miss', index: number, name: User): Promise<void> {
    const { events } = this.#nodes[index]!;
    if (kind === 'connect') this.#connect(events, name);
    else if (kind === 'revoke') await this.#revoke(events, name);
    else await this.#miss(index, name);
  }

  #runOnNode(
    kind: 'publish' | 'publish live' | 'cut' | 'heal' | 'stall' | 'flow',
    { broker, channels }: { broker: NetworkBroker; channels: Channels },
  ): void {
    if (kind === 'publish') this.#publish(channels, 'news');
    else if (kind === 'publish live') this.#publish(channels, 'live');
    else broker[kind]();
  }

  #publish(channels: Channels, name: string): void {
    channels.publish(name, `n${this.published++}`).catch(() => {});
  }

  #connect(events: SseMiddleware, name: User): void {
    const client: Client = {
      user: name,
      stream: undefined as never,
      text: '',
      revokedAt: undefined,
    };
    const onBytes = (bytes: Buffer): void => {
      client.text += bytes.toString();
    };
    const { stream } = connectFake(events, onBytes, '', `/${name}`);
    this.clients.push(Object.assign(client, { stream }));
    stream.subscribe(['news', 'live']).catch(() => {});
  }

  async #miss(index: number, name: User): Promise<void> {
    const { broker } = this.#nodes[index]!;
    const other = this.#nodes[(index + 1) % NODES]!;
    broker.cut();
    await this.#revoke(other.events, name);
    broker.heal();
    for (const channel of ['live', 'news']) this.#publish(other.channels, channel);
  }

  async #revoke(events: SseMiddleware, name: User): Promise<void> {
    const before = this.clients.filter((client) => client.user === name);
    // The application takes the right away first.
    for (const { stream } of before) this.#refused.add(stream);
    try {
      await events.revoke(name);
    } catch {
      return;
    }
    for (const client of before) client.revokedAt ??= this.published;
  }

  /**
   * Lets everything arrive at every node.
   * @returns what is wrong; empty if nothing is
   */
  async findFaults(): Promise<string[]> {
    for (const { broker } of this.#nodes) {
      broker.heal();
      broker.flow();
    }
    await turns(30);
    this.#publish(this.#nodes[0]!.channels, 'news');
    const last = `data: n${this.published - 1}\n`;
    await turns(60);
    return this.clients.flatMap(({ revokedAt, text, stream }) => {
      const received = [...text.matchAll(/^data: n(\d+)$/gm)].map(([, n]) => Number(n));
      const isOpen = stream.readyState !== 2;
      const faults: string[] = [];
      if (revokedAt === undefined) {
        if (isOpen && !text.includes(last)) faults.push('a stream has not received the last event');
      } else {
        if (isOpen) faults.push('a revoked stream is open');
        const late = received.filter((n) => n >= revokedAt);
        if (late.length > 0) faults.push(`received ${late.join()} after a revocation`);
      }
      if (/user:|revoked/.test(text)) faults.push('the identity was sent');
      return faults;
    });
  }

  /** Number of clients that were revoked, and of those that are still open. */
  get counts(): { revoked: number; open: number } {
    return {
      revoked: this.clients.filter(({ revokedAt }) => revokedAt !== undefined).length,
      open: this.clients.filter(({ stream }) => stream.readyState === 1).length,
    };
  }
}

test.each([true, false])(
  'no event that is published after a revocation reaches the identity, with authorize: %s',
  { timeout: 300_000 },
  async (hasAuthorize) => {
    const total = { revoked: 0, open: 0 };
    await fc.assert(
      fc.asyncProperty(fc.array(command, { minLength: 5, maxLength: 40 }), async (commands) => {
        const world = new World(hasAuthorize);
        for (const given of commands) await world.run(given);
        expect(await world.findFaults()).toEqual([]);
        total.revoked += world.counts.revoked;
        total.open += world.counts.open;
      }),
      { numRuns: 2_000 },
    );
    // The schedules reach both outcomes.
    expect(total.revoked).toBeGreaterThan(100);
    expect(total.open).toBeGreaterThan(100);
  },
);
