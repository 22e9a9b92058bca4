/** Detection of middleware that is created for each request instead of once. */
import { emitWarning } from './warnings.ts';

// The state of the process, not of a middleware: middleware that is created for each request cannot
// remember anything from one request to the next.
const suspectedPlaces = new Set<string>();
let hasWarned = false;

/**
 * Detects that one middleware is created where it is used. The sign is a request in the same turn
 * of the event loop as the creation, from the same place in the code, for the second time. A
 * middleware that is created at the first request and kept gives that sign only once.
 */
export class PerRequestDetector {
  #isCreationTurn = true;
  readonly #place: string;

  /** @param factory the function that creates the middleware and whose caller is the place */
  constructor(factory: (...args: never[]) => unknown) {
    this.#place = hasWarned ? '' : findCaller(factory);
    queueMicrotask(() => {
      this.#isCreationTurn = false;
    });
  }

  /** Called for each request of the middleware. Warns if the middleware was created for it. */
  onRequest(): void {
    if (!this.#isCreationTurn || hasWarned) return;
    this.#isCreationTurn = false;
    if (!suspectedPlaces.has(this.#place)) {
      suspectedPlaces.add(this.#place);
      return;
    }
    hasWarned = true;
    suspectedPlaces.clear();
    emitWarning(
      'RES_SSE_CREATED_PER_REQUEST',
      `sse() is called for each request (${this.#place})`,
      'Call sse() once and mount the returned middleware: limits, statistics, heartbeats and ' +
        'close() belong to one middleware.',
    );
  }
}

/** @returns file, line and column from which `callee` was called, as in a stack trace */
function findCaller(callee: (...args: never[]) => unknown): string {
  const { stackTraceLimit } = Error;
  const holder: { stack?: string } = {};
  Error.stackTraceLimit = 1;
  Error.captureStackTrace(holder, callee);
  Error.stackTraceLimit = stackTraceLimit;
  return /^\s*at (.*)$/m.exec(holder.stack ?? '')?.[1] ?? '';
}
