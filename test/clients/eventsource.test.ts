import { EventSource } from 'eventsource';
import { describe, expect, test } from 'vitest';
import type { TypedEventSource } from '../../src/index.ts';
import { serveStreams } from '../support/app.ts';
import { until } from '../support/wait.ts';

interface Schema {
  a: { message: string; tick: string };
}

describe('the npm eventsource client', () => {
  test('emits open before the first event', async () => {
    await using server = await serveStreams((stream) => stream.open());
    const source = new EventSource(server.url);
    let opened = 0;
    source.addEventListener('open', () => opened++);
    await until('the open event', () => opened === 1);
    expect(source.readyState).toBe(1);
    source.close();
  });

  test('reports only the id of the event itself, whereas browsers report the last id', async () => {
    await using server = await serveStreams((stream) => {
      stream.send('1', { event: 'tick', id: 5 });
      stream.send('2', { event: 'tick' });
      stream.send('3');
    });
    // The types also fit the `EventSource` of this package.
    const source = new EventSource(server.url) as TypedEventSource<Schema, 'a'>;
    const received: [string, string][] = [];
    source.addEventListener(
      'tick',
      ({ data, lastEventId }) => void received.push([data, lastEventId]),
    );
    source.addEventListener(
      'message',
      ({ data, lastEventId }) => void received.push([data, lastEventId]),
    );
    await until('three events', () => received.length === 3);
    source.close();
    expect(received).toEqual([
      ['1', '5'],
      ['2', ''],
      ['3', ''],
    ]);
  });
});
