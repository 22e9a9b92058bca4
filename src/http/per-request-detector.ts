/** Detects middleware that is created for each request instead of once. */
import { emitWarning } from '../common/emit-warning.ts';

// State of the process, not of a middleware: middleware that is created for each request keeps no
// state from one request to the next.
const suspectedPlaces = new Set<string>();
let hasWarned = false;

/**
 * Detects that `sse()` is called for each request. The sign: a middleware gets a request in the
 * same turn of the event loop in which it was created, and a middleware from the same place in the
 * code did so before. If an application creates its middleware at the first request and keeps it,
 * then this happens only once.
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
