/** The identities of streams, and the end of the streams whose identity is revoked. */
import type { IncomingMessage, ServerResponse } from 'node:http';
import type { RouteRequest } from './route.ts';
import { SseError, describeValue } from '../common/errors.ts';
import { drawRetry } from '../common/retry-range.ts';
import type { CloseOptions } from '../stream/close-options.ts';
import type { EventStream } from '../stream/event-stream.ts';
import type {
  FoundRevocation,
  Revocation,
  RevocationSource,
  RevocationTarget,
  StreamGuard,
} from '../stream/revocation-types.ts';

/** A stream whose `req` has the type that a route handler gets. */
export type StreamWithRequest = EventStream & { readonly req: RouteRequest };

/** The options of `sse()` that concern revoking. */
export interface IdentityOptions {
  /**
   * Returns the owner of the stream of a request, such as the id of a user: `revoke()` of the
   * middleware ends the streams of an identity on all nodes. Called when the stream opens, so
   * middleware that sets what the function reads may be mounted after `sse()`. Mount the check
   * whether a request may have a stream after `sse()`: a revocation between the check and `sse()`
   * would be missed. The identity is never sent to clients. For streams that follow channels, pass
   * `channels` to the same `sse()`.
   * @defaultValue none: no stream has an identity
   */
  identity?: ((req: RouteRequest) => string | undefined) | undefined;
  /**
   * Returns whether a stream may continue. Called for each stream with an identity after this node
   * may have missed revocations: the node was disconnected for so long that revocations were
   * deleted, or Redis has lost its data, has restarted or has failed over. Before the answer, the
   * stream receives no events of channels. If the function returns `false` or throws, the stream
   * ends with the reason `'revoked'`.
   * @defaultValue none: these streams end with the reason `'revoked'`, and their clients reconnect
   */
  authorize?:
    | ((stream: EventStream & { readonly req: RouteRequest }) => boolean | Promise<boolean>)
    | undefined;
}

// Number of streams for which `authorize` is called, or which are ended, before other work gets its
// turn.
const STREAMS_PER_TURN = 250;

// Reconnection time in ms of clients whose revocation may have been missed, so that they do not all
// reconnect at once.
const MISSED_RETRY = { min: 1_000, max: 10_000 };

// Number of identities that are remembered for streams that are not open yet.
const MAX_REMEMBERED = 10_000;

/** The revocations of this node only, for middleware without channels. */
export class LocalRevocations implements RevocationSource {
  readonly #targets = new Set<RevocationTarget>();

  attach(target: RevocationTarget): void {
    this.#targets.add(target);
  }

  revoke(revocation: Revocation): Promise<void> {
    for (const target of this.#targets) target.onRevoked(revocation);
    return Promise.resolve();
  }
}

// A registered symbol: the middleware of two copies of the package may serve one request.
const guardedBy: unique symbol = Symbol.for('res-sse.guardedBy');

/** A response that may have passed through an `sse()` with an `identity`. */
interface GuardedResponse extends ServerResponse {
  [guardedBy]?: { readonly identities: Identities; readonly guard: StreamGuard };
}

/**
 * The open streams with an identity from the `identity` function of one middleware. Middleware on
 * a route without an `identity` of its own uses the object of the middleware in front.
 */
export class Identities implements RevocationTarget {
  /** The source of the revocations. */
  readonly source: RevocationSource;
  readonly #identity: NonNullable<IdentityOptions['identity']>;
  readonly #authorizeOf: (stream: EventStream) => IdentityOptions['authorize'];
  readonly #endStreams: (streams: readonly EventStream[], revocation: Revocation) => void;
  readonly #streams = new Map<string, Set<EventStream>>();
  // The newest revocation of each identity, and its number; the oldest is forgotten first.
  readonly #revoked = new Map<string, { number: number; options: CloseOptions }>();
  // Number of revocations and losses that were received.
  #revocations = 0;
  // Revocations up to this number may be unknown: they were missed, or forgotten.
  #unknownUpTo = 0;

  /**
   * @param authorizeOf returns the option `authorize` of the middleware that a stream belongs to
   * @param endStreams ends streams with the reason `'revoked'`
   */
  constructor(
    source: RevocationSource,
    identity: NonNullable<IdentityOptions['identity']>,
    authorizeOf: (stream: EventStream) => IdentityOptions['authorize'],
    endStreams: (streams: readonly EventStream[], revocation: Revocation) => void,
  ) {
    this.source = source;
    this.#identity = identity;
    this.#authorizeOf = authorizeOf;
    this.#endStreams = endStreams;
    source.attach(this);
  }

  /**
   * Makes the guard of a stream whose request has just come in.
   * @param findInOuter finds a revocation that the outer middleware has received meanwhile
   */
  makeGuard(findInOuter?: StreamGuard['findInOuter']): StreamGuard {
    const revocationsBefore = this.#revocations;
    return { identity: undefined, revocationsBefore, findInOuter, authorization: undefined };
  }

  /** Finds a revocation of the identity since the guard was made. */
  findRevocation(identity: string, guard: StreamGuard): FoundRevocation {
    const revoked = this.#revoked.get(identity);
    if (revoked !== undefined && revoked.number > guard.revocationsBefore) return revoked.options;
    const foundInOuter = guard.findInOuter?.(identity);
    return foundInOuter ?? (this.#unknownUpTo > guard.revocationsBefore ? 'unknown' : undefined);
  }

  /**
   * The stream has opened.
   * @returns how the stream ends, if its identity was or may have been revoked since the request
   * @throws {SseError} `ERR_SSE_OPTION` if `identity` does not return a string or `undefined`
   */
  add(stream: EventStream, guard: StreamGuard): CloseOptions | undefined {
    const identity = this.#readIdentity(stream.req);
    if (identity === undefined) return undefined;
    const found = this.findRevocation(identity, guard);
    const isUncertain = found === 'unknown';
    if (found !== undefined && !isUncertain) return found;
    if (isUncertain && this.#authorizeOf(stream) === undefined) {
      return { retry: drawRetry(MISSED_RETRY) };
    }
    guard.identity = identity;
    const streams = this.#streams.get(identity) ?? new Set();
    this.#streams.set(identity, streams.add(stream));
    if (isUncertain) this.#authorizeInSlices([stream]);
    return undefined;
  }

  /** The stream is closed. */
  delete(stream: EventStream): void {
    const identity = stream.guard?.identity;
    const streams = identity === undefined ? undefined : this.#streams.get(identity);
    if (streams?.delete(stream) !== true || streams.size > 0) return;
    this.#streams.delete(identity as string);
  }

  onRevoked(revocation: Revocation): void {
    const { identity, options } = revocation;
    this.#revocations++;
    this.#revoked.delete(identity);
    this.#revoked.set(identity, { number: this.#revocations, options });
    if (this.#revoked.size > MAX_REMEMBERED) this.#forgetOldest();
    const streams = this.#streams.get(identity);
    if (streams !== undefined) this.#endStreams([...streams], revocation);
  }

  onMissed(): void {
    // Streams that are not open yet may have been revoked, too. So the loss gets a number, as a
    // revocation does.
    this.#unknownUpTo = ++this.#revocations;
    const streams: EventStream[] = [];
    for (const some of this.#streams.values()) for (const stream of some) streams.push(stream);
    this.#endInSlices(streams.filter((stream) => this.#authorizeOf(stream) === undefined));
    this.#authorizeInSlices(streams.filter((stream) => this.#authorizeOf(stream) !== undefined));
  }

  #readIdentity(req: IncomingMessage): string | undefined {
    const identity: unknown = this.#identity(req as RouteRequest);
    if (identity === undefined || (typeof identity === 'string' && identity !== '')) {
      return identity;
    }
    throw new SseError(
      'ERR_SSE_OPTION',
      'expected `identity` of sse() to return a non-empty string or undefined, ' +
        `got ${describeValue(identity)}; it cannot be async`,
    );
  }

  #forgetOldest(): void {
    const [oldest] = this.#revoked;
    if (oldest === undefined) return;
    this.#revoked.delete(oldest[0]);
    this.#unknownUpTo = Math.max(this.#unknownUpTo, oldest[1].number);
  }

  /**
   * Ends the streams that may have been revoked, a limited number per turn. Before its turn, a
   * stream receives no events of channels.
   */
  #endInSlices(streams: readonly EventStream[]): void {
    for (const stream of streams) {
      // Never resolves, because the stream will be ended.
      if (stream.guard !== undefined) stream.guard.authorization = new Promise(() => {});
    }
    inSlices(streams, (stream) => {
      const options = { retry: drawRetry(MISSED_RETRY) };
      this.#endStreams([stream], { identity: '', options });
    });
  }

  /** Calls `authorize` for each of the streams, a limited number per turn. */
  #authorizeInSlices(streams: readonly EventStream[]): void {
    const authorizations = streams.map((stream) => {
      let onAnswered!: () => void;
      const authorization = new Promise<void>((resolve) => {
        onAnswered = resolve;
      });
      if (stream.guard !== undefined) stream.guard.authorization = authorization;
      return { stream, authorization, onAnswered };
    });
    inSlices(authorizations, ({ stream, authorization, onAnswered }) => {
      void this.#authorizeStream(stream).finally(() => {
        // If revocations may have been missed again meanwhile, a newer call is due.
        if (stream.guard?.authorization === authorization) stream.guard.authorization = undefined;
        onAnswered();
      });
    });
  }

  /** Ends the stream, unless `authorize` returns `true` for it. Never rejects. */
  async #authorizeStream(stream: EventStream): Promise<void> {
    if (stream.readyState !== 1) return;
    let isAllowed = false;
    try {
      isAllowed = (await this.#authorizeOf(stream)?.(stream as StreamWithRequest)) === true;
    } catch (error) {
      stream.report(error);
    }
    if (!isAllowed) {
      this.#endStreams([stream], { identity: '', options: { retry: drawRetry(MISSED_RETRY) } });
    }
  }
}

/**
 * Attaches a guard to the request: revocations from here on are noticed, even if a later `sse()`
 * makes the stream.
 */
export function guardRequest(
  res: GuardedResponse,
  { identities }: { readonly identities: Identities | undefined },
): void {
  if (identities === undefined) return;
  const outer = res[guardedBy];
  if (outer?.identities === identities) return;
  const findInOuter =
    outer && ((identity: string) => outer.identities.findRevocation(identity, outer.guard));
  res[guardedBy] = { identities, guard: identities.makeGuard(findInOuter) };
}

/** @returns the guard of the newest {@link guardRequest} */
export function getGuard(res: GuardedResponse): StreamGuard | undefined {
  return res[guardedBy]?.guard;
}

/** Calls the function for each item, a limited number in each turn of the event loop. */
function inSlices<T>(items: readonly T[], action: (item: T) => void): void {
  for (const item of items.slice(0, STREAMS_PER_TURN)) action(item);
  const rest = items.slice(STREAMS_PER_TURN);
  if (rest.length > 0) setImmediate(() => inSlices(rest, action));
}
