/** The default broker: the log is in the memory of this process. */
import cluster from 'node:cluster';
import { randomBytes } from 'node:crypto';
import { performance } from 'node:perf_hooks';
import { emitWarning } from '../common/emit-warning.ts';
import type { Cursor } from '../protocol/cursor.ts';
import { Log, type HistoryLimits } from '../log/log.ts';
import { LogEntry } from '../log/log-entry.ts';
import type {
  Broker,
  BrokerState,
  ChannelState,
  LogBounds,
  Page,
  Publication,
  Receiver,
} from './broker.ts';
import { closedError, endedError, otherRegistryError } from './errors.ts';

// Time in ms for which an idempotency key is remembered, and maximum number of remembered keys. The
// oldest keys are forgotten first.
const KEY_LIFETIME_MS = 300_000;
const MAX_KEYS = 100_000;

/**
 * Makes a broker for a single process. Events that are published in another process do not arrive,
 * so the broker emits a warning in a `node:cluster` worker. A new process has a new log: clients
 * that reconnect after a restart get a gap notification.
 */
export function memoryBroker(): Broker {
  if (cluster.isWorker) {
    emitWarning(
      'RES_SSE_MEMORY_BROKER_IN_CLUSTER',
      'memoryBroker() in a cluster worker reaches only the streams of that worker',
      'Give createChannels() a broker that all workers share, ' +
        'such as redisBroker() of res-sse/redis.',
    );
  }
  return new MemoryBroker();
}

/** A broker all of whose calls return their results at once. */
class MemoryBroker implements Broker {
  // The name of the log is random: clients of an earlier process notice that its log is lost.
  readonly #epoch = randomBytes(6).toString('base64url');
  // The event ids of idempotency keys, in the order in which the keys expire.
  readonly #keys = new Map<string, { id: string; until: number }>();
  // Undefined before `open()`.
  #receiver: Receiver | undefined;
  #log: Log | undefined;
  #offset = 0;
  // Events of channels without history have offsets of their own.
  #ephemeralOffset = 0;
  #isClosed = false;
  #hasWarned = false;

  get state(): BrokerState {
    return this.#isClosed ? 'closed' : 'open';
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
    if (this.#isClosed) return Promise.reject(closedError());
    const knownId = key === undefined ? undefined : this.#findId(channel, key);
    if (knownId !== undefined) return Promise.resolve({ id: knownId });
    const newest = this.#log?.newestEntry(channel);
    if (newest?.isEnd === true) {
      const isRepeated = publication.isEnd === true && publication.data === undefined;
      return isRepeated ? Promise.resolve({ id: newest.id }) : Promise.reject(endedError(channel));
    }
    const entries = this.#makeEntries(publication);
    const { id } = entries.at(-1) as LogEntry;
    if (key !== undefined) this.#rememberId(channel, key, id);
    if (history !== false) for (const entry of entries) this.#addToLog(entry, history);
    // The entries are in the log before they are received: a read from inside the callback finds
    // them.
    if (this.#receiver?.follows(channel) === true) {
      for (const entry of entries) this.#receiver.receive(entry);
    }
    return Promise.resolve({ id });
  }

  /** Makes the entries of a publication, with the next offsets: an event, an end, or both. */
  #makeEntries({ isEnd = false, data, ...fields }: Publication): LogEntry[] {
    const { channel, history } = fields;
    if (history === false) {
      const offset = ++this.#ephemeralOffset;
      return [new LogEntry({ ...fields, data: data ?? '', epoch: undefined, offset })];
    }
    const entries: LogEntry[] = [];
    const epoch = this.#epoch;
    if (data !== undefined) {
      entries.push(new LogEntry({ ...fields, data, epoch, offset: ++this.#offset }));
    }
    if (isEnd) {
      const offset = ++this.#offset;
      entries.push(new LogEntry({ channel, epoch, offset, data: '', isEnd }));
    }
    return entries;
  }

  /**
   * Entries are received from now on. The log has to know which channels are followed, because it
   * forgets the other channels first.
   */
  listen(channel: string): undefined {
    this.#log?.onSubscribersChanged(channel);
  }

  unlisten(channel: string): void {
    this.#log?.onSubscribersChanged(channel);
  }

  position(): Cursor {
    if (this.#isClosed) throw closedError();
    return { epoch: this.#epoch, offset: this.#offset };
  }

  read(channels: readonly string[], after: number, maxBytes: number): Page {
    if (this.#isClosed || this.#log === undefined) throw closedError();
    return { ...this.#log.read(channels, after, maxBytes), position: this.position() };
  }

  countHeld(channels: readonly string[], after: number): number {
    const log = this.#log;
    if (log === undefined) return 0;
    return channels.reduce((sum, channel) => sum + log.countAfter(channel, after), 0);
  }

  startsOfNewest(channels: readonly string[], count: number): readonly number[] {
    if (this.#isClosed || this.#log === undefined) throw closedError();
    const log = this.#log;
    return channels.map((channel) => log.startOfNewest(channel, count));
  }

  channelState(channel: string): Promise<ChannelState> {
    if (this.#isClosed) return Promise.reject(closedError());
    const newest = this.#log?.newestEntry(channel);
    if (newest === undefined) return Promise.resolve('unknown');
    return Promise.resolve(newest.isEnd ? 'ended' : 'open');
  }

  clear(channel: string): Promise<void> {
    if (this.#isClosed) return Promise.reject(closedError());
    this.#log?.clear(channel);
    return Promise.resolve();
  }

  close(): Promise<void> {
    this.#isClosed = true;
    this.#log = undefined;
    this.#keys.clear();
    return Promise.resolve();
  }

  /** Adds an entry to the log, and warns if the log had to forget a channel that had events. */
  #addToLog(entry: LogEntry, history: HistoryLimits): void {
    this.#log?.append(entry, history);
    if (this.#hasWarned || this.#log?.forgottenChannels === 0) return;
    this.#hasWarned = true;
    emitWarning(
      'RES_SSE_MAX_CHANNELS',
      'more channels than maxChannels are in use: the history of some channels is forgotten',
      'Readers of these channels are told of a gap. Raise maxChannels of createChannels(), ' +
        'or return history: false from historyFor for channels that need no history.',
    );
  }

  /** @returns the id that was published with the key; `undefined` if none is remembered */
  #findId(channel: string, key: string): string | undefined {
    const known = this.#keys.get(`${channel}\n${key}`);
    return known !== undefined && known.until > performance.now() ? known.id : undefined;
  }

  /** Remembers the id of a key, and forgets expired keys. */
  #rememberId(channel: string, key: string, id: string): void {
    const now = performance.now();
    const name = `${channel}\n${key}`;
    this.#keys.delete(name);
    this.#keys.set(name, { id, until: now + KEY_LIFETIME_MS });
    for (const [oldest, { until }] of this.#keys) {
      if (until > now && this.#keys.size <= MAX_KEYS) break;
      this.#keys.delete(oldest);
    }
  }
}
