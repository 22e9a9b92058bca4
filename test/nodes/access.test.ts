/** Ways into Redis: what docs/scaling.md says is enough is enough. */
import { readFileSync } from 'node:fs';
import { join } from 'node:path';
import { expect, test, vi } from 'vitest';
import { startRedisCluster } from '../support/redis-cluster.ts';
import { startRedis } from '../support/redis-server.ts';
import { Scene } from './scene.ts';

vi.setConfig({ testTimeout: 120_000 });

const DOC = readFileSync(new URL('../../docs/scaling.md', import.meta.url), 'utf8');

async function expectToWork(scene: Scene): Promise<void> {
  await scene.connect(4, ['a', 'b']);
  scene.publishAllTheTime(['a', 'b'], { keyed: true });
  await scene.untilPublished(20);
  for (const client of scene.clients) client.drop();
  await scene.nodes[0]!.clear('b');
  await scene.settle();
  expect(scene.ledger.errors).toEqual([]);
  for (const node of scene.nodes) {
    const { channels, errors } = await node.stats();
    expect([channels.broker.state, errors]).toEqual(['open', []]);
  }
}

test.each([
  ['as docs/scaling.md has it', (line: string) => line],
  ['and without +info', (line: string) => line.replace('+info ', '')],
])('an ACL user that may do no more than is needed is enough, %s', async (_what, change) => {
  const [line] = /^user res-sse on .*$/m.exec(DOC)!;
  await using redis = await startRedis({ acl: [change(line)] });
  await using scene = await Scene.start({
    redis: { url: redis.url.replace('//', '//res-sse:secret@') },
  });
  await expectToWork(scene);
});

test('an ACL user on a Cluster that may do what docs/scaling.md adds, too, is enough', async () => {
  const [line] = /^user res-sse on .*$/m.exec(DOC)!;
  const [, more] = /On a Cluster add `(.*)`/.exec(DOC)!;
  await using cluster = await startRedisCluster('{res-sse}:log', { acl: [`${line} ${more}`] });
  await using scene = await Scene.start({
    redis: { urls: cluster.urls, user: { username: 'res-sse', password: 'secret' } },
  });
  await expectToWork(scene);
});

test('a password with every kind of character in it, in the url, is enough', async () => {
  await using redis = await startRedis({ requirepass: 'pass w@rd:/?#%' });
  await using scene = await Scene.start({ redis: { url: redis.url } });
  await expectToWork(scene);
});

test('a server that speaks TLS only is reached by a rediss url', async () => {
  await using redis = await startRedis({ tls: true });
  await using scene = await Scene.start({
    redis: { url: redis.url },
    caFile: join(redis.dir, 'ca.crt'),
  });
  await expectToWork(scene);
});
