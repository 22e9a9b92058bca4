/** The default broker: order and delivery within one process. */
import cluster from 'node:cluster';
import { randomBytes } from 'node:crypto';
import { SseError } from '../errors.ts';
import type { Broker, LogEntry, Publication } from './broker.ts';

/**
 * A broker for a single process. What is published in another process does not arrive here,
 * so in a `node:cluster` worker it warns.
 */
export function memoryBroker(): Broker {
  if (cluster.isWorker) {
    process.emitWarning('memoryBroker() in a cluster worker reaches only the streams of that worker', {
      code: 'RES_SSE_MEMORY_BROKER_IN_CLUSTER',
      detail: 'Give createChannels() a broker that all workers share.',
    });
  }
  return new MemoryBroker();
}

class MemoryBroker implements Broker {
  // A new process is a new log: its ids must never be taken for those of the one before.
  readonly #epoch = randomBytes(6).toString('base64url');
  readonly #listened = new Set<string>();
  #receive: ((entry: LogEntry) => void) | undefined;
  #offset = 0;
  #closed = false;

  get head(): number {
    return this.#offset;
  }

  open(receive: (entry: LogEntry) => void): void {
    if (this.#receive !== undefined) {
      throw new SseError('ERR_SSE_OTHER_REGISTRY', 'this broker serves another registry already; give each createChannels() one of its own');
    }
    this.#receive = receive;
  }

  append(publication: Publication): Promise<LogEntry> {
    if (this.#closed) return Promise.reject(new SseError('ERR_SSE_CLOSED', 'the channels are closed'));
    const offset = ++this.#offset;
    const entry = { ...publication, offset, id: `${this.#epoch}.${offset}` };
    if (this.#listened.has(entry.channel)) this.#receive?.(entry);
    return Promise.resolve(entry);
  }

  listen(channel: string): undefined {
    this.#listened.add(channel);
  }

  unlisten(channel: string): void {
    this.#listened.delete(channel);
  }

  close(): Promise<void> {
    this.#closed = true;
    this.#listened.clear();
    return Promise.resolve();
  }
}
