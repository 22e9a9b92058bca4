/** Reports errors that occur after a stream has opened, when no error response can be sent. */
import type { IncomingMessage } from 'node:http';
import { debug, diagnostics } from '../common/diagnostics.ts';

/** A stream, as an error report names it. */
interface ReportedStream {
  readonly req: IncomingMessage;
  readonly readyState: 0 | 1 | 2;
}

/**
 * Reports an error to the subscribers of `res-sse:error` and to `onError`. Without both, the error
 * is printed. The client is not notified. Never throws.
 */
export function reportError<S extends ReportedStream>(
  stream: S,
  error: unknown,
  onError: ((error: unknown, stream: S) => void) | undefined,
): void {
  // After the end, an abort error is expected: a handler was waiting with `stream.signal`.
  if (stream.readyState === 2 && isAbortError(error)) return;
  debug('error %s: %o', stream.req.url, error);
  const hasSubscribers = diagnostics.error.hasSubscribers;
  if (hasSubscribers) diagnostics.error.publish({ stream, error });
  try {
    if (onError !== undefined) onError(error, stream);
    else if (!hasSubscribers) printError(stream.req, error);
  } catch (thrown) {
    printError(stream.req, thrown);
  }
}

function isAbortError(error: unknown): boolean {
  return (
    typeof error === 'object' && error !== null && 'name' in error && error.name === 'AbortError'
  );
}

/** Prints an error as Express prints one that no middleware handles. */
function printError(req: IncomingMessage, error: unknown): void {
  if (process.env['NODE_ENV'] === 'test') return;
  const { originalUrl = req.url } = req as IncomingMessage & { readonly originalUrl?: string };
  // Without the query, which may contain secrets.
  const path = (originalUrl ?? '').replace(/\?.*$/, '');
  // oxlint-disable-next-line no-console -- there is no other place to report the error to
  console.error(
    `res-sse: an error ended or disturbed the event stream of ${req.method ?? ''} ${path}:`,
    error,
  );
}
