/** Access to Redis: the permissions and URLs of docs/scaling.md are sufficient. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { startRedisCluster } from '../support/redis-cluster.ts';
import { startRedis } from '../support/redis-server.ts';
import { Scene } from './scene.ts';

vi.setConfig({ testTimeout: 120_000 });

const DOC = readFileSync(new URL('../../docs/scaling.md', import.meta.url), 'utf8');
const SCRIPT = readFileSync(new URL('../../src/brokers/redis/log.lua', import.meta.url), 'utf8');

async function expectToWork(scene: Scene): Promise<void> {
  await scene.connect(4, ['a', 'b']);
  scene.publishContinuously(['a', 'b'], { keyed: true });
  await scene.untilPublished(20);
  for (const client of scene.clients) client.drop();
  await scene.nodes[0]!.clear('b');
  await scene.verify();
  expect(scene.ledger.errors).toEqual([]);
  for (const node of scene.nodes) {
    const { channels, errors } = await node.stats();
    expect([channels.broker.state, errors]).toEqual(['open', []]);
  }
}

test.each([
  ['as in docs/scaling.md', (line: string) => line],
  ['without +info', (line: string) => line.replace('+info ', '')],
])('an ACL user with the documented permissions is sufficient, %s', async (_what, change) => {
  const [line] = /^user res-sse on .*$/m.exec(DOC)!;
  await using redis = await startRedis({ acl: [change(line)] });
  await using scene = await Scene.start({
    redis: { url: redis.url.replace('//', '//res-sse:secret@') },
  });
  await expectToWork(scene);
});

test('an ACL user with the documented permissions is sufficient on a Cluster', async () => {
  const [line] = /^user res-sse on .*$/m.exec(DOC)!;
  const [, more] = /On a Cluster add `(.*)`/.exec(DOC)!;
  await using cluster = await startRedisCluster('{res-sse}:log', { acl: [`${line} ${more}`] });
  await using scene = await Scene.start({
    redis: { urls: cluster.urls, user: { username: 'res-sse', password: 'secret' } },
  });
  await expectToWork(scene);
});

test('the documented permissions of an ACL user name every command of the script', () => {
  const [line] = /^user res-sse on .*$/m.exec(DOC)!;
  const granted = new Set(Array.from(line.matchAll(/\+([a-z]+)/g), ([, command]) => command));
  const used = Array.from(SCRIPT.matchAll(/redis\.p?call\('(\w+)'/g), ([, command]) => command!);
  expect(used.length).toBeGreaterThan(0);
  expect(used.filter((command) => !granted.has(command.toLowerCase()))).toEqual([]);
});

test('a url may contain a password with special characters', async () => {
  await using redis = await startRedis({ requirepass: 'pass w@rd:/?#%' });
  await using scene = await Scene.start({ redis: { url: redis.url } });
  await expectToWork(scene);
});

test('a rediss url connects to a server that accepts only TLS', async () => {
  await using redis = await startRedis({ tls: true });
  await using scene = await Scene.start({
    redis: { url: redis.url },
    caFile: join(redis.dir, 'ca.crt'),
  });
  await expectToWork(scene);
});
