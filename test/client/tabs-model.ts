/**
 * A browser with tabs, and a server with a log, in one process: Web Locks, BroadcastChannel and
 * `fetch` of a test. Tabs can crash and freeze at any moment, and messages of a tab that crashes
 * can be lost for some of the others.
 */
import { AsyncLocalStorage } from 'node:async_hooks';
import { vi } from 'vitest';
import { connect } from '../../src/client/index.ts';

export interface Tab {
  readonly name: string;
  /** The numbers of the events, and `gap` for each gap that the page was told of. */
  readonly received: (number | 'gap')[];
  /** The number after which events are due. */
  due: number;
  isOpen: boolean;
  /** Whether its connection is closed. The page goes on. */
  isClosed: boolean;
  /** The state or event at which the page closes its connection. */
  closesAt: string | number | undefined;
  isEnded: boolean;
  /** The listeners of `pagehide` and others. */
  readonly listeners: Map<string, () => void>;
  /** Whether the server answers its requests with 401. */
  isRefused: boolean;
  isDead: boolean;
  isFrozen: boolean;
  close: () => void;
  /** Work that waits for a frozen tab. */
  readonly waiting: (() => void)[];
}

interface Channel {
  readonly tab: Tab;
  readonly key: string;
  onmessage: ((message: { data: unknown }) => void) | null;
  /** Messages that are on their way, with their senders. */
  queue: { from: Tab; data: unknown }[];
}

interface LockRequest {
  readonly tab: Tab;
  readonly callback: () => Promise<void>;
  readonly resolve: () => void;
  readonly reject: (error: Error) => void;
}

interface Stream {
  readonly tab: Tab;
  readonly controller: ReadableStreamDefaultController<Uint8Array>;
}

export class Model {
  readonly tabs: Tab[] = [];
  /** Number of the newest event. */
  head = 0;
  /** Number of events that the server keeps. */
  history = Infinity;
  /** The number after which a page without an id starts. @defaultValue the newest event */
  since: number | undefined;
  /** Whether the server answers 410 instead of telling of a gap. */
  answersGone = false;
  /** The id of an event. @defaultValue that of a channel */
  idOf = (number: number): string => `epoch-00.${number}`;
  isEnded = false;
  /** Whether a proxy holds responses back until they end, so that only polls are answered. */
  isBuffering = false;
  /** Whether requests fail. */
  isDown = false;
  /** Whether the page may not use locks, as a page in a sandbox. */
  isLockBlocked = false;
  /** Whether the page may not use channels, as a page without cookies in Firefox. */
  isChannelBlocked = false;
  /** The next message to this tab is lost. */
  losesMessage: Tab | undefined;
  /** The names of locks and channels. */
  readonly names = new Set<string>();
  /** Whether the newest request is a poll. */
  isPolled = false;
  /** Number of requests for a stream. */
  requests = 0;
  // Fake timers that belong to no tab.
  readonly #setTimeout = globalThis.setTimeout;
  readonly #context = new AsyncLocalStorage<Tab>();
  readonly #streams = new Set<Stream>();
  readonly #channels = new Set<Channel>();
  #holder: LockRequest | undefined;
  #requests: LockRequest[] = [];

  /** Replaces the globals. The caller restores them, and has fake timers. */
  constructor() {
    vi.stubGlobal('setTimeout', (callback: () => void, ms: number) => {
      const tab = this.#context.getStore();
      return this.#setTimeout(() => (tab ? this.#run(tab, callback) : callback()), ms);
    });
    vi.stubGlobal('addEventListener', (type: string, listener: () => void) => {
      this.#currentTab().listeners.set(type, listener);
    });
    vi.stubGlobal('navigator', { onLine: true, locks: { request: this.#requestLock.bind(this) } });
    vi.stubGlobal('fetch', this.#fetch.bind(this));
    const { open, post, shut } = {
      open: this.#openChannel.bind(this),
      post: this.#post.bind(this),
      shut: (channel: Channel) => this.#channels.delete(channel),
    };
    vi.stubGlobal(
      'BroadcastChannel',
      class {
        readonly #channel: Channel;
        constructor(key: string) {
          this.#channel = open(key);
        }
        set onmessage(listener: Channel['onmessage']) {
          // oxlint-disable-next-line unicorn/prefer-add-event-listener -- a field of the model
          this.#channel.onmessage = listener;
        }
        postMessage(data: unknown): void {
          post(this.#channel, data);
        }
        close(): void {
          shut(this.#channel);
        }
      },
    );
  }

  get streams(): number {
    return this.#streams.size;
  }

  /** The tabs with a connection that is not closed. */
  get alive(): Tab[] {
    return this.tabs.filter(({ isDead, isClosed }) => !isDead && !isClosed);
  }

  /** Counts of the things that the browser keeps for the connections. */
  remains(): Record<'streams' | 'channels' | 'locks', number> {
    return {
      streams: this.#streams.size,
      channels: this.#channels.size,
      locks: this.#requests.length + (this.#holder ? 1 : 0),
    };
  }

  /** @param from the number of the event after which the page is; `undefined` for a page without */
  open(from?: number): Tab {
    const tab: Tab = {
      name: `tab ${this.tabs.length}`,
      received: [],
      due: from ?? Infinity,
      isOpen: false,
      isClosed: false,
      closesAt: undefined,
      isEnded: false,
      listeners: new Map(),
      isRefused: false,
      isDead: false,
      isFrozen: false,
      close: () => {},
      waiting: [],
    };
    this.tabs.push(tab);
    this.#context.run(tab, () => {
      const connection = connect('http://server/events', {
        share: true,
        lastEventId: from === undefined ? '' : this.idOf(from),
        on: { message: (number) => this.#receive(tab, number as number) },
        onGap: () => this.#receive(tab, 'gap'),
        onEnd: () => {
          tab.isEnded = true;
        },
        onState: (state) => {
          if (state === tab.closesAt) {
            this.close(tab);
            return;
          }
          // After a failure nothing is called any more.
          if (state === 'failed') tab.isClosed = true;
          tab.isOpen = state === 'open' || state === 'polling';
          // From now on a page without an id misses nothing.
          if (tab.isOpen) tab.due = Math.min(tab.due, this.head);
        },
      });
      tab.close = () => connection.close();
    });
    return tab;
  }

  #receive(tab: Tab, item: number | 'gap'): void {
    if (tab.isDead) return;
    if (tab.isClosed) throw new Error(`${tab.name} received ${item} after close()`);
    tab.received.push(item);
    if (item === tab.closesAt) this.close(tab);
  }

  publish(): void {
    if (this.isEnded) return;
    this.head++;
    for (const stream of this.#streams) this.#write(stream, this.#eventText(this.head));
  }

  end(): void {
    this.isEnded = true;
    for (const stream of this.#streams) this.#write(stream, END);
  }

  /** The page goes to the back/forward cache, or comes back. */
  dispatch(tab: Tab, type: 'pagehide' | 'pageshow'): void {
    const listener = tab.listeners.get(type);
    if (listener && !tab.isClosed) this.#run(tab, listener);
  }

  close(tab: Tab): void {
    this.#context.run(tab, tab.close);
    tab.isClosed = true;
  }

  /** @param keep returns whether a message of the tab that is on its way arrives */
  crash(tab: Tab, keep: () => boolean): void {
    tab.isDead = true;
    for (const channel of this.#channels) {
      if (channel.tab === tab) this.#channels.delete(channel);
      // The messages that were sent last are lost.
      let isLost = false;
      channel.queue = channel.queue.filter((message) => {
        if (message.from !== tab) return true;
        isLost ||= !keep();
        return !isLost;
      });
    }
    for (const stream of this.#streams) if (stream.tab === tab) this.#streams.delete(stream);
    this.#requests = this.#requests.filter((request) => request.tab !== tab);
    if (this.#holder?.tab === tab) this.#grant(undefined);
  }

  /** @param areMessagesFirst whether the messages are delivered before the loss of the lock */
  thaw(tab: Tab, areMessagesFirst = Math.random() < 0.5): void {
    tab.isFrozen = false;
    const channels = [...this.#channels].filter((channel) => channel.tab === tab);
    if (areMessagesFirst) for (const channel of channels) this.#deliver(channel);
    for (const work of tab.waiting.splice(0)) this.#run(tab, work);
    for (const channel of channels) queueMicrotask(() => this.#deliver(channel));
  }

  /** Cuts all connections. */
  cut(): void {
    for (const stream of this.#streams) {
      this.#streams.delete(stream);
      this.#run(stream.tab, () => stream.controller.error(new TypeError('cut')));
    }
  }

  #run(tab: Tab, work: () => void): void {
    if (tab.isDead) return;
    if (tab.isFrozen) tab.waiting.push(work);
    else this.#context.run(tab, work);
  }

  #currentTab(): Tab {
    const tab = this.#context.getStore();
    if (tab === undefined) throw new Error('called outside of a tab');
    return tab;
  }

  #openChannel(key: string): Channel {
    if (this.isChannelBlocked) throw new Error('SecurityError');
    this.names.add(key);
    const channel: Channel = { tab: this.#currentTab(), key, onmessage: null, queue: [] };
    if (!channel.tab.isDead) this.#channels.add(channel);
    return channel;
  }

  #post(from: Channel, data: unknown): void {
    if (from.tab.isDead || !this.#channels.has(from)) return;
    for (const channel of this.#channels) {
      if (channel === from || channel.key !== from.key) continue;
      if (channel.tab === this.losesMessage) {
        this.losesMessage = undefined;
        continue;
      }
      channel.queue.push({ from: from.tab, data: structuredClone(data) });
      this.#setTimeout(() => this.#deliver(channel, from.tab), 1 + Math.random() * 5);
    }
  }

  /** @param sender whose messages are delivered. Messages of two senders can overtake each other */
  #deliver(channel: Channel, sender?: Tab): void {
    if (channel.tab.isFrozen || !this.#channels.has(channel)) return;
    const isDue = ({ from }: { from: Tab }): boolean => sender === undefined || from === sender;
    const messages = channel.queue.filter(isDue);
    channel.queue = channel.queue.filter((message) => !isDue(message));
    for (const { data } of messages) this.#run(channel.tab, () => channel.onmessage?.({ data }));
  }

  #requestLock(
    name: string,
    { signal, steal }: { signal?: AbortSignal; steal?: boolean },
    callback: () => Promise<void>,
  ): Promise<void> {
    const tab = this.#currentTab();
    this.names.add(name);
    if (this.isLockBlocked) return Promise.reject(new Error('SecurityError'));
    return new Promise((resolve, reject) => {
      const request: LockRequest = { tab, callback, resolve, reject };
      if (tab.isDead) return;
      signal?.addEventListener('abort', () => {
        if (!this.#requests.includes(request)) return;
        this.#requests = this.#requests.filter((each) => each !== request);
        reject(new Error('AbortError'));
      });
      if (steal) {
        const stolen = this.#holder;
        this.#grant(request);
        if (stolen) this.#run(stolen.tab, () => stolen.reject(new Error('AbortError')));
      } else {
        this.#requests.push(request);
        if (this.#holder === undefined) this.#grant(this.#requests.shift());
      }
    });
  }

  #grant(request = this.#requests.shift()): void {
    this.#holder = request;
    if (request === undefined) return;
    this.#setTimeout(() => {
      this.#run(request.tab, () => {
        void this.#hold(request);
      });
    }, Math.random() * 10);
  }

  async #hold(request: LockRequest): Promise<void> {
    await request.callback();
    request.resolve();
    if (this.#holder === request) this.#grant();
  }

  async #fetch(url: URL, { signal }: { signal: AbortSignal }): Promise<Response> {
    const tab = this.#currentTab();
    this.requests++;
    await new Promise((resolve) => void setTimeout(resolve, Math.random() * 20));
    if (tab.isDead) return new Promise(() => {});
    signal.throwIfAborted();
    if (this.isDown) throw new TypeError('fetch failed');
    if (tab.isRefused) return new Response(null, { status: 401 });
    const id = url.searchParams.get('lastEventId');
    const after = id === null ? (this.since ?? this.head) : this.#numberOf(id);
    const oldest = this.head - this.history;
    if (this.isEnded && after === this.head) return new Response(null, { status: 204 });
    if (this.answersGone && after < oldest) return new Response(null, { status: 410 });
    const isPoll = url.searchParams.has('ssePoll');
    this.isPolled = isPoll;
    if (this.isBuffering || isPoll) await this.#untilAnswer(after, isPoll, signal);
    const body = new ReadableStream<Uint8Array>({
      start: (controller) => {
        const stream = { tab, controller };
        this.#streams.add(stream);
        signal.addEventListener('abort', () => {
          if (this.#streams.delete(stream)) controller.error(signal.reason);
        });
        // The history may have lost more while a poll waited.
        const text = this.#firstText(after, this.head - this.history);
        if (isPoll) {
          controller.enqueue(new TextEncoder().encode(text));
          controller.close();
          this.#streams.delete(stream);
        } else this.#write(stream, text);
      },
    });
    return new Response(body, { headers: { 'Content-Type': 'text/event-stream' } });
  }

  /** Until a poll has something to tell. A stream has no end, so nothing of it arrives. */
  async #untilAnswer(after: number, isPoll: boolean, signal: AbortSignal): Promise<void> {
    if (!isPoll) await new Promise((resolve) => signal.addEventListener('abort', resolve));
    for (let ms = 0; ms < 25_000 && this.head === after && !this.isEnded; ms += 500) {
      signal.throwIfAborted();
      await new Promise((resolve) => void setTimeout(resolve, 500));
      if (this.isDown) throw new TypeError('cut');
    }
    signal.throwIfAborted();
  }

  #firstText(after: number, oldest: number): string {
    let text = after < oldest ? this.#gapText(after) : this.#checkpointText(after);
    for (let number = Math.max(after, oldest) + 1; number <= this.head; number++) {
      text += this.#eventText(number);
    }
    return `retry: 100\n${text}${this.isEnded ? END : this.#checkpointText(this.head)}`;
  }

  #write(stream: Stream, text: string): void {
    this.#setTimeout(() => {
      this.#run(stream.tab, () => {
        if (this.#streams.has(stream)) stream.controller.enqueue(new TextEncoder().encode(text));
      });
    }, 5);
  }

  #numberOf(id: string): number {
    let number = 0;
    while (this.idOf(number) !== id) number++;
    return number;
  }

  #eventText(number: number): string {
    return `data: ${number}\nid: ${this.idOf(number)}\n\n`;
  }

  #checkpointText(number: number): string {
    return `event: sse:checkpoint\ndata: {}\nid: ${this.idOf(number)}\n\n`;
  }

  #gapText(after: number): string {
    const data = { channels: ['news'], after: this.idOf(after), cursor: this.idOf(this.head) };
    return `event: sse:gap\ndata: ${JSON.stringify(data)}\n\n`;
  }
}

const END = 'event: sse:end\ndata: {}\nid: sse:end\n\n';
