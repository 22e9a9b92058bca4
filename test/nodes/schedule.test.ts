/**
 * The model across nodes: clients of several nodes, and at random whatever may happen to clients,
 * nodes, wires and Redis. In each schedule the id rule holds for every client. A schedule that
 * fails is made smaller as long as it still fails. `SEED=… npx vitest run test/nodes/schedule.test.ts`
 * draws the same schedules again; `RUNS=…` draws more of them; `SHRINK=0` makes none smaller.
 */
import { setTimeout as delay } from 'node:timers/promises';
import fc, { type Arbitrary, type AsyncCommand } from 'fast-check';
import { expect, test } from 'vitest';
import type { TestNode } from './nodes.ts';
import { Scene, type SceneOptions } from './scene.ts';

const CHANNELS = ['a', 'b', 'c', 'd'];
const NODES = 3;
const MIN_COMMANDS = 40;
const MAX_COMMANDS = 60;

// A schedule takes seconds, so there is not time to make one as small as possible.
const SHRINK_MS = 300_000;

const { SEED, RUNS = '2', SHRINK = '1' } = process.env;

/** The state of a scene, as the commands have changed it. */
interface Model {
  clients: number;
  /** Clients that do not come back until they are told to, by their index. */
  readonly away: Set<number>;
}

type Run<T> = (scene: Scene, drawn: T, model: Model) => Promise<void>;

/** One thing that happens, to a node or a client out of those that there are by then. */
class Step<T> implements AsyncCommand<Model, Scene> {
  readonly #name: string;
  readonly #drawn: T;
  readonly #run: Run<T>;
  readonly #isPossible: (model: Model) => boolean;

  constructor(name: string, drawn: T, run: Run<T>, isPossible: (model: Model) => boolean) {
    this.#name = name;
    this.#drawn = drawn;
    this.#run = run;
    this.#isPossible = isPossible;
  }

  check(model: Model): boolean {
    return this.#isPossible(model);
  }

  run(model: Model, scene: Scene): Promise<void> {
    return this.#run(scene, this.#drawn, model);
  }

  toString(): string {
    return `${this.#name} ${JSON.stringify(this.#drawn)}`;
  }
}

interface Weighted {
  readonly weight: number;
  readonly arbitrary: Arbitrary<Step<unknown>>;
}

function step<T>(
  weight: number,
  name: string,
  drawn: Arbitrary<T>,
  run: Run<T>,
  isPossible: (model: Model) => boolean = () => true,
): Weighted {
  const arbitrary = drawn.map((value) => new Step(name, value, run, isPossible));
  return { weight, arbitrary: arbitrary as Arbitrary<Step<unknown>> };
}

const nothing = fc.constant('');
// The index of one of those that there are by then, whose number divides it.
const index = fc.nat({ max: 5_039 });
const channel = fc.constantFrom(...CHANNELS);

interface Batch {
  readonly node: number;
  readonly channel: string;
  readonly count: number;
  readonly padding: number;
}

const batch: Arbitrary<Batch> = fc.record({
  node: index,
  channel,
  count: fc.integer({ min: 1, max: 20 }),
  padding: fc.constantFrom(0, 0, 0, 5_000),
});

const steps: readonly Weighted[] = [
  step(30, 'publish', batch, publish),
  step(20, 'publish, and do not wait', batch, async (scene, drawn) => {
    void publish(scene, drawn);
  }),

  step(
    8,
    'a client comes',
    fc.subarray(CHANNELS, { minLength: 1 }),
    async (scene, names, model) => {
      scene.addClient(names);
      model.clients++;
    },
  ),
  step(8, 'a client is dropped', index, async (scene, drawn) => {
    oneOf(scene.clients, drawn).drop();
  }),
  step(2, 'all clients are dropped', nothing, async ({ clients }) => {
    for (const client of clients) client.drop();
  }),
  step(4, 'a client goes away', index, async (scene, drawn, model) => {
    model.away.add(drawn % model.clients);
    oneOf(scene.clients, drawn).leave();
  }),
  step(
    4,
    'a client comes back',
    index,
    async (scene, drawn, model) => {
      const returning = oneOf([...model.away], drawn);
      model.away.delete(returning);
      oneOf(scene.clients, returning).resume();
    },
    ({ away }) => away.size > 0,
  ),

  step(2, 'a node is killed, another comes', index, (scene, drawn) =>
    replace(scene, runningNode(scene, drawn).kill9()),
  ),
  step(2, 'a node is stopped, another comes', index, (scene, drawn) =>
    replace(scene, runningNode(scene, drawn).stop()),
  ),
  step(2, 'a node hangs', fc.record({ node: index, ms: fc.constant(300) }), hang),

  step(6, 'a message is lost', index, async (scene, drawn) => {
    relayOf(scene, drawn).dropNext(() => true);
  }),
  step(4, 'a wire is cut', index, async (scene, drawn) => relayOf(scene, drawn).cut()),
  step(
    4,
    'a wire is clogged',
    fc.record({
      wire: index,
      direction: fc.constantFrom('replies' as const, 'commands' as const),
      batch,
    }),
    async (scene, drawn) => {
      const relay = relayOf(scene, drawn.wire);
      relay.stall(drawn.direction);
      await publish(scene, drawn.batch);
      relay.flow();
    },
  ),
  step(3, 'a node is cut off', fc.record({ wire: index, batch }), async (scene, drawn) => {
    const relay = relayOf(scene, drawn.wire);
    relay.sever();
    await publish(scene, drawn.batch);
    relay.mend();
  }),

  step(3, 'subscribers are killed', nothing, (scene) =>
    sendToRedis(scene, 'CLIENT', 'KILL', 'TYPE', 'pubsub'),
  ),
  step(2, 'connections are killed', nothing, (scene) =>
    sendToRedis(scene, 'CLIENT', 'KILL', 'TYPE', 'normal'),
  ),
  step(3, 'Redis pauses', fc.constantFrom('ALL', 'WRITE'), (scene, mode) =>
    sendToRedis(scene, 'CLIENT', 'PAUSE', '200', mode),
  ),
  step(3, 'Redis forgets its scripts', nothing, (scene) => sendToRedis(scene, 'SCRIPT', 'FLUSH')),
  step(1, 'Redis forgets everything', nothing, (scene) => sendToRedis(scene, 'FLUSHALL')),
  step(3, 'Redis forgets a key', index, evict),
  step(2, 'Redis is killed and starts again', batch, async (scene, drawn) => {
    await scene.redis.kill9();
    await publish(scene, drawn);
    await scene.redis.restart();
  }),
  step(2, 'Redis hangs', batch, async (scene, drawn) => {
    scene.redis.pause();
    await publish(scene, drawn);
    scene.redis.resume();
  }),
  step(2, 'a channel is cleared', fc.record({ node: index, channel }), async (scene, drawn) => {
    // Refused like a publish while Redis is not there.
    await runningNode(scene, drawn.node)
      .clear(drawn.channel)
      .catch(() => {});
  }),
];

async function publish(
  scene: Scene,
  { node, channel: name, count, padding }: Batch,
): Promise<void> {
  await scene.ledger.publish(runningNode(scene, node), name, count, { padding });
}

async function replace(scene: Scene, ended: Promise<void>): Promise<void> {
  await ended;
  await scene.addNode();
}

async function hang(scene: Scene, drawn: { node: number; ms: number }): Promise<void> {
  const node = runningNode(scene, drawn.node);
  node.pause();
  // The time is part of what happens; nothing is waited for.
  await delay(drawn.ms);
  node.resume();
}

async function evict(scene: Scene, drawn: number): Promise<void> {
  const redis = await scene.redis.client();
  const keys = await redis.keys('*');
  if (keys.length > 0) await redis.del(oneOf(keys.toSorted(), drawn));
  redis.destroy();
}

async function sendToRedis(scene: Scene, ...words: string[]): Promise<void> {
  const redis = await scene.redis.client();
  await redis.sendCommand(words).catch(() => {});
  redis.destroy();
}

function runningNode(scene: Scene, drawn: number): TestNode {
  return oneOf(
    scene.nodes.filter((node) => node.isRunning),
    drawn,
  );
}

function relayOf(scene: Scene, drawn: number): ReturnType<Scene['relayOf']> {
  return scene.relayOf(runningNode(scene, drawn));
}

function oneOf<T>(all: readonly T[], drawn: number): T {
  return all[drawn % all.length] as T;
}

/** Options of the nodes: each limit is there half of the time, and so tight that it bites. */
const options: Arbitrary<Partial<SceneOptions>> = fc.record(
  {
    timeout: fc.constant(500),
    history: fc.constant({ events: 60 }),
    maxHistory: fc.constant(300_000),
    maxChannels: fc.constant(CHANNELS.length - 1),
    patience: fc.constant(200),
  },
  { requiredKeys: ['timeout'] },
);

type Commands = Iterable<AsyncCommand<Model, Scene>>;

/** Commands of which at least so many are drawn, though shrinking may leave fewer. */
class LongCommands extends fc.Arbitrary<Commands> {
  readonly #commands: Arbitrary<Commands> = fc.commands([fc.oneof(...steps)], {
    maxCommands: MAX_COMMANDS,
    size: 'max',
  });

  generate(...args: Parameters<Arbitrary<Commands>['generate']>): fc.Value<Commands> {
    for (;;) {
      const drawn = this.#commands.generate(...args);
      if ([...drawn.value].length >= MIN_COMMANDS) return drawn;
    }
  }

  canShrinkWithoutContext(value: unknown): value is Commands {
    return this.#commands.canShrinkWithoutContext(value);
  }

  shrink(value: Commands, context: unknown): fc.Stream<fc.Value<Commands>> {
    return this.#commands.shrink(value, context);
  }
}

async function expectKept(sceneOptions: Partial<SceneOptions>, commands: Commands): Promise<void> {
  await using scene = await Scene.start({
    nodes: NODES,
    server: { appendonly: true },
    ...sceneOptions,
  });
  await scene.connect(6, CHANNELS);
  await scene.connect(4, ['b']);
  const model: Model = { clients: scene.clients.length, away: new Set() };
  await fc.asyncModelRun(() => ({ model, real: scene }), commands);
  for (const returning of model.away) oneOf(scene.clients, returning).resume();
  const fresh = await scene.addNode();
  await scene.verify({ fresh, ms: 60_000 });
  expect(scene.ledger.count('pending')).toBe(0);
}

test('the id rule holds for every client under random faults', { timeout: 600_000 }, () =>
  fc.assert(fc.asyncProperty(options, new LongCommands(), expectKept), {
    numRuns: Number(RUNS),
    // Short schedules are for shrinking, not for the first draws.
    plugins: [fc.unbiased(), fc.interruptAfterTimeLimit(SHRINK_MS)],
    endOnFailure: SHRINK === '0',
    ...(SEED === undefined ? {} : { seed: Number(SEED) }),
  }),
);
