/** `res-sse/testing` applied to this library: the events of one connection, end to end. */
import express from 'express';
import { describe, expect, test } from 'vitest';
import { createChannels, sse, stream, type Channels } from '../../src/index.ts';
import { readEvents } from '../../src/testing/index.ts';

describe('a final end', () => {
  const app = express();
  app.use(sse());
  app.get(
    '/',
    stream((stream) => {
      stream.send('only');
      stream.close({ final: true });
    }),
  );

  test('is the last event, and a reconnect with its id gets 204', async () => {
    await using reader = await readEvents(app);
    expect(await reader.rest()).toEqual([
      { event: 'message', data: 'only' },
      { event: 'sse:end', data: '{}', id: 'sse:end' },
    ]);
    expect(await reader.end()).toBe('complete');
    await using reconnected = await readEvents(app, { lastEventId: reader.lastEventId });
    expect([reconnected.status, reconnected.text]).toEqual([204, '']);
    await using byQuery = await readEvents(app, { path: `/?lastEventId=${reader.lastEventId}` });
    expect(byQuery.status).toBe(204);
  });
});

describe('channels', () => {
  function appOf(channels: Channels): express.Express {
    const app = express();
    app.use(sse({ channels }));
    app.get('/:names', (req, res, next) =>
      channels.listen(req.params.names.split(','), { since: 'start' })(req, res, next),
    );
    return app;
  }

  test('are merged in the order of the publishes for each reader', async () => {
    const channels = createChannels();
    const app = appOf(channels);
    await channels.publish('a', '1');
    await channels.publish('b', '2');
    await channels.publish('a', '3');
    await using both = await readEvents(app, { path: '/a,b' });
    await using one = await readEvents(app, { path: '/a' });
    await channels.publish('b', '4');
    await channels.publish('a', '5');
    expect((await both.take(5)).map(({ data }) => data)).toEqual(['1', '2', '3', '4', '5']);
    expect((await one.take(3)).map(({ data }) => data)).toEqual(['1', '3', '5']);
    expect(both.lastEventId).toBe(one.lastEventId);
  });

  test('report cleared events as a gap and continue', async () => {
    const channels = createChannels();
    const app = appOf(channels);
    const first = await readEvents(app, { path: '/a' });
    const { id } = await channels.publish('a', '1');
    await first.next();
    await first.close();
    await channels.publish('a', '2');
    await channels.clear('a');
    await using second = await readEvents(app, { path: '/a', lastEventId: id });
    const gap = await second.next();
    const cursor = await channels.cursor();
    expect([gap.event, JSON.parse(gap.data)]).toEqual([
      'sse:gap',
      { channels: ['a'], after: id, cursor },
    ]);
    await channels.publish('a', '3');
    expect((await second.next()).data).toBe('3');
  });

  test('end their streams with a reconnection time on close()', async () => {
    const channels = createChannels();
    await using reader = await readEvents(appOf(channels), { path: '/a' });
    await channels.close();
    expect(await reader.rest()).toEqual([]);
    expect(await reader.end()).toBe('complete');
    expect(reader.retry).toBeGreaterThanOrEqual(1_000);
    expect(reader.retry).toBeLessThanOrEqual(5_000);
  });
});
