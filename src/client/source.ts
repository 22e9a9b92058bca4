/** One event stream over HTTP: requests, reading, the watch for silence, and reconnecting. */
import { parseJson } from './json.ts';
import { EventStreamParser, type ReceivedEvent } from './parser.ts';
import { platform } from './platform.ts';
import type { ConnectionError, ConnectionState, ConnectOptions } from './types.ts';

const EVENT_STREAM = /^text\/event-stream\b/i;

// Other statuses below 500 do not change by themselves.
const RETRIED_STATUSES = new Set([408, 425, 429]);

/** A failed request. */
interface HttpError extends ConnectionError {
  /** The value of `Retry-After` in ms. */
  retryAfter?: number;
}

/** The owner of a source. */
export interface SourceOwner {
  /** The id of the last event, at which the next request resumes. */
  readonly cursor: string;
  onEvent(event: ReceivedEvent): void;
  onState(state: ConnectionState, error?: ConnectionError): void;
  /** Everything has been received. The source has stopped. */
  onEnd(): void;
}

// Time in ms for the function `headers`.
const HEADERS_TIMEOUT_MS = 30_000;

// Time in ms in which the first byte of a stream arrives. A proxy may hold it back for ever.
const FIRST_BYTE_TIMEOUT_MS = 10_000;

// Time in ms after the request at which a missing first byte is noticed at the latest, unless the
// machine slept. Timers of hidden pages are up to a minute late.
const MAX_LATE_MS = 120_000;

// Time in ms in which a poll is answered. The server answers after 25 s at the latest.
const POLL_TIMEOUT_MS = 40_000;

// Time in ms of polls after which a stream is tried again. The server may only have been slow.
const POLLING_MS = 600_000;

// Time in ms of silence after which a connection is dead, while the heartbeat is not known.
const SILENCE_MS = 60_000;

// Shorter pauses before a comment in ms are not heartbeats, but comments of the application.
const MIN_HEARTBEAT_MS = 4_000;

// Default reconnection time in ms, also the minimum after a failure; and the limit of its doubling.
const RETRY_MS = 1_000;
const MAX_RETRY_MS = 30_000;

// Timers of a machine that sleeps stop. So the clock is looked at this often.
const CHECK_MS = 5_000;

/**
 * Reads a stream until it is stopped:
 *
 * ```text
 *            ┌──────────── wait: retry time, backoff, Retry-After ◀──────────┐
 *   start ──▶ headers() ──▶ request ──▶ first byte ──▶ events ──▶ end, cut, silence
 *                 30 s          10 s, else poll          2 heartbeats
 * ```
 *
 * At each moment there is one deadline. A timer notices when it has passed, and so does `check()`.
 */
export class Source {
  readonly #url: string;
  readonly #options: ConnectOptions;
  readonly #owner: SourceOwner;
  // Aborted by `stop()`.
  #stopper: AbortController | undefined;
  #timer: ReturnType<typeof setTimeout> | undefined;
  // The deadline: `#onDeadline()` is called `#limit` ms after `#since`.
  #since = 0;
  #limit = 0;
  #onDeadline: (() => void) | undefined;
  // Whether the source waits after a failure of the network.
  #isWaitingForNetwork = false;
  // Whether a byte of the current response has arrived.
  #hasReceived = false;
  // Time in ms between the last bytes and those before them.
  #pause = 0;
  // The interval of the heartbeat in ms; 0 if it is not known.
  #heartbeat = 0;
  #retry = RETRY_MS;
  #failures = 0;
  #isPolling = false;
  // When a stream is tried again.
  #pollsUntil = 0;
  // Whether the current request is the second one after a 401 or 403.
  #isSecondTry = false;

  constructor(url: string, options: ConnectOptions, owner: SourceOwner) {
    this.#url = url;
    this.#options = options;
    this.#owner = owner;
  }

  /** Starts with a request at the owner's cursor. */
  start(): void {
    this.stop();
    this.#failures = 0;
    this.#stopper = new AbortController();
    void this.#run(this.#stopper.signal);
  }

  stop(): void {
    this.#stopper?.abort();
    this.#stopper = undefined;
    this.#onDeadline = undefined;
    clearTimeout(this.#timer);
  }

  /** Acts if the deadline has passed. Called when timers may be late, too. */
  check(): void {
    clearTimeout(this.#timer);
    const now = Date.now();
    // The clock was set back.
    if (now < this.#since) this.#since = now;
    const rest = this.#since + this.#limit - now;
    if (rest <= 0) this.#expire();
    else if (this.#onDeadline) {
      this.#timer = setTimeout(() => this.check(), Math.min(rest, CHECK_MS));
    }
  }

  /** The network has changed: an open connection may be dead, and a new one may succeed. */
  onNetworkChange(): void {
    const mayChange = this.#isWaitingForNetwork || this.#hasReceived || this.#isPolling;
    this.#isPolling = false;
    if (mayChange) this.#expire();
  }

  #expire(): void {
    const onDeadline = this.#onDeadline;
    this.#onDeadline = undefined;
    onDeadline?.();
  }

  #setDeadline(ms: number, onDeadline: () => void): void {
    this.#since = Date.now();
    this.#limit = ms;
    this.#onDeadline = onDeadline;
    this.check();
  }

  async #run(stopped: AbortSignal): Promise<void> {
    while (!stopped.aborted) {
      const delay = await this.#attempt(stopped);
      if (stopped.aborted) return;
      await this.#wait(delay);
    }
  }

  #wait(ms: number): Promise<void> {
    return new Promise((resolve) => {
      this.#setDeadline(ms, resolve);
    });
  }

  /** @returns a promise of the time in ms after which the next attempt follows */
  async #attempt(stopped: AbortSignal): Promise<number> {
    const attempt = new AbortController();
    const abort = (): void => attempt.abort();
    stopped.addEventListener('abort', abort);
    const wasPolling = this.#isPolling;
    this.#isWaitingForNetwork = this.#hasReceived = false;
    let delay: number | undefined;
    let error: ConnectionError | undefined;
    let isSilent = false;
    try {
      delay = await this.#exchange(attempt, stopped);
    } catch (reason) {
      isSilent = attempt.signal.aborted;
      error = (isSilent ? attempt.signal.reason : reason) as ConnectionError;
    }
    stopped.removeEventListener('abort', abort);
    abort();
    if (stopped.aborted) return 0;
    return delay ?? this.#afterAttempt(error, isSilent, wasPolling);
  }

  /** @returns the time in ms after which the next attempt follows */
  #afterAttempt(error: HttpError | undefined, isSilent: boolean, wasPolling: boolean): number {
    const now = Date.now();
    const hasReceived = this.#hasReceived;
    this.#hasReceived = false;
    this.#isWaitingForNetwork = error !== undefined && error.status === undefined;
    // The end of a poll is not the end of the connection.
    if (error || !wasPolling) this.#owner.onState('reconnecting', error);
    if (wasPolling) this.#isPolling &&= hasReceived && !error && now < this.#pollsUntil;
    else if (isSilent) {
      // The heartbeat may have been measured too short.
      if (hasReceived) this.#heartbeat = 0;
      else {
        const wasAwake = now - this.#since < MAX_LATE_MS;
        this.#isPolling = wasAwake && platform.navigator?.onLine !== false;
      }
      this.#pollsUntil = now + POLLING_MS;
      return 0;
    }
    const base = this.#failures > 0 ? Math.max(this.#retry, RETRY_MS) : this.#retry;
    const delay = Math.min(base * 2 ** this.#failures++, Math.max(base, MAX_RETRY_MS));
    return Math.max(delay * (1 + Math.random()), error?.retryAfter ?? 0);
  }

  /**
   * Makes one request, and reads the response to its end.
   * @returns a promise of the time in ms after which the next request follows, `undefined` for the
   * usual time; rejects if the request or the connection failed
   */
  async #exchange(attempt: AbortController, stopped: AbortSignal): Promise<number | undefined> {
    const isSecondTry = this.#isSecondTry;
    this.#isSecondTry = false;
    const response = await this.#request(attempt);
    const { status } = response;
    const { cursor } = this.#owner;
    attempt.signal.throwIfAborted();
    if (status === 204) this.#end();
    else if (status === 200 && EVENT_STREAM.test(response.headers.get('content-type') ?? '')) {
      await this.#read(response, stopped);
      return undefined;
    } else if (status === 410 && cursor !== '') {
      const data = JSON.stringify({ channels: [], after: cursor, cursor: '' });
      this.#owner.onEvent({ event: 'sse:gap', data, id: '' });
    } else if ((status === 401 || status === 403) && this.#options.headers && !isSecondTry) {
      this.#isSecondTry = true;
    } else this.#refuse(response);
    return 0;
  }

  async #request(attempt: AbortController): Promise<Response> {
    const { headers, credentials = 'same-origin' } = this.#options;
    const given = await Promise.race([
      // First, because the application may close the connection in `headers`.
      new Promise<never>((_, reject) => {
        this.#setDeadline(HEADERS_TIMEOUT_MS, () => reject(new Error('headers() timed out')));
      }),
      headers?.(),
    ]);
    attempt.signal.throwIfAborted();
    const url = new URL(this.#url);
    // In the query, because a header would need a preflight request at another origin.
    if (this.#owner.cursor !== '') url.searchParams.set('lastEventId', this.#owner.cursor);
    if (this.#isPolling) url.searchParams.set('ssePoll', '1');
    this.#setDeadline(this.#isPolling ? POLL_TIMEOUT_MS : FIRST_BYTE_TIMEOUT_MS, () =>
      attempt.abort(new Error(`no byte arrived for ${this.#limit} ms`)),
    );
    return fetch(url, {
      headers: { Accept: 'text/event-stream', ...given },
      credentials,
      cache: 'no-store',
      signal: attempt.signal,
      // The types of Node do not know `cache`.
    } as RequestInit);
  }

  /** @throws {Error} if another request may succeed later */
  #refuse({ status, headers }: Response): void {
    const error: HttpError = new Error(
      status === 200
        ? `the response is not an event stream but ${headers.get('content-type')}`
        : `the response has the status ${status}`,
    );
    error.status = status;
    if (status >= 500 || RETRIED_STATUSES.has(status)) {
      const value = headers.get('retry-after') ?? '';
      error.retryAfter = Number(value) * 1_000 || Date.parse(value) - Date.now() || 0;
      throw error;
    }
    this.stop();
    this.#owner.onState('failed', error);
  }

  async #read({ body }: Response, stopped: AbortSignal): Promise<void> {
    const onEvent = (event: ReceivedEvent): void => {
      // A listener may have stopped the source.
      if (!stopped.aborted) this.#onEvent(event);
    };
    const parser = new EventStreamParser({
      onEvent,
      onId: (id) => onEvent({ event: 'sse:checkpoint', data: '', id }),
      onComment: () => this.#onHeartbeat(this.#pause, MIN_HEARTBEAT_MS),
      onRetry: (ms) => {
        this.#retry = ms;
      },
    });
    const decoder = new TextDecoder();
    const reader = (body as ReadableStream<Uint8Array>).getReader();
    for (;;) {
      const { done, value } = await reader.read();
      if (done || stopped.aborted) return;
      this.#onBytes();
      parser.feed(decoder.decode(value, { stream: true }));
    }
  }

  #onBytes(): void {
    const now = Date.now();
    this.#pause = this.#hasReceived ? now - this.#since : 0;
    this.#since = now;
    if (this.#hasReceived) return;
    this.#hasReceived = true;
    this.#failures = 0;
    this.#limit = this.#heartbeat * 2 || SILENCE_MS;
    this.check();
    this.#owner.onState(this.#isPolling ? 'polling' : 'open');
  }

  #onEvent(event: ReceivedEvent): void {
    if (event.event === 'sse:end') this.#end();
    else if (event.event === 'sse:ping') {
      const { interval = this.#pause } = Object(parseJson(event.data)) as { interval?: number };
      this.#onHeartbeat(interval, 1);
    } else this.#owner.onEvent(event);
  }

  /** @param min shorter intervals are no heartbeats */
  #onHeartbeat(interval: number, min: number): void {
    // Heartbeats that were delayed arrive together. So the longest interval counts.
    if (!(interval >= min) || interval <= this.#heartbeat) return;
    this.#heartbeat = Math.min(interval, SILENCE_MS);
    this.#limit = this.#heartbeat * 2;
    this.check();
  }

  #end(): void {
    this.stop();
    this.#owner.onEnd();
  }
}
