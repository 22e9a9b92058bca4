/** Any source of items to one reader: pulls at the reader's pace, and lets go of the source when the reader leaves. */
import type { Readable } from 'node:stream';
import type { ReadableStream } from 'node:stream/web';
import { bindToContext } from '../common/async-context.ts';
import { SseError, describeValue } from '../common/errors.ts';
import type { EventFields, EventId } from '../protocol/event-stream-format.ts';

/** What `pipe` takes: an array, a generator, an async generator, a web or a Node stream. */
export type PipeSource<T> =
  | Iterable<T | PromiseLike<T>>
  | AsyncIterable<T>
  | ReadableStream<T>
  | Readable;

/** How items become events; each is a value for all, or a function of the item and its index from 0. */
export interface PipeOptions<T> {
  /** Event type. */
  event?: string | ((item: T, index: number) => string | undefined) | undefined;
  /** Last event ID. */
  id?: EventId | ((item: T, index: number) => EventId | undefined) | undefined;
  /** The data to send for an item, the item itself by default. */
  map?: ((item: T, index: number) => unknown) | undefined;
}

/** What a source flows into. */
export interface Sink {
  readonly signal: AbortSignal;
  send(data: unknown, fields: EventFields): boolean;
  drained(): Promise<void>;
}

interface Tap<T> {
  next(): IteratorResult<T | PromiseLike<T>> | PromiseLike<IteratorResult<T>>;
  /** Lets go of the source without waiting for it. */
  release(): void;
}

/** @see EventStream.pipe, which says what this promises */
export async function pipe<T>(
  source: PipeSource<T>,
  sink: Sink,
  options: PipeOptions<T>,
): Promise<void> {
  const tap = tapOf(source);
  const { signal } = sink;
  if (signal.aborted) {
    tap.release();
    return;
  }
  let wake: ((left: undefined) => void) | undefined;
  // The reader may be ended by another request; the source is let go of in the context of this call.
  const leave = bindToContext((): void => {
    tap.release();
    wake?.(undefined);
  });
  signal.addEventListener('abort', leave, { once: true });
  try {
    for (let index = 0; ; index++) {
      // Not Promise.race: with one long-lived promise that keeps a reaction for each item.
      const step = await new Promise<IteratorResult<T> | undefined>((resolve, reject) => {
        wake = resolve;
        settle(tap).then(resolve, reject);
      });
      if (step === undefined || step.done === true || signal.aborted) return;
      try {
        sendItem(sink, step.value, index, options);
      } catch (error) {
        tap.release();
        throw error;
      }
      await sink.drained();
      if (signal.aborted) return;
    }
  } finally {
    signal.removeEventListener('abort', leave);
  }
}

function sendItem<T>(sink: Sink, item: T, index: number, { event, id, map }: PipeOptions<T>): void {
  sink.send(map === undefined ? item : map(item, index), {
    event: typeof event === 'function' ? event(item, index) : event,
    id: typeof id === 'function' ? id(item, index) : id,
  });
}

/** The next item; a promise in a plain iterable is awaited, as `for await` does. */
async function settle<T>(tap: Tap<T>): Promise<IteratorResult<T>> {
  const step = await tap.next();
  if (step.done === true) return step;
  try {
    return { done: false, value: await step.value };
  } catch (error) {
    // The source does not know that its item failed.
    tap.release();
    throw error;
  }
}

function tapOf<T>(source: PipeSource<T>): Tap<T> {
  if (isObject(source)) {
    if ('getReader' in source) return webTap(source);
    if (isNodeReadable(source)) return nodeTap(source);
    if (Symbol.asyncIterator in source) return iteratorTap(source[Symbol.asyncIterator]());
    if (Symbol.iterator in source) return iteratorTap(source[Symbol.iterator]());
  }
  throw new SseError(
    'ERR_SSE_SOURCE',
    `expected an iterable, an async iterable or a readable stream to pipe, got ${describeValue(source)}`,
  );
}

function iteratorTap<T>(iterator: Iterator<T | PromiseLike<T>> | AsyncIterator<T>): Tap<T> {
  let isRunning = false;
  let isReleased = false;
  const release = (): void => quietly(() => iterator.return?.());
  return {
    next: () => {
      isRunning = true;
      let step;
      try {
        step = iterator.next();
      } finally {
        isRunning = false;
      }
      if (isReleased && !('done' in step && step.done)) release();
      return step;
    },
    release: () => {
      isReleased = true;
      // A generator that ends the stream itself cannot be told to return before it has yielded.
      if (!isRunning) release();
    },
  };
}

function webTap<T>(source: ReadableStream<T>): Tap<T> {
  const reader = source.getReader();
  return {
    next: async () => {
      const { done, value } = await reader.read();
      return done ? { done, value: undefined } : { done, value };
    },
    release: () => quietly(() => reader.cancel()),
  };
}

function nodeTap<T>(source: Readable): Tap<T> {
  const iterator: AsyncIterator<T> = source[Symbol.asyncIterator]();
  return {
    next: () => iterator.next(),
    release: () => {
      // Nobody listens any more to what goes wrong while it is destroyed.
      source.on('error', () => {});
      quietly(() => source.destroy());
    },
  };
}

/** What a source does after it was let go of is nobody's business any more. */
function quietly(release: () => unknown): void {
  try {
    Promise.resolve(release()).catch(() => {});
  } catch {
    // Nor what it throws at once.
  }
}

function isObject(value: unknown): value is object {
  return (typeof value === 'object' && value !== null) || typeof value === 'function';
}

// Not `instanceof`: the streams of the npm package `readable-stream` are readable, too.
function isNodeReadable(source: object): source is Readable {
  return (
    'pipe' in source &&
    typeof source.pipe === 'function' &&
    'destroy' in source &&
    Symbol.asyncIterator in source
  );
}
