/** The haiku chat on three nodes, as `npm run demo:cluster` starts it. */
import { once } from 'node:events';
import { existsSync, readFileSync } from 'node:fs';
import { createServer, type AddressInfo } from 'node:net';
import { fileURLToPath } from 'node:url';
import { describe, expect, test, vi } from 'vitest';
import { items, lines, open } from '../demo/visitor.ts';
import { start, type Child } from '../support/child.ts';
import { launchChromium } from '../support/chromium.ts';
import { read, type Reader } from '../support/reader.ts';
import { startRedis } from '../support/redis-server.ts';
import { Resources } from '../support/resources.ts';
import { within } from '../support/wait.ts';
import { until } from './scene.ts';

vi.setConfig({ testTimeout: 120_000 });

const START = fileURLToPath(new URL('../../demo/cluster/start.ts', import.meta.url));

/** Starts the demo, with a Redis of its own if `env` names none. */
async function startDemo(
  resources: Resources,
  env: Record<string, string> = {},
): Promise<{ demo: Child; url: string }> {
  const demo = resources.use(
    start(process.execPath, ['--import', 'tsx', START], { PORT: '0', REDIS_URL: '', ...env }),
  );
  // If the demo were killed, it could not stop its Redis.
  resources.defer(() => demo.stop('SIGTERM'));
  const address = /^Haiku chat listening on (\S+)$/m;
  await until('the address', () => {
    if (!demo.isRunning) throw new Error(demo.output);
    return address.test(demo.output);
  });
  return { demo, url: address.exec(demo.output)![1]! };
}

async function speak(url: string, text: string): Promise<number> {
  const headers = { 'Content-Type': 'application/json' };
  return (await fetch(`${url}/speak`, { method: 'POST', headers, body: JSON.stringify({ text }) }))
    .status;
}

const textsOf = (reader: Reader) => reader.events.map(({ data }) => JSON.parse(data).text);

describe('the haiku chat on three nodes', () => {
  test('exits with code 1 and stops its nodes if PORT is taken or invalid', async () => {
    await using resources = new Resources();
    const other = createServer().listen(0);
    resources.defer(() => other.close());
    await once(other, 'listening');
    const { port } = other.address() as AddressInfo;
    const cases = [
      [`${port}`, `Port ${port} is already in use; set PORT to another port.\n`],
      ['four', 'PORT is "four", which is not a port; set it to a number from 0 to 65535.\n'],
    ] as const;
    for (const [PORT, message] of cases) {
      const demo = resources.use(
        start(process.execPath, ['--import', 'tsx', START], { PORT, REDIS_URL: '' }),
      );
      await within(`the exit with PORT=${PORT}`, demo.ended, 60_000);
      expect(demo.output).toContain(message);
      expect(demo.process.exitCode).toBe(1);
      expect([...demo.output.matchAll(/^Node \d is process/gm)].length).toBe(
        [...demo.output.matchAll(/^Node \d has ended/gm)].length,
      );
    }
  });

  test('delivers haiku between nodes and shows the same page on all nodes', async () => {
    await using resources = new Resources();
    const { url } = await startDemo(resources);
    const readers = [
      await read(`${url}/listen`),
      await read(`${url}/listen`),
      await read(`${url}/listen`),
    ];
    for (const reader of readers) resources.defer(() => reader.close());
    expect(new Set(readers.map(({ response }) => response.headers.get('X-Node')))).toEqual(
      new Set(['1', '2', '3']),
    );
    for (const text of ['one', 'two', 'three']) expect(await speak(url, text)).toBe(202);
    for (const reader of readers) await reader.take(3);
    expect(readers.map(textsOf)).toEqual(readers.map(() => ['one', 'two', 'three']));
    for (let node = 0; node < 3; node++) {
      const page = await (await fetch(url)).text();
      const { haikus } = JSON.parse(
        /<script id="spoken" type="application\/json">(.*?)<\/script>/s.exec(page)![1]!,
      );
      expect(haikus.map(({ text }: { text: string }) => text)).toEqual(['one', 'two', 'three']);
    }
  });

  test('connects two visitors on different nodes', async () => {
    await using resources = new Resources();
    const { url } = await startDemo(resources);
    await using browser = await launchChromium();
    // Each page has a context of its own, because the tabs of one visitor use one connection.
    const pages = [await browser.newPage(), await browser.newPage()] as const;
    const nodes = new Set<string>();
    for (const page of pages) {
      page.on('response', (response) => {
        if (new URL(response.url()).pathname === '/listen') {
          nodes.add(response.headers()['x-node'] ?? '');
        }
      });
    }
    // Connections go round: the second page is reloaded until its stream is on another node.
    await open(pages[0], url);
    do {
      for (const node of [...nodes].slice(1)) nodes.delete(node);
      await open(pages[1], url);
    } while (nodes.size < 2);
    expect(nodes.size).toBe(2);
    for (const [index, page] of pages.entries()) {
      await lines(page).first().fill(`spoken in tab ${index}`);
      await page.getByRole('button', { name: 'Speak' }).click();
      for (const each of pages) await items(each).getByText(`spoken in tab ${index}`).waitFor();
    }
  });

  test('continues when a node is killed: its readers resume on another node', async () => {
    await using resources = new Resources();
    const { demo, url } = await startDemo(resources);
    const reader = await read(`${url}/listen`);
    resources.defer(() => reader.close());
    await speak(url, 'before');
    const { id } = await reader.next();
    const node = Number(reader.response.headers.get('X-Node'));
    const pid = Number(new RegExp(`^Node ${node} is process (\\d+)`, 'm').exec(demo.output)![1]);
    process.kill(pid, 'SIGKILL');
    await reader.end();
    for (const text of ['meanwhile', 'later']) expect(await speak(url, text)).toBe(202);
    const resumed = await read(`${url}/listen`, { headers: { 'Last-Event-ID': id! } });
    resources.defer(() => resumed.close());
    await resumed.take(2);
    expect(textsOf(resumed)).toEqual(['meanwhile', 'later']);
    expect(resumed.text).not.toContain('sse:gap');
  });

  test('exits on SIGTERM while streams are open, and does not stop a given Redis', async () => {
    await using redis = await startRedis();
    await using resources = new Resources();
    const { demo, url } = await startDemo(resources, { REDIS_URL: redis.url });
    using reader = await read(`${url}/listen`);
    await demo.stop('SIGTERM');
    expect(demo.process.exitCode).toBe(0);
    await reader.end();
    // The stream sent a reconnection time before its end.
    expect(reader.retries.length).toBeGreaterThan(1);
    expect(await (await redis.client()).ping()).toBe('PONG');
  });

  test('exits at once on SIGTERM during its start, and leaves no process', async () => {
    await using redis = await startRedis();
    // No node can connect to a paused Redis.
    redis.pause();
    await using demo = start(process.execPath, ['--import', 'tsx', START], {
      PORT: '0',
      REDIS_URL: redis.url,
    });
    const children = () =>
      readFileSync(`/proc/${demo.pid}/task/${demo.pid}/children`, 'utf8')
        .split(' ')
        .filter(Boolean);
    await until('three node processes', () => demo.isRunning && children().length >= 3);
    const started = children();
    await demo.stop('SIGTERM');
    await until('the end of the node processes', () =>
      started.every((pid) => !existsSync(`/proc/${pid}`)),
    );
  });
});
