/** Checks of the final state, after all work has been done. */
import type { Link } from './link.ts';
import type { Scene } from './scene.ts';

/**
 * Checks the streams and the counts of a scene, and reports each deviation as a fault of the scene.
 */
export function checkAtRest(scene: Scene): void {
  for (const link of scene.open) {
    expectEnded(scene, link);
    expectAtHead(scene, link);
  }
  expectFinal(scene);
  expectStats(scene);
}

/** Checks that live streams without filters and wrappers write events directly to the socket. */
export function checkDirect(scene: Scene): void {
  // Nothing can be published to a channel that has ended.
  if (scene.registry.truth.hasEnded('a')) return;
  for (const { stream, following, wire, isWrapped } of scene.open) {
    const followed = following
      .filter(({ hasLeft }) => !hasLeft)
      .map(({ record }) => record.options);
    const isPlain = followed.every(
      ({ filter, act, channels }) => filter === 'none' && !act && !channels.includes('x'),
    );
    const mustBeDirect =
      isPlain &&
      !isWrapped &&
      stream.readyState === 1 &&
      followed.some(({ channels }) => channels.includes('a'));
    if (mustBeDirect && wire.isDirect !== true) {
      scene.reportFault('a plain live stream does not write events directly to the socket');
    }
  }
}

/** Checks that a stream has ended if it must have ended by now. */
function expectEnded(scene: Scene, { stream, isFinishing, mustFail }: Link): void {
  if (stream.readyState !== 1) return;
  if (isFinishing) {
    scene.reportFault('a stream did not end after close({ final: true })');
  }
  if (mustFail !== undefined) scene.reportFault(`${mustFail}, but the stream did not end`);
}

/** Checks that no stream is open whose channels have all ended. */
function expectFinal(scene: Scene): void {
  const followed = scene.open.map((link) => ({
    link,
    channels: link.following
      .filter(({ hasLeft }) => !hasLeft)
      .flatMap(({ record }) => record.options.channels),
  }));
  const members = scene.crowd.map((link) => ({ link, channels: link.crowdChannels }));
  for (const { link, channels } of [...followed, ...members]) {
    const { stream, registry } = link;
    if (stream.readyState !== 1 || !link.isOpen || channels.length === 0) continue;
    if (registry === scene.registry && channels.every((name) => registry.truth.hasEnded(name))) {
      scene.reportFault(`a stream is open, but its channels ${channels.join()} have ended`);
    }
  }
}

function expectAtHead(scene: Scene, { stream, parser, following, registry }: Link): void {
  if (stream.readyState !== 1) return;
  const options = following.filter(({ hasLeft }) => !hasLeft).map(({ record }) => record.options);
  const followed = new Set(
    options.flatMap(({ channels }) => channels).filter((channel) => channel !== 'x'),
  );
  if (followed.size === 0 || !options.some(({ checkpoints }) => checkpoints)) return;
  const { truth, distant } = registry;
  const newest = Math.max(
    0,
    ...[...followed].map((channel) => truth.itemsOf(channel).at(-1)?.offset ?? 0),
  );
  // With a remote broker, the node does not receive events of channels that no stream follows.
  const offset = Number(parser.lastEventId.slice(truth.epoch.length + 1));
  if (distant === undefined ? offset !== truth.head : offset < newest) {
    scene.reportFault(
      `the last id of an idle client is ${parser.lastEventId}, but the head is ${truth.head}`,
    );
  }
}

function expectStats(scene: Scene): void {
  const { registry, crowd, open } = scene;
  let subscriptions = 0;
  for (const member of crowd) {
    if (member.isOpen && member.registry === registry) subscriptions += member.crowdChannels.length;
  }
  for (const { stream, following } of open) {
    if (stream.readyState === 1) {
      subscriptions += new Set(
        following
          .filter(({ hasLeft }) => !hasLeft)
          .flatMap(({ record }) => record.options.channels),
      ).size;
    }
  }
  const stats = registry.channels.stats();
  if (stats.subscriptions !== subscriptions) {
    scene.reportFault(
      `stats() counts ${stats.subscriptions} subscriptions, expected ${subscriptions}`,
    );
  }
  if (stats.behind !== 0) scene.reportFault(`${stats.behind} streams are behind after all work`);
}
