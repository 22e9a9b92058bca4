/** The default broker: order, history and delivery within one process. */
import cluster from 'node:cluster';
import { randomBytes } from 'node:crypto';
import { performance } from 'node:perf_hooks';
import type { Cursor } from '../protocol/cursor.ts';
import { Log, type HistoryLimits } from '../log/log.ts';
import { LogEntry } from '../log/log-entry.ts';
import type { Broker, BrokerState, LogBounds, Page, Publication, Receiver } from './broker.ts';
import { closedError, otherRegistryError } from './errors.ts';

// So long a key is remembered, in ms, and so many of them at most; the oldest are forgotten first.
const KEY_MEMORY = 300_000;
const MAX_KEYS = 100_000;

/**
 * A broker for a single process. What is published in another process does not arrive here, so in a `node:cluster` worker
 * it warns. A new process is a new log: clients of the one before are told a gap.
 */
export function memoryBroker(): Broker {
  if (cluster.isWorker) {
    process.emitWarning(
      'memoryBroker() in a cluster worker reaches only the streams of that worker',
      {
        code: 'RES_SSE_MEMORY_BROKER_IN_CLUSTER',
        detail:
          'Give createChannels() a broker that all workers share, such as redisBroker() of res-sse/redis.',
      },
    );
  }
  return new MemoryBroker();
}

class MemoryBroker implements Broker {
  readonly #epoch = randomBytes(6).toString('base64url');
  // In the order in which they expire.
  readonly #keys = new Map<string, { id: string; until: number }>();
  #receiver: Receiver | undefined;
  #log: Log | undefined;
  #offset = 0;
  // Events without history have an order of their own.
  #liveOnly = 0;
  #closed = false;
  #isForgettingTold = false;

  get state(): BrokerState {
    return this.#closed ? 'closed' : 'open';
  }

  get head(): number {
    return this.#offset;
  }

  get held(): { events: number; bytes: number } {
    return this.#log?.held ?? { events: 0, bytes: 0 };
  }

  open(receiver: Receiver, { maxHistory, maxChannels }: LogBounds): void {
    if (this.#receiver !== undefined) throw otherRegistryError();
    this.#receiver = receiver;
    this.#log = new Log(
      maxHistory,
      maxChannels,
      (channel) => receiver.follows(channel),
      () => performance.now(),
    );
  }

  append(publication: Publication): Promise<{ id: string }> {
    const { channel, key, history } = publication;
    if (this.#closed) return Promise.reject(closedError());
    const known = key === undefined ? undefined : this.#idOf(channel, key);
    if (known !== undefined) return Promise.resolve({ id: known });
    const entry = new LogEntry({
      ...publication,
      epoch: history === false ? undefined : this.#epoch,
      offset: history === false ? ++this.#liveOnly : ++this.#offset,
    });
    if (key !== undefined) this.#remember(channel, key, entry.id);
    if (history !== false) this.#keep(entry, history);
    if (this.#receiver?.follows(channel) === true) this.#receiver.receive(entry);
    return Promise.resolve({ id: entry.id });
  }

  listen(channel: string): undefined {
    this.#log?.onSubscribersChanged(channel);
  }

  unlisten(channel: string): void {
    this.#log?.onSubscribersChanged(channel);
  }

  position(): Cursor {
    return { epoch: this.#epoch, offset: this.#offset };
  }

  read(channels: readonly string[], after: number, maxBytes: number): Page {
    if (this.#closed || this.#log === undefined) throw closedError();
    return { ...this.#log.read(channels, after, maxBytes), position: this.position() };
  }

  clear(channel: string): Promise<void> {
    this.#log?.clear(channel);
    return Promise.resolve();
  }

  close(): Promise<void> {
    this.#closed = true;
    this.#log = undefined;
    this.#keys.clear();
    return Promise.resolve();
  }

  #keep(entry: LogEntry, history: HistoryLimits): void {
    this.#log?.append(entry, history);
    if (this.#isForgettingTold || this.#log?.forgottenChannels === 0) return;
    this.#isForgettingTold = true;
    process.emitWarning(
      'more channels than maxChannels are in use: the history of some is forgotten, and their readers are told a gap',
      {
        code: 'RES_SSE_MAX_CHANNELS',
        detail:
          'Raise maxChannels of createChannels(), or give channels that need no history history: false by historyFor.',
      },
    );
  }

  #idOf(channel: string, key: string): string | undefined {
    const known = this.#keys.get(`${channel}\n${key}`);
    return known !== undefined && known.until > performance.now() ? known.id : undefined;
  }

  #remember(channel: string, key: string, id: string): void {
    const now = performance.now();
    const name = `${channel}\n${key}`;
    this.#keys.delete(name);
    this.#keys.set(name, { id, until: now + KEY_MEMORY });
    for (const [oldest, { until }] of this.#keys) {
      if (until > now && this.#keys.size <= MAX_KEYS) break;
      this.#keys.delete(oldest);
    }
  }
}
