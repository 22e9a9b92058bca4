/** A wire to Redis that a test holds in its hands: it cuts it, clogs it, and takes single messages out. */
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { once } from 'node:events';
import { endOfValue, messageOf, type Message } from './resp.ts';

export interface Relay extends AsyncDisposable {
  readonly url: string;
  readonly port: number;
  /** Messages that were taken out, the oldest first. */
  readonly dropped: readonly Message[];
  /** Connections that are open. */
  readonly connections: number;
  /** Connections that were made since the start. */
  readonly made: number;
  /** Takes the next message out for which the test is true. Others, and replies, pass. */
  dropNext(test: (message: Message) => boolean): void;
  /** From here on no message passes for which the test is true. */
  dropAll(test: (message: Message) => boolean): void;
  /** Messages pass again. */
  dropNone(): void;
  /** Holds the replies of Redis back, or the commands to Redis, until `flow()`. */
  stall(direction: 'replies' | 'commands'): void;
  flow(): void;
  /** From here on all replies together pass at so many bytes in a second; `Infinity`: at once. */
  throttle(bytesPerSecond: number): void;
  /** Cuts all connections; what is on the way is lost. */
  cut(): void;
  /** Cuts the connection that was made last, or all of them; resolves when they are closed. */
  closeNewest(): Promise<void>;
  closeAll(): Promise<void>;
  /** Cuts all connections and takes none until `mend()`. */
  sever(): void;
  mend(): void;
}

/**
 * Listens on a free port of the loopback and passes everything on to the Redis on the other.
 * @example await using relay = await startRelay(redis.port);
 */
export async function startRelay(target: number): Promise<Relay> {
  const wires = new Set<Wire>();
  const dropped: Message[] = [];
  let next: ((message: Message) => boolean)[] = [];
  let all: ((message: Message) => boolean)[] = [];
  let isSevered = false;
  let made = 0;
  let stalled: 'replies' | 'commands' | undefined;
  let rate = Infinity;
  // When the link has carried what it was given.
  let free = 0;

  /** @returns ms until the link may be given more */
  function carry(bytes: number): number {
    const now = performance.now();
    free = Math.max(free, now) + (bytes * 1_000) / rate;
    return free - now;
  }

  function isDropped(message: Message): boolean {
    const index = next.findIndex((test) => test(message));
    if (index !== -1) next = next.toSpliced(index, 1);
    else if (!all.some((test) => test(message))) return false;
    dropped.push(message);
    return true;
  }

  const server = createServer((near) => {
    if (isSevered) {
      near.destroy();
      return;
    }
    made++;
    const wire = new Wire(near, connect(target, '127.0.0.1'), isDropped, carry);
    wires.add(wire);
    wire.stalled = stalled;
    near.on('close', () => void wires.delete(wire));
  });
  server.listen(0, '127.0.0.1');
  await once(server, 'listening');
  const { port } = server.address() as AddressInfo;

  function stall(direction: typeof stalled): void {
    stalled = direction;
    for (const wire of wires) wire.stalled = direction;
  }

  function cut(): void {
    for (const wire of wires) wire.cut();
  }

  return {
    url: `redis://127.0.0.1:${port}`,
    port,
    dropped,
    get connections() {
      return wires.size;
    },
    get made() {
      return made;
    },
    dropNext: (test) => void next.push(test),
    dropAll: (test) => void all.push(test),
    dropNone() {
      next = [];
      all = [];
    },
    stall,
    flow: () => stall(undefined),
    throttle(bytesPerSecond) {
      rate = bytesPerSecond;
      free = 0;
    },
    cut,
    closeNewest: async () => [...wires].at(-1)?.close(),
    async closeAll() {
      await Promise.all(Array.from(wires, (wire) => wire.close()));
    },
    sever() {
      isSevered = true;
      cut();
    },
    mend() {
      isSevered = false;
    },
    async [Symbol.asyncDispose]() {
      const closed = once(server, 'close');
      server.close();
      cut();
      await closed;
    },
  };
}

/** One connection, and its other half. */
class Wire {
  readonly #near: Socket;
  readonly #far: Socket;
  readonly #isDropped: (message: Message) => boolean;
  #stalled: 'replies' | 'commands' | undefined;
  #replies = Buffer.alloc(0);
  #commands: Buffer[] = [];

  constructor(
    near: Socket,
    far: Socket,
    isDropped: (message: Message) => boolean,
    carry: (bytes: number) => number,
  ) {
    this.#near = near;
    this.#far = far;
    this.#isDropped = isDropped;
    near.setNoDelay();
    far.setNoDelay();
    near.on('data', (bytes) => {
      this.#commands.push(bytes);
      this.#pass();
    });
    far.on('data', (bytes) => {
      const wait = carry(bytes.length);
      if (wait < 1) {
        this.#takeReplies(bytes);
        return;
      }
      far.pause();
      setTimeout(() => {
        this.#takeReplies(bytes);
        far.resume();
      }, wait);
    });
    for (const socket of [near, far]) {
      // Told by its end.
      socket.on('error', () => {});
      socket.on('close', () => this.cut());
    }
  }

  set stalled(direction: 'replies' | 'commands' | undefined) {
    this.#stalled = direction;
    this.#pass();
  }

  cut(): void {
    this.#near.destroy();
    this.#far.destroy();
  }

  async close(): Promise<void> {
    const closed = once(this.#near, 'close');
    this.cut();
    await closed;
  }

  #takeReplies(bytes: Buffer): void {
    this.#replies = Buffer.concat([this.#replies, bytes]);
    this.#pass();
  }

  #pass(): void {
    if (this.#stalled !== 'commands') {
      for (const bytes of this.#commands) this.#far.write(bytes);
      this.#commands = [];
    }
    if (this.#stalled !== 'replies') this.#passReplies();
  }

  #passReplies(): void {
    const passing: Buffer[] = [];
    let at = 0;
    for (;;) {
      const end = at < this.#replies.length ? endOfValue(this.#replies, at) : undefined;
      if (end === undefined) break;
      const value = this.#replies.subarray(at, end);
      const message = messageOf(value);
      if (message === undefined || !this.#isDropped(message)) passing.push(value);
      at = end;
    }
    this.#replies = this.#replies.subarray(at);
    if (passing.length > 0) this.#near.write(Buffer.concat(passing));
  }
}
