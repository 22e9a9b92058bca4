/** One `connect()`: calls the listeners, keeps the cursor, and follows the life of the page. */
import { parseJson } from './json.ts';
import type { ReceivedEvent } from './parser.ts';
import { platform } from './platform.ts';
import { Sharing } from './sharing.ts';
import { Source, type SourceOwner } from './source.ts';
import type { ConnectionError, ConnectionState, ConnectOptions, Gap } from './types.ts';

const PREFIX = 'res-sse:';

// The version of the messages between tabs. A new client must not read those of an old page.
const MESSAGES = 1;

/** The reader of the events: a source, alone or shared with other tabs. */
interface Driver {
  start(): void;
  stop(): void;
  check(): void;
  onNetworkChange(): void;
}

/**
 * ```text
 *   Source ──────────────────────▶ LiveConnection ──▶ listeners, onGap, onEnd, onState
 *   Source ──▶ Sharing ──(tabs)──▶ LiveConnection     with `share`
 * ```
 */
export class LiveConnection implements SourceOwner {
  readonly #options: ConnectOptions;
  readonly #driver: Driver;
  readonly #storageKey: string;
  readonly #closer = new AbortController();
  #state: ConnectionState | undefined;
  #isSuspended = true;
  #wasOpen = false;
  cursor: string;

  constructor(url: string | URL, options: ConnectOptions) {
    const { share = false, persist, lastEventId } = options;
    const target = new URL(url, platform.document?.baseURI ?? platform.location?.href);
    const inUrl = target.searchParams.get('lastEventId');
    target.searchParams.delete('lastEventId');
    this.#options = options;
    this.#storageKey = PREFIX + target.href;
    this.cursor = (persist && this.#readStored()) || lastEventId || inUrl || '';
    const createSource = (owner: SourceOwner): Source => new Source(target.href, options, owner);
    const { BroadcastChannel, navigator } = platform;
    this.#driver =
      share !== false && BroadcastChannel && navigator?.locks
        ? new Sharing(`${PREFIX}${MESSAGES}:${target.href} ${share}`, this, createSource)
        : createSource(this);
    // The caller has the connection before a function of the options is called.
    queueMicrotask(() => this.#resume());
    this.#followPage();
  }

  /** Whether `close()` was called, or no more event can come. */
  get isClosed(): boolean {
    return this.#closer.signal.aborted;
  }

  close(): void {
    this.#closer.abort();
    this.#suspend();
  }

  onEvent(event: ReceivedEvent): void {
    const { id, data } = event;
    const { on, parse = parseJson, onGap } = this.#options;
    if (event.event === 'sse:gap') this.#call(() => onGap?.(parseJson(data) as Gap));
    else if (on && Object.hasOwn(on, event.event) && !event.event.startsWith('sse:')) {
      this.#call(() => on[event.event]?.(parse(data, event), event));
    }
    // After the calls: if the page ends before, the event is received again.
    if (id === undefined) return;
    this.cursor = id;
    this.#store();
  }

  onState(state: ConnectionState, error?: ConnectionError): void {
    const isOpen = state === 'open' || state === 'polling';
    this.#wasOpen ||= isOpen;
    const shown = state === 'connecting' && this.#wasOpen ? 'reconnecting' : state;
    const isNew = shown !== this.#state;
    this.#state = shown;
    if (isNew) this.#call(() => this.#options.onState?.(shown, error));
    if (state === 'failed') this.close();
  }

  onEnd(): void {
    this.onState('ended');
    this.#call(() => this.#options.onEnd?.());
    this.close();
  }

  /** Calls a function of the options. An error becomes an uncaught error, as in event listeners. */
  #call(callback: () => void): void {
    if (this.isClosed) return;
    try {
      callback();
    } catch (error) {
      queueMicrotask(() => {
        throw error;
      });
    }
  }

  #resume(): void {
    if (this.isClosed || !this.#isSuspended) return;
    this.#isSuspended = false;
    this.onState('connecting');
    // The application may have closed the connection in `onState`.
    if (!this.#isSuspended) this.#driver.start();
  }

  /** Ends the connection, and lets another tab take over. The cursor remains. */
  #suspend(): void {
    this.#isSuspended = true;
    this.#driver.stop();
  }

  #followPage(): void {
    const { signal } = this.#closer;
    const { document } = platform;
    const onNetworkChange = (): void => this.#driver.onNetworkChange();
    const suspend = (): void => this.#suspend();
    const resume = (): void => this.#resume();
    platform.addEventListener?.('online', onNetworkChange, { signal });
    platform.addEventListener?.('offline', onNetworkChange, { signal });
    // A page in the back/forward cache and a frozen page cannot read.
    platform.addEventListener?.('pagehide', suspend, { signal });
    platform.addEventListener?.('pageshow', resume, { signal });
    document?.addEventListener?.('freeze', suspend, { signal });
    document?.addEventListener?.('resume', resume, { signal });
    // Timers of a hidden page are late.
    document?.addEventListener?.('visibilitychange', () => this.#driver.check(), { signal });
  }

  // The storage can be blocked or full; then the next page starts without it.
  #readStored(): string {
    try {
      return platform.sessionStorage?.getItem(this.#storageKey) ?? '';
    } catch {
      return '';
    }
  }

  #store(): void {
    try {
      if (this.#options.persist) platform.sessionStorage?.setItem(this.#storageKey, this.cursor);
    } catch {
      // As above.
    }
  }
}
