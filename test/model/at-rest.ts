/** What must be so when nothing moves any more. */
import type { Link } from './link.ts';
import type { Scene } from './scene.ts';

/** Holds the scene against what must be so, and notes what is not. */
export function checkAtRest(scene: Scene): void {
  for (const link of scene.open) {
    expectEnded(scene, link);
    expectAtHead(scene, link);
  }
  expectStats(scene);
}

/** Live streams in whose way nothing stands are given events directly, whatever they were given before. */
export function checkDirect(scene: Scene): void {
  for (const { stream, following, wire, isWrapped } of scene.open) {
    const followed = following.filter(({ left }) => !left).map(({ hold }) => hold.options);
    const isPlain = followed.every(
      ({ filter, act, channels }) => filter === 'none' && !act && !channels.includes('x'),
    );
    const isDue =
      isPlain &&
      !isWrapped &&
      stream.readyState === 1 &&
      followed.some(({ channels }) => channels.includes('a'));
    if (isDue && wire.isDirect !== true) {
      scene.fault('a stream with nothing in its way is not given its events directly');
    }
  }
}

/** What must have ended by now. */
function expectEnded(scene: Scene, { stream, isFinishing, mustFail }: Link): void {
  if (stream.readyState !== 1) return;
  if (isFinishing) {
    scene.fault('a stream that was closed for good has been given everything, and has not ended');
  }
  if (mustFail !== undefined) scene.fault(`${mustFail}, and the stream has not ended`);
}

function expectAtHead(scene: Scene, { stream, parser, following, registry }: Link): void {
  if (stream.readyState !== 1) return;
  const held = following.filter(({ left }) => !left).map(({ hold }) => hold.options);
  const followed = new Set(
    held.flatMap(({ channels }) => channels).filter((channel) => channel !== 'x'),
  );
  if (followed.size === 0 || !held.some(({ checkpoints }) => checkpoints)) return;
  const { truth, distant } = registry;
  const newest = Math.max(
    0,
    ...[...followed].map((channel) => truth.of(channel).at(-1)?.offset ?? 0),
  );
  // Elsewhere, what nobody here listens to is not known here.
  const offset = Number(parser.lastEventId.slice(truth.epoch.length + 1));
  if (distant === undefined ? offset !== truth.head : offset < newest) {
    scene.fault(`at rest a client knows ${parser.lastEventId}, the head is ${truth.head}`);
  }
}

function expectStats(scene: Scene): void {
  const { registry, crowd, open } = scene;
  let subscriptions = 0;
  for (const member of crowd) {
    if (member.isOpen && member.registry === registry) subscriptions += member.followed;
  }
  for (const { stream, following } of open) {
    if (stream.readyState === 1) {
      subscriptions += new Set(
        following.filter(({ left }) => !left).flatMap(({ hold }) => hold.options.channels),
      ).size;
    }
  }
  const stats = registry.channels.stats();
  if (stats.subscriptions !== subscriptions) {
    scene.fault(`${stats.subscriptions} subscriptions are counted, there are ${subscriptions}`);
  }
  if (stats.behind !== 0) scene.fault(`at rest ${stats.behind} streams are behind`);
}
