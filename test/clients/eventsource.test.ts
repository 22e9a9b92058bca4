import { EventSource } from 'eventsource';
import { describe, expect, test } from 'vitest';
import type { TypedEventSource } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { until } from '../support/wait.ts';

interface Schema {
  a: { message: string; tick: string };
}

describe('the npm eventsource client', () => {
  test('reports open before the first event', async () => {
    await using server = await serveStreams((stream) => stream.open());
    const source = new EventSource(server.url);
    let opened = 0;
    source.addEventListener('open', () => opened++);
    await until('open', () => opened === 1);
    expect(source.readyState).toBe(1);
    source.close();
  });

  test("tells only an event's own id, where browsers tell the last one", async () => {
    await using server = await serveStreams((stream) => {
      stream.send('1', { event: 'tick', id: 5 });
      stream.send('2', { event: 'tick' });
      stream.send('3');
    });
    // Its types and those of a page's are of one kind.
    const source = new EventSource(server.url) as TypedEventSource<Schema, 'a'>;
    const got: [string, string][] = [];
    source.addEventListener('tick', ({ data, lastEventId }) => void got.push([data, lastEventId]));
    source.addEventListener(
      'message',
      ({ data, lastEventId }) => void got.push([data, lastEventId]),
    );
    await until('all', () => got.length === 3);
    source.close();
    expect(got).toEqual([
      ['1', '5'],
      ['2', ''],
      ['3', ''],
    ]);
  });
});
