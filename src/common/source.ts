/** Reads the items of a source of any kind, and releases the source. */
import type { Readable } from 'node:stream';
import type { ReadableStream } from 'node:stream/web';
import { bindToContext } from './async-context.ts';
import { SseError, describeValue } from './errors.ts';

/** The sources of `pipe()`: arrays, generators, async generators, web streams and Node streams. */
export type PipeSource<T> =
  | Iterable<T | PromiseLike<T>>
  | AsyncIterable<T>
  | ReadableStream<T>
  | Readable;

/** Reads items from any kind of source. */
interface SourceReader<T> {
  next(): IteratorResult<T | PromiseLike<T>> | PromiseLike<IteratorResult<T>>;
  /** Releases the source without waiting for it. */
  release(): void;
}

/**
 * Calls a function for each item of a source, one after the other. If the signal is aborted (also
 * while the next item is awaited), or the function throws, the source is released. This function
 * does not wait until the source has finished its release.
 * @param signal aborted when no more items are needed
 * @param onItem called with each item and its index; the next item is read when the returned
 * promise has resolved
 * @returns a promise that resolves at the end of the source, or when the signal is aborted; rejects
 * with the error of the source or of `onItem`
 * @throws {SseError} `ERR_SSE_SOURCE` if the source is none of {@link PipeSource}
 */
export async function readSource<T>(
  source: PipeSource<T>,
  signal: AbortSignal,
  onItem: (item: T, index: number) => Promise<void> | undefined,
): Promise<void> {
  const reader = readerOf(source);
  if (signal.aborted) {
    reader.release();
    return;
  }
  let stopWaiting: ((step: undefined) => void) | undefined;
  // Another request may abort the signal. The source is released in the async context of this call.
  const onAbort = bindToContext((): void => {
    reader.release();
    stopWaiting?.(undefined);
  });
  signal.addEventListener('abort', onAbort, { once: true });
  try {
    for (let index = 0; ; index++) {
      // Not `Promise.race()`: a race with one long-lived promise keeps a reaction for each item.
      const step = await new Promise<IteratorResult<T> | undefined>((resolve, reject) => {
        stopWaiting = resolve;
        nextItem(reader).then(resolve, reject);
      });
      if (step === undefined || step.done === true || signal.aborted) return;
      try {
        await onItem(step.value, index);
      } catch (error) {
        reader.release();
        throw error;
      }
      if (signal.aborted) return;
    }
  } finally {
    signal.removeEventListener('abort', onAbort);
  }
}

/** Reads the next item. A promise in a plain iterable is awaited, as `for await` does. */
async function nextItem<T>(reader: SourceReader<T>): Promise<IteratorResult<T>> {
  const step = await reader.next();
  if (step.done === true) return step;
  try {
    return { done: false, value: await step.value };
  } catch (error) {
    // The iterator does not know that the promise has rejected, so it has to be released.
    reader.release();
    throw error;
  }
}

/**
 * Checks that a value is a source. Does not touch the source.
 * @throws {SseError} `ERR_SSE_SOURCE`
 */
export function assertSource(source: unknown): void {
  const kinds = ['getReader', Symbol.asyncIterator, Symbol.iterator];
  if (isObject(source) && kinds.some((kind) => kind in source)) return;
  const expected = 'an iterable, an async iterable or a readable stream';
  const hint = typeof source === 'function' ? '; call the function, and pass its result' : '';
  throw new SseError(
    'ERR_SSE_SOURCE',
    `expected ${expected} to pipe, got ${describeValue(source)}${hint}`,
  );
}

function readerOf<T>(source: PipeSource<T>): SourceReader<T> {
  assertSource(source);
  if ('getReader' in source) return readWebStream(source);
  if (isNodeReadable(source)) return readNodeStream(source);
  if (Symbol.asyncIterator in source) return readIterator(source[Symbol.asyncIterator]());
  return readIterator(source[Symbol.iterator]());
}

function readIterator<T>(
  iterator: Iterator<T | PromiseLike<T>> | AsyncIterator<T>,
): SourceReader<T> {
  let isRunning = false;
  let isReleased = false;
  const release = (): void => ignoreErrors(() => iterator.return?.());
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
      // While a generator runs, its `return()` cannot be called. If the generator itself ends the
      // stream, `next` releases the source after the generator has yielded.
      if (!isRunning) release();
    },
  };
}

function readWebStream<T>(source: ReadableStream<T>): SourceReader<T> {
  const reader = source.getReader();
  return {
    next: async () => {
      const { done, value } = await reader.read();
      return done ? { done, value: undefined } : { done, value };
    },
    release: () => ignoreErrors(() => reader.cancel()),
  };
}

function readNodeStream<T>(source: Readable): SourceReader<T> {
  const iterator: AsyncIterator<T> = source[Symbol.asyncIterator]();
  return {
    next: () => iterator.next(),
    release: () => {
      // Without a listener, an error that occurs while the source is destroyed would end the
      // process.
      source.on('error', () => {});
      ignoreErrors(() => source.destroy());
    },
  };
}

/**
 * Releases a source. Errors are ignored, also those of a returned promise: the source is not needed
 * any more.
 */
function ignoreErrors(release: () => unknown): void {
  try {
    Promise.resolve(release()).catch(() => {});
  } catch {
    // The release itself threw.
  }
}

function isObject(value: unknown): value is object {
  return (typeof value === 'object' && value !== null) || typeof value === 'function';
}

// Not `instanceof`: the streams of the npm package `readable-stream` have another class.
function isNodeReadable(source: object): source is Readable {
  return (
    'pipe' in source &&
    typeof source.pipe === 'function' &&
    'destroy' in source &&
    Symbol.asyncIterator in source
  );
}
