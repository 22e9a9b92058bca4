/** Types of events in a page. Compiled, not executed. */
import type {
  EventText,
  JsonText,
  OwnEvents,
  TypedEventSource,
  TypedMessageEvent,
} from '../../src/index.ts';
import { holds, type Equal } from './equal.ts';

interface Haiku {
  text: string;
  author?: string;
  at: Date;
  lines(): string[];
}
interface Schema {
  haiku: { text: Haiku; typing: { author: string } };
  news: { message: string; flash: { headline: string } };
  count: { message: number };
  [room: `room:${string}`]: { message: { from: string } };
}

/** The `EventSource` of a page that is compiled without the types of the browser. */
declare const anySource: {
  addEventListener(type: string, listener: (event: { data: string }) => void): void;
};

function parse<T>(text: JsonText<T>): T {
  return JSON.parse(text) as T;
}

const source = anySource as TypedEventSource<Schema, 'haiku'>;

source.addEventListener('text', (event) => {
  holds<Equal<typeof event, TypedMessageEvent<'text', Haiku>>>();
  holds<Equal<typeof event.type, 'text'>>();
  holds<Equal<typeof event.lastEventId, string>>();
  const text: string = event.data;
  const haiku = parse(event.data);
  // JSON turns a date into a string and omits a method.
  holds<Equal<typeof haiku, { text: string; author?: string; at: string }>>();
  // @ts-expect-error -- data is text and must be parsed
  void event.data.author;
  // @ts-expect-error -- a haiku has no title
  void parse(event.data).title;
  void text;
});
source.addEventListener(
  'typing',
  ({ data }) => holds<Equal<typeof data, JsonText<{ author: string }>>>(),
  { once: true },
);
source.addEventListener('open', () => {});
source.addEventListener('error', ({ type }) => void type, false);
function onText({ data }: TypedMessageEvent<'text', Haiku>): void {
  void data;
}
source.addEventListener('text', onText);
source.addEventListener('text', { handleEvent: onText });
source.removeEventListener('text', onText);
// @ts-expect-error -- no such event
source.addEventListener('txet', () => {});
// @ts-expect-error -- an event of another channel
source.addEventListener('flash', () => {});
// @ts-expect-error -- haiku has no message
source.addEventListener('message', () => {});
// @ts-expect-error -- a listener for another event
source.addEventListener('typing', onText);

// Every stream can have the events of the library.
source.addEventListener('sse:gap', ({ data }) => {
  const { channels, after, cursor } = parse(data);
  holds<Equal<typeof channels, string[]>>();
  holds<Equal<typeof after, string>>();
  holds<Equal<typeof cursor, string>>();
});
source.addEventListener('sse:checkpoint', ({ data }) => void parse(data).cursor.length);
source.addEventListener('sse:ping', ({ data }) => void parse(data).interval.toFixed());
source.addEventListener('sse:end', () => source.close());
holds<Equal<keyof OwnEvents, 'sse:checkpoint' | 'sse:end' | 'sse:gap' | 'sse:ping'>>();
// @ts-expect-error -- no such event
source.addEventListener('sse:nonsense', () => {});

// A string is sent unchanged, a number as JSON.
declare const news: TypedEventSource<Schema, 'news'>;
news.addEventListener('message', ({ data }) => holds<Equal<typeof data, string>>());
holds<
  Equal<
    Parameters<NonNullable<typeof news.onmessage>>,
    [event: TypedMessageEvent<'message', string>]
  >
>();
holds<Equal<EventText<number>, JsonText<number>>>();
holds<Equal<EventText<'on' | 'off'>, 'on' | 'off'>>();
declare const counter: TypedEventSource<Schema, 'count'>;
counter.addEventListener('message', ({ data }) => void parse(data).toFixed());

// JSON forms of recursive types, lists and unions.
interface Tree {
  name: string;
  grown?: Date | null;
  children: readonly Tree[];
}
declare const tree: EventText<Tree>;
const [first] = parse(tree).children;
holds<Equal<NonNullable<typeof first>['grown'], string | null | undefined>>();
holds<Equal<ReturnType<typeof parse<[Date, 1]>>, [Date, 1]>>();
declare const pair: EventText<[Date, 1]>;
const parsedPair = parse(pair);
holds<Equal<typeof parsedPair, [string, 1]>>();

// Rooms by pattern and by name.
declare const rooms: TypedEventSource<Schema, `room:${string}`>;
rooms.addEventListener('message', ({ data }) => void parse(data).from.length);
declare const room: TypedEventSource<Schema, 'room:7'>;
room.addEventListener('message', ({ data }) => void parse(data).from.length);
// @ts-expect-error -- a room has no text
room.addEventListener('text', () => {});
declare const nowhere: TypedEventSource<
  Schema,
  // @ts-expect-error -- no such channel
  'hiaku'
>;
void nowhere;

// Several channels: the events of all of them.
declare const both: TypedEventSource<Schema, 'haiku' | 'news'>;
both.addEventListener('text', onText);
both.addEventListener('flash', ({ data }) => void parse(data).headline.length);
both.addEventListener('message', ({ data }) => holds<Equal<typeof data, string>>());
declare const mixed: TypedEventSource<Schema, 'news' | 'room:7'>;
mixed.addEventListener('message', ({ data }) =>
  holds<Equal<typeof data, string | JsonText<{ from: string }>>>(),
);
// @ts-expect-error -- an event of a channel that it does not follow
both.addEventListener('from', () => {});
