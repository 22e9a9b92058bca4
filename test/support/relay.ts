/** A relay between a node and Redis: a test can cut it, stall it, and remove single messages. */
import { connect, createServer, type AddressInfo, type Socket } from 'node:net';
import { once } from 'node:events';
import { endOfValue, messageOf, type Message } from './resp.ts';

export interface Relay extends AsyncDisposable {
  readonly url: string;
  readonly port: number;
  /** Removed messages, the oldest first. */
  readonly dropped: readonly Message[];
  /** Connections that are open. */
  readonly connections: number;
  /** Connections that were made since the start. */
  readonly made: number;
  /** Removes the next message for which `test` returns true. Other messages, and replies, pass. */
  dropNext(test: (message: Message) => boolean): void;
  /** Removes all messages for which `test` returns true. */
  dropAll(test: (message: Message) => boolean): void;
  /** Removes no further messages. */
  dropNone(): void;
  /** Delays the replies of Redis, or the commands to Redis, until `flow()`. */
  stall(direction: 'replies' | 'commands'): void;
  flow(): void;
  /**
   * Passes nothing more on the connections that are open now, and closes none of them, as a
   * firewall that has forgotten them. New connections work.
   */
  silence(): void;
  /** Relays new connections to the Redis on this port. */
  redirect(port: number): void;
  /** Limits all replies together to a number of bytes per second; `Infinity` is no limit. */
  throttle(bytesPerSecond: number): void;
  /** Cuts all connections. Bytes that are being relayed are lost. */
  cut(): void;
  /** Cuts the connection that was made last, or all of them; resolves when they are closed. */
  closeNewest(): Promise<void>;
  closeAll(): Promise<void>;
  /** Cuts all connections and accepts none until `mend()`. */
  sever(): void;
  mend(): void;
}

/**
 * Listens on a free port of the loopback and relays all bytes to the Redis on the port `target`.
 * @example await using relay = await startRelay(redis.port);
 */
export async function startRelay(target: number): Promise<Relay> {
  const wires = new Set<Wire>();
  const dropped: Message[] = [];
  let next: ((message: Message) => boolean)[] = [];
  let all: ((message: Message) => boolean)[] = [];
  let isSevered = false;
  let destination = target;
  let made = 0;
  let stalled: 'replies' | 'commands' | undefined;
  let rate = Infinity;
  // Time at which the link will have carried all bytes so far.
  let free = 0;

  /** @returns time in ms until the link has carried these bytes, too */
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
    const wire = new Wire(near, connect(destination, '127.0.0.1'), isDropped, carry);
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
    redirect(newTarget) {
      destination = newTarget;
    },
    silence() {
      for (const wire of wires) wire.silence();
    },
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

/** A connection to the relay, and the connection to Redis that belongs to it. */
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
      // The 'close' event follows.
      socket.on('error', () => {});
      socket.on('close', () => this.cut());
    }
  }

  set stalled(direction: 'replies' | 'commands' | undefined) {
    this.#stalled = direction;
    this.#pass();
  }

  silence(): void {
    this.#near.removeAllListeners('data').resume();
    this.#far.removeAllListeners('data').resume();
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
