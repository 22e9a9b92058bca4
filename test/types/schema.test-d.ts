/** Types of a registry with a schema. Compiled, not executed. */
import {
  createChannels,
  sse,
  stream as streamRoute,
  type Channel,
  type Channels,
  type EventData,
  type EventName,
  type EventStream,
  type PublishOptions,
} from '../../src/index.ts';
import { holds, type Equal } from './equal.ts';

interface Haiku {
  text: string;
  author?: string;
}

// A schema may use interfaces at every level.
interface HaikuEvents {
  text: Haiku;
  typing: { author: string };
}
interface Schema {
  haiku: HaikuEvents;
  news: { message: string; flash: { headline: string } };
  [room: `room:${string}`]: { message: { from: string } };
}

declare const stream: EventStream;
declare const data: any; // oxlint-disable-line typescript/no-explicit-any -- as a request's body is
const channels = createChannels<Schema>();
holds<Equal<typeof channels, Channels<Schema>>>();

// `sse()` accepts a registry with a schema.
sse({ channels });
sse({ channels: createChannels() });

await channels.publish('haiku', { text: 'old pond' }, { event: 'text' });
await channels.publish('haiku', { author: 'Bashō' }, { event: 'typing', retry: 1_000 });
await channels.publish('news', { headline: 'frog jumps in' }, { event: 'flash' });
await channels.publish('room:1', { from: 'me' }, { event: 'message' });
holds<Equal<Awaited<ReturnType<typeof channels.publish>>, { id: string }>>();

// An event without a name is a `message` event.
await channels.publish('news', 'hello');
await channels.publish('news', 'hello', { retry: 1_000 });
await channels.publish('room:1', { from: 'me' });

// @ts-expect-error -- no such channel
await channels.publish('hiaku', { text: 'old pond' }, { event: 'text' });
// @ts-expect-error -- not a room
await channels.publish('room', { from: 'me' });
// @ts-expect-error -- data of a room
await channels.publish('room:1', { from: 1 });
// @ts-expect-error -- no event of a room
await channels.publish('room:1', { from: 'me' }, { event: 'text' });
// @ts-expect-error -- the name may be any string
await channels.publish(`${stream.lastEventId}:1`, { from: 'me' });
// @ts-expect-error -- no such event
await channels.publish('haiku', { text: 'old pond' }, { event: 'txt' });
// @ts-expect-error -- data of another event
await channels.publish('haiku', { author: 'Bashō' }, { event: 'text' });
// @ts-expect-error -- data of another event
await channels.publish('news', { headline: 'frog jumps in' });
// @ts-expect-error -- haiku has no message, so the event must be named
await channels.publish('haiku', { text: 'old pond' });
// @ts-expect-error -- the same with other options
await channels.publish('haiku', { text: 'old pond' }, { retry: 1_000 });
// @ts-expect-error -- the same with data of any type
await channels.publish('haiku', data);
// @ts-expect-error -- no such option
await channels.publish('news', 'hello', { id: '1' });

// Options and names from variables.
declare const retrying: PublishOptions<'message'> | undefined;
await channels.publish('news', 'hello', retrying);
// @ts-expect-error -- haiku has no message
await channels.publish('haiku', { text: 'old pond' }, retrying);
export function publishTyped<E extends EventName<Schema, 'haiku'>>(
  event: E,
  eventData: EventData<Schema, 'haiku', E>,
): Promise<object> {
  return channels.publish('haiku', eventData, { event });
}

const haiku = channels.channel('haiku');
holds<Equal<typeof haiku.name, 'haiku'>>();
await haiku.publish({ text: 'old pond' }, { event: 'text' });
await haiku.subscribe(stream);
await channels.channel('room:2').publish({ from: 'me' });
const room: Channel<Schema, `room:${string}`> = channels.channel(`room:${stream.lastEventId}`);
await room.publish({ from: 'me' });
// @ts-expect-error -- data of a room
await room.publish({ to: 'me' });
// @ts-expect-error -- data of another event
await haiku.publish({ author: 'Bashō' }, { event: 'text' });
// @ts-expect-error -- the event must be named
await haiku.publish({ text: 'old pond' });
// @ts-expect-error -- the same with data of any type
await haiku.publish(data);
// @ts-expect-error -- no such channel
channels.channel('hiaku');

await channels.subscribe(stream, 'haiku');
await channels.subscribe(stream, ['haiku', 'room:1'], {
  filter: (event) => event.event === 'text',
});
// @ts-expect-error -- no such channel
await channels.subscribe(stream, 'hiaku');
// @ts-expect-error -- no such channel among them
await channels.subscribe(stream, ['haiku', 'hiaku']);
// @ts-expect-error -- a filter cannot be async
await channels.subscribe(stream, 'haiku', { filter: async () => true });

// A stream with any schema is an `EventStream`.
streamRoute(async (typedStream: EventStream<Schema>) => {
  await typedStream.subscribe('haiku');
  await typedStream.subscribe(['haiku', `room:${typedStream.lastEventId}`], { checkpoints: false });
  // @ts-expect-error -- no such channel
  await typedStream.subscribe('hiaku');
  // @ts-expect-error -- no such channel among them
  await typedStream.subscribe(['haiku', 'hiaku']);
  await channels.subscribe(typedStream, 'haiku');
  holds<Equal<typeof typedStream.closed, typeof stream.closed>>();
});
const typed: EventStream<Schema> = stream;
const plain: EventStream = typed;
await plain.subscribe('anything');
await stream.subscribe(['anything', stream.lastEventId]);

channels.listen('haiku');
channels.listen(['haiku', 'room:1']);
channels.listen((req) => (req.url === '/' ? 'haiku' : null));
channels.listen((req) => `room:${req.url}`);
channels.listen(async () => ['haiku', 'news'] as const);
// @ts-expect-error -- no such channel
channels.listen('hiaku');
// @ts-expect-error -- no such channel
channels.listen(() => 'hiaku');

holds<Equal<ReturnType<typeof channels.names>, ('haiku' | 'news' | `room:${string}`)[]>>();

channels.listen((req) => (req.url === '/' ? 'haiku' : undefined));

await channels.end('haiku');
await channels.end('news', 'the last one');
await channels.end('haiku', { text: 'old pond' }, { event: 'text', key: 'k' });
await channels.channel('haiku').end({ text: 'old pond' }, { event: 'text' });
// @ts-expect-error -- no such channel
await channels.end('hiaku');
// @ts-expect-error -- a haiku has no message
await channels.end('haiku', { text: 'old pond' });
// @ts-expect-error -- the data of another event
await channels.end('haiku', { author: 'Bashō' }, { event: 'text' });
holds<Equal<Awaited<ReturnType<typeof channels.state>>, 'unknown' | 'open' | 'ended'>>();

const piped = await channels.pipe('haiku', [1, 2], {
  map: (item) => ({ text: item.toFixed() }),
  every: 50,
  join: (items) => {
    holds<Equal<typeof items, readonly { text: string }[]>>();
    return items[0];
  },
  event: (item, index) => `${item.toFixed()}${index.toFixed()}`,
  end: (error) => (error === undefined ? undefined : { event: 'failed', data: {} }),
});
holds<Equal<typeof piped, { id: string; events: number }>>();
// @ts-expect-error -- no such channel
await channels.pipe('hiaku', [1]);

for await (const event of channels.follow(['haiku', 'news'], { since: { last: 5 } })) {
  holds<Equal<typeof event.data, string>>();
  holds<Equal<typeof event.meta, unknown>>();
}
// @ts-expect-error -- no such channel
channels.follow('hiaku');
const { events: held, gap, more } = await channels.read('haiku', { after: 'x.1', limit: 5 });
holds<
  Equal<[(typeof held)[0]['id'], typeof gap, typeof more], [string, readonly string[], boolean]>
>();
await stream.subscribe('haiku', {
  since: { last: 5 },
  snapshot: (to, { reason, cursor }) => {
    holds<Equal<typeof reason, 'start' | 'gap'>>();
    to.send(cursor);
  },
});

// Without a schema any name, event and data are valid.
const untyped = createChannels();
await untyped.publish('anything', { at: 'all' }, { event: 'whatever' });
await untyped.publish('anything', [1, 2, 3]);
// @ts-expect-error -- a name is a string
await untyped.publish(1, 'hello');

// @ts-expect-error -- a channel has events, and an event has a name
createChannels<{ haiku: string }>();
// @ts-expect-error -- no such option
createChannels({ hsitory: false });
