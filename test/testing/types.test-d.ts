/** Types of `res-sse/testing`. Compiled, not executed. */
import { createServer } from 'node:http';
import connect from 'connect';
import express from 'express';
import type { Broker } from '../../src/index.ts';
import {
  brokerContract,
  readEvents,
  type BrokerCheck,
  type EventReader,
  type ReadOptions,
  type ReceivedEvent,
} from '../../src/testing/index.ts';
import { holds, type Equal } from '../types/equal.ts';

declare const makeBroker: (log: string) => Broker;

holds<Equal<Awaited<ReturnType<typeof readEvents>>, EventReader>>();
await readEvents('http://localhost/listen');
await readEvents(new URL('http://localhost/listen'), { timeout: 100, lastEventId: undefined });
await readEvents(express(), { path: '/listen', body: { any: 'thing' } });
await readEvents(connect());
await readEvents(createServer());
await readEvents((_req, res) => void res.end());
// @ts-expect-error -- an object is not an app
await readEvents({});
// @ts-expect-error -- no such option
await readEvents('http://localhost', { lastEventID: '7' });
// @ts-expect-error -- an id is text
await readEvents('http://localhost', { lastEventId: 7 });

await using reader = await readEvents('http://localhost');
const event = await reader.next();
holds<Equal<typeof event, ReceivedEvent>>();
holds<Equal<typeof event.id, string | undefined>>();
holds<Equal<Awaited<ReturnType<typeof reader.take>>, ReceivedEvent[]>>();
holds<Equal<typeof reader.retry, number | undefined>>();
for await (const each of reader) holds<Equal<typeof each, ReceivedEvent>>();
// @ts-expect-error -- the array is read-only
reader.comments.push('');
holds<Equal<ReadOptions['method'], string | undefined>>();

holds<Equal<ReturnType<typeof brokerContract>, BrokerCheck[]>>();
brokerContract(makeBroker, { shared: true });
brokerContract(async () => makeBroker('x'));
// @ts-expect-error -- not a broker
brokerContract(() => ({}));
