/** The host of an event stream: settings and services that `sse()` provides for its streams. */
import type { Refusal } from './admission.ts';
import { Identities, LocalRevocations } from './identities.ts';
import { sendReconnectionTime, sendUnavailable } from './refusals.ts';
import type { SseOptions } from './sse-options.ts';
import type { StreamTracker } from './stream-tracker.ts';
import type { Warnings } from './warnings.ts';
import { diagnostics } from '../common/diagnostics.ts';
import { SseError } from '../common/errors.ts';
import { drawRetry, type RetryRange } from '../common/retry-range.ts';
import { asksForEventStream } from '../protocol/request-headers.ts';
import type { CloseReason } from '../stream/close-reason.ts';
import type { EventStream, ImmediateEnd, StreamHost, Subscribe } from '../stream/event-stream.ts';
import { revocationSource, type Revocation } from '../stream/revocation-types.ts';
import { StreamMonitor } from '../stream/stream-monitor.ts';
import { resolveStreamOptions, type StreamSettings } from '../stream/stream-options.ts';

// A registered symbol, so that the middleware of two copies of the package in one process
// recognise each other's hosts.
const hostBrand = Symbol.for('res-sse.Host');

// Reconnection time in ms after a refusal: long enough for some of the other streams to end.
const REFUSED_RETRY = { min: 5_000, max: 15_000 };

/**
 * The host of the streams of one middleware, or of one chain of nested middleware:
 *
 * ```text
 *   app.use(sse(A))           host of A: options of A,       trackers [A]
 *   app.get('/', sse(B), …)   host of B: options of A and B, trackers [A, B], warnings of A
 * ```
 */
export class MiddlewareHost implements StreamHost {
  static {
    Object.defineProperty(this.prototype, hostBrand, { value: true });
  }

  readonly options: SseOptions;
  readonly settings: StreamSettings;
  readonly monitor: StreamMonitor;
  readonly accept: 'event-stream' | 'any';
  readonly subscribe: Subscribe | undefined;
  readonly onError: SseOptions['onError'];
  /** The identities of each middleware in the chain that has the option, the outermost first. */
  readonly allIdentities: readonly Identities[];
  /** The identities of the streams; `undefined` without the option `identity`. */
  readonly identities: Identities | undefined;
  /** The trackers of all middleware in the chain, the outermost first. */
  readonly trackers: readonly StreamTracker[];
  /** The warnings of the outermost middleware, so that each code is reported once per chain. */
  readonly warnings: Warnings;

  /**
   * @param options the merged options of all middleware in the chain
   * @param trackers the trackers of all middleware in the chain
   * @param warnings the warnings of the outermost middleware
   * @param allIdentities the identities of all middleware in the chain
   */
  constructor(
    options: SseOptions,
    trackers: readonly StreamTracker[],
    warnings: Warnings,
    allIdentities: readonly Identities[],
  ) {
    const { channels, accept = 'event-stream' } = options;
    this.options = options;
    this.settings = resolveStreamOptions(options);
    this.monitor = new StreamMonitor(this.settings);
    this.accept = accept;
    this.onError = options.onError;
    this.subscribe = channels && ((...args) => channels.subscribe(...args));
    this.trackers = trackers;
    this.warnings = warnings;
    this.allIdentities = allIdentities;
    this.identities = allIdentities.at(-1);
  }

  /**
   * Checks that `revoke()` ends the streams of this chain on all nodes. A middleware with
   * `identity` sends revocations to other nodes by its own `channels`. If the streams of this chain
   * follow the registry of another middleware, `revoke()` would not end them.
   * @throws {SseError} `ERR_SSE_OPTION` in this case
   */
  assertRevocable(): void {
    if (this.identities === undefined) return;
    const source = this.options.channels?.[revocationSource];
    if (source === undefined || this.allIdentities.every((one) => one.source === source)) return;
    throw new SseError(
      'ERR_SSE_OPTION',
      '`identity` and `channels` are options of two sse() for this request, so revoke() could ' +
        'not end the stream on all nodes; pass both to the same one: sse({ identity, channels })',
    );
  }

  /**
   * Asks the trackers whether the stream may have a place, and answers the request if not. Each
   * tracker remembers the place, so a stream that has one is admitted again without being counted.
   * @param trackers the trackers that have not admitted the stream yet; by default those of the
   * whole chain
   * @returns whether the stream may open
   */
  admitTo(stream: EventStream, trackers: readonly StreamTracker[] = this.trackers): boolean {
    for (const tracker of trackers) {
      const refusal = tracker.admit(stream.res);
      if (refusal === undefined) continue;
      this.#refuse(stream, refusal, tracker.shutdownRetry);
      return false;
    }
    return true;
  }

  /**
   * Called before the handler of a route and before a stream opens. If the request named
   * `text/event-stream`, each middleware has admitted the stream when the request passed it.
   * Otherwise only the handler shows that the request is for a stream, so the stream is admitted
   * now.
   */
  admit(stream: EventStream): boolean {
    const wasAdmitted = this.accept === 'event-stream' || asksForEventStream(stream.req);
    return wasAdmitted || this.admitTo(stream);
  }

  onOpened(stream: EventStream): ImmediateEnd | undefined {
    for (const tracker of this.trackers) tracker.addStream(stream);
    if (this.options.warnings !== false) this.warnings.checkStream(stream);
    const end = this.#checkIdentity(stream);
    if (end !== undefined) return end;
    // The shutdown may have begun after the stream was admitted. In that case the stream ends now.
    const { shutdownRetry } =
      this.trackers.find((tracker) => tracker.shutdownRetry !== undefined) ?? {};
    return shutdownRetry && { reason: 'shutdown', options: { retry: drawRetry(shutdownRetry) } };
  }

  /** @returns how the stream ends, if its identity is revoked or cannot be found */
  #checkIdentity(stream: EventStream): ImmediateEnd | undefined {
    const { guard } = stream;
    if (guard === undefined || this.identities === undefined) return undefined;
    try {
      const options = this.identities.add(stream, guard);
      const retry = drawRetry(REFUSED_RETRY);
      return options && { reason: 'revoked', options: { retry, ...options } };
    } catch (error) {
      stream.report(error);
      return { reason: 'error', options: { retry: drawRetry(REFUSED_RETRY) } };
    }
  }

  onPolled(stream: EventStream): void {
    for (const tracker of this.trackers) tracker.uncountStart(stream.res);
  }

  onEnded(reason: CloseReason): void {
    for (const tracker of this.trackers) tracker.countEnd(reason);
  }

  onClosed(stream: EventStream, wasOpen: boolean): void {
    // A kept-alive connection would delay a `server.close()` that was called before, and the client
    // would reconnect to this process.
    if (wasOpen && this.trackers.some(({ shutdownRetry }) => shutdownRetry !== undefined)) {
      stream.closeConnection();
    }
    this.identities?.delete(stream);
    for (const tracker of this.trackers) {
      tracker.releasePlace(stream.res);
      if (wasOpen) tracker.removeStream(stream);
    }
    this.warnings.forgetStream(stream);
  }

  /** Answers a request that was not admitted, and reports the refusal. */
  #refuse(stream: EventStream, refusal: Refusal, shutdownRetry: RetryRange | undefined): void {
    const { req, res } = stream;
    for (const tracker of this.trackers) tracker.countRefusal();
    if (diagnostics.reject.hasSubscribers) diagnostics.reject.publish({ req, reason: refusal });
    // On the same connection the client would reconnect to this process, which is shutting down.
    const isShuttingDown = shutdownRetry !== undefined;
    if (isShuttingDown && req.httpVersionMajor !== 1) stream.closeConnection();
    // A subscriber may have answered the request.
    if (res.headersSent) return;
    const retry = drawRetry(shutdownRetry ?? REFUSED_RETRY);
    if (isShuttingDown && req.httpVersionMajor === 1) res.setHeader('Connection', 'close');
    const mayReconnect = isShuttingDown || this.options.whenFull !== 'reject';
    if (mayReconnect && req.method === 'GET' && asksForEventStream(req)) {
      sendReconnectionTime(res, retry);
    } else {
      sendUnavailable(res, retry);
    }
  }
}

/** Selects the host for the requests of one middleware, depending on the middleware in front. */
export class HostSelector {
  readonly #options: SseOptions;
  readonly #tracker: StreamTracker;
  // Undefined without the option `identity`.
  readonly #identities: Identities | undefined;
  readonly #ownHost: MiddlewareHost;
  // One inner host for each host of middleware in front; usually there is none.
  readonly #innerHosts = new WeakMap<MiddlewareHost, MiddlewareHost>();

  /**
   * @param options the checked options of the middleware
   * @param tracker the tracker of the middleware
   * @param warnings used if no other middleware is in front
   */
  constructor(options: SseOptions, tracker: StreamTracker, warnings: Warnings) {
    this.#options = options;
    this.#tracker = tracker;
    this.#identities = makeIdentities(options, tracker);
    this.#ownHost = new MiddlewareHost(options, [tracker], warnings, this.#withOwnIdentities([]));
  }

  /**
   * Revokes an identity: on all nodes of the registry, or on this node if there is none.
   * @throws {SseError} rejects with `ERR_SSE_OPTION` without the option `identity`
   */
  async revoke(revocation: Revocation): Promise<void> {
    if (this.#identities === undefined) {
      throw new SseError(
        'ERR_SSE_OPTION',
        'revoke() needs to know whom streams belong to; pass sse({ identity })',
      );
    }
    await this.#identities.source.revoke(revocation);
  }

  /** @param outer the host of the middleware that the request has passed before, if any */
  select(outer: StreamHost | undefined): MiddlewareHost {
    if (!isMiddlewareHost(outer)) return this.#ownHost;
    let host = this.#innerHosts.get(outer);
    if (host === undefined) {
      host = this.#createInnerHost(outer);
      this.#innerHosts.set(outer, host);
    }
    return host;
  }

  #createInnerHost(outer: MiddlewareHost): MiddlewareHost {
    const isSameMiddleware = outer.trackers.includes(this.#tracker);
    const host = isSameMiddleware
      ? outer
      : new MiddlewareHost(
          { ...outer.options, ...this.#options },
          [...outer.trackers, this.#tracker],
          outer.warnings,
          this.#withOwnIdentities(outer.allIdentities),
        );
    const hasNoEffect = isSameMiddleware || Object.keys(this.#options).length === 0;
    if (hasNoEffect && host.options.warnings !== false) host.warnings.warnMountedTwice();
    return host;
  }

  /** Adds the identities of this middleware to those of the middleware in front. */
  #withOwnIdentities(outer: readonly Identities[]): readonly Identities[] {
    const own = this.#identities;
    if (own === undefined) return outer;
    // The streams also belong to the middleware in front, whose revoke() ends them, too.
    for (const { source } of outer) source.attach(own);
    return [...outer, own];
  }
}

function makeIdentities(options: SseOptions, tracker: StreamTracker): Identities | undefined {
  const { identity, channels } = options;
  if (identity === undefined) return undefined;
  return new Identities(
    channels?.[revocationSource] ?? new LocalRevocations(),
    identity,
    (stream) => (stream.host as MiddlewareHost).options.authorize,
    (streams, { options: closeOptions }) => tracker.endStreams(streams, 'revoked', closeOptions),
  );
}

function isMiddlewareHost(host: StreamHost | undefined): host is MiddlewareHost {
  return host !== undefined && hostBrand in host;
}
