// Tests for `node --test` that leave something open. Run one by one, by their names.
import assert from 'node:assert/strict';
import { once } from 'node:events';
import { createServer } from 'node:http';
import { test } from 'node:test';
import { sse, stream } from 'res-sse';
import { readEvents } from 'res-sse/testing';

/** @param {(stream: import('res-sse').EventStream) => unknown} handler */
function appOf(handler) {
  const [events, route] = [sse(), stream(handler)];
  return (req, res) => events(req, res, () => route(req, res, console.error));
}

void test('leaves a reader open', async () => {
  const app = appOf((stream) => stream.send('hello'));
  const reader = await readEvents(app, { timeout: 300 });
  assert.equal((await reader.next()).data, 'hello');
  // A reader that reads nothing more, of a server that was passed by its URL and is unref'd.
  const server = createServer(app).on('connection', (socket) => socket.unref());
  await once(server.listen(0, '127.0.0.1').unref(), 'listening');
  const other = await readEvents(`http://127.0.0.1:${server.address().port}`, { timeout: 300 });
  assert.equal((await other.next()).data, 'hello');
});

void test('waits for the server', async () => {
  let current;
  const reader = await readEvents(appOf((stream) => (current = stream.open())));
  reader.pause();
  while (current.bufferedAmount === 0) {
    current.send('x'.repeat(65_536));
    await new Promise((resolve) => setImmediate(resolve));
  }
  reader.resume();
  // Nothing but the connection, whose two ends are in this process.
  await current.drained();
  await reader.close();
  assert.equal(await current.closed, 'client');
});

void test('serves again', async () => {
  const server = createServer(appOf((stream) => stream.send('hello')));
  const reader = await readEvents(server);
  await reader.close();
  await once(server.listen(0, '127.0.0.1'), 'listening');
  // It lists only what keeps a process alive.
  assert.ok(process.getActiveResourcesInfo().includes('TCPServerWrap'));
  server.close();
});
