/** The log in Redis: what is asked of the script, and its answers. */
import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import type { Cursor } from '../../protocol/cursor.ts';
import type { TimedEntry } from '../../log/log.ts';
import { LogEntry } from '../../log/log-entry.ts';
import type { LogBounds, Publication } from '../broker.ts';
import { asBrokerError, refused, type RedisConnection } from './redis-connection.ts';
import { entryOf, formatBody, limitsOf } from './message-format.ts';
import type { Tail } from './log-cache.ts';
import { script } from './script.ts';
import { withLimits } from '../../common/async.ts';

/** What is asked of a channel. */
export interface ChannelQuery {
  readonly channel: string;
  /** Events beyond this offset; `undefined` asks for none. */
  readonly after: number | undefined;
  /** And none beyond this one. */
  readonly till?: number | undefined;
}

/** What the log says of a channel. */
export interface ChannelSnapshot extends Tail {
  /** Bytes of what is kept. */
  readonly bytes: number;
  /** How many events are kept. */
  readonly length: number;
  /** Whether there are more of those that were asked for. */
  readonly isMore: boolean;
  /** Offset of the last of those that were looked at. */
  readonly last: number;
  readonly entries: readonly TimedEntry[];
}

/** The log at one moment. */
export interface LogSnapshot {
  readonly epoch: string;
  readonly head: number;
  /** When, in ms by the clock of Redis. */
  readonly at: number;
  readonly breaks: Discontinuities;
  /** Of a page: the offset up to which nothing is left out; `Infinity` if that is everywhere. */
  readonly till: number;
  readonly answers: readonly ChannelSnapshot[];
}

/** Where the log has gone back, and its offset has jumped: whoever was there has seen something that is lost. */
export interface Discontinuities {
  /** Of what was before it nothing is known any more. */
  readonly origin: number;
  readonly jumps: readonly { readonly from: number; readonly to: number }[];
}

/** The offset up to which a reader at this place has lost something of whatever channel; 0 where it has not. */
export function lostIn({ origin, jumps }: Discontinuities, after: number): number {
  const jump = jumps.find(({ from, to }) => from < after && after < to);
  if (jump !== undefined) return jump.to;
  return after < origin ? origin : 0;
}

/** An id, or why there is none. */
export type Appended =
  | { readonly id: string }
  | { readonly problem: string; readonly isUnknown: boolean };

/** What became of a call that appends. */
export interface AppendResult {
  readonly epoch: string;
  readonly head: number;
  /** Why it could not be said on the spine; `''` if it was. */
  readonly unsaid: string;
  readonly appended: readonly Appended[];
}

// Bytes of events in one answer, of one channel and of all.
const PAGE = 1_048_576;
/** Bytes of events in one answer. */
export const MAX_ANSWER_BYTES = 33_554_432;

// How long an answer is kept in ms, beyond `timeout`, for a command that the client sends again by itself.
const REPEATABLE = 5_000;

// So many ms until a Cluster is asked again that is moving the keys.
const MOVING = 25;

/** Names of Pub/Sub channels. */
export class Topics {
  readonly database: number;
  readonly base: string;
  readonly spine: string;

  constructor(base: string, database: number) {
    this.database = database;
    this.base = database === 0 ? base : `${base}:${database}`;
    this.spine = `${this.base}:spine`;
  }

  topic(channel: string): string {
    return `${this.base}:c:${channel}`;
  }

  channelOf(topic: string): string {
    return topic.slice(this.base.length + 3);
  }
}

export class LogClient {
  readonly #connection: RedisConnection;
  readonly #base: string;
  readonly #timeout: number;
  readonly #seen: () => Cursor;
  readonly #report: (problem: string) => void;
  // What is asked now.
  readonly #asked = new Set<AbortController>();
  #topics: Topics | undefined;
  #isClosed = false;
  bounds: LogBounds = { maxHistory: 0, maxChannels: 0 };

  /**
   * @param seen how far this node knows the log to have come
   * @param report what is in Redis and cannot be read
   */
  constructor(
    connection: RedisConnection,
    prefix: string,
    timeout: number,
    seen: () => Cursor,
    report: (problem: string) => void,
  ) {
    this.#connection = connection;
    this.#base = `{${prefix}}`;
    this.#timeout = timeout;
    this.#seen = seen;
    this.#report = report;
  }

  /** What is asked is not answered any more; what is being appended is. */
  close(): void {
    this.#isClosed = true;
    for (const abort of this.#asked) abort.abort(new Error('it is closed'));
  }

  /**
   * The names under which the nodes of this log hear of it. Pub/Sub knows no databases, so the number of the database is part
   * of them; in database 0 it is left out, as it was before.
   */
  async topics(signal?: AbortSignal, isAnew?: boolean): Promise<Topics> {
    const database = await this.#connection.database(signal, isAnew);
    if (this.#topics?.database !== database) this.#topics = new Topics(this.#base, database);
    return this.#topics;
  }

  /**
   * Reads, all at one moment.
   * @param nonce is said on the spine then
   * @param budget bytes of events of each channel, of which one is always read
   */
  async look(
    questions: readonly ChannelQuery[],
    nonce: string = '',
    most: number = MAX_ANSWER_BYTES,
    budget: number = PAGE,
  ): Promise<LogSnapshot> {
    const asked = questions.flatMap(({ channel, after, till }) => [
      channel,
      after?.toString() ?? '',
      till?.toString() ?? '',
    ]);
    const channels = questions.map(({ channel }) => channel);
    return this.#ask('look', channels, nonce, [`${budget}`, `${most}`, ...asked]);
  }

  /** Reads the channels' events beyond the offset, merged, so many bytes together but at least one event. */
  async page(channels: readonly string[], after: number, maxBytes: number): Promise<LogSnapshot> {
    return this.#ask('page', channels, '', [`${maxBytes}`, `${after}`, ...channels]);
  }

  async #ask(
    operation: string,
    channels: readonly string[],
    nonce: string,
    args: readonly string[],
  ): Promise<LogSnapshot> {
    const keys = channels.map((channel) => this.#stream(channel));
    const answer = await this.#inTime((signal) => this.#call(operation, nonce, keys, args, signal));
    const [epoch, head, origin, breaks, at, till, ...answers] = answer as [
      ...[string, string, string, string, string, string],
      ...string[][],
    ];
    const jumps = breaks.split(' ').flatMap((jump) => {
      const [from, to] = jump.split(':');
      return to === undefined ? [] : [{ from: Number(from), to: Number(to) }];
    });
    return {
      epoch,
      head: Number(head),
      at: Number(at),
      breaks: { origin: Number(origin), jumps },
      till: till === '' ? Infinity : Number(till),
      answers: answers.map((text, index) => this.#answerOf(text, channels[index] as string, epoch)),
    };
  }

  /**
   * Appends, in this order, at once.
   * @returns what became of each; rejects with an `SseError` that says whether any of it may have been published
   */
  async append(publications: readonly AppendItem[], signal: AbortSignal): Promise<AppendResult> {
    const args = publications.flatMap((publication) => publication.args);
    const keys = publications.flatMap((publication) => publication.keys);
    // Where a command may be repeated behind our back, it must not publish twice.
    const repeat = this.#connection.repeats
      ? `${this.#base}:b:${randomBytes(9).toString('base64url')}`
      : '';
    if (repeat !== '') keys.push(repeat);
    try {
      const ttl = `${Math.ceil(this.#timeout) + REPEATABLE}`;
      const [epoch, head, unsaid, warning, ...results] = (await this.#call(
        'append',
        repeat,
        keys,
        [ttl, ...args],
        signal,
      )) as [...[string, string, string, string], ...string[]];
      if (warning !== '') this.#report(`the bounds of the history cannot be kept: ${warning}`);
      return { epoch, head: Number(head), unsaid, appended: results.map(appendedOf) };
    } catch (error) {
      throw asBrokerError(error);
    }
  }

  /** @returns the offset up to which the channel holds nothing any more */
  async clear(channel: string): Promise<Cursor & { trimmed: number }> {
    const answer = await this.#inTime((signal) =>
      this.#call('clear', '', [this.#stream(channel)], [channel], signal),
    );
    const [epoch, head, trimmed] = answer as [string, string, string];
    return { epoch, offset: Number(head), trimmed: Number(trimmed) };
  }

  /** A publication as the script takes it. */
  itemOf({ channel, event, data, retry, key = '', history }: Publication): AppendItem {
    const body = formatBody(event, data, retry);
    const bodyBytes = Buffer.byteLength(body);
    const keys = key === '' ? [] : [`${this.#base}:k:${channel}\n${key}`];
    if (history === false) {
      return { keys, args: [channel, key, body, '0', '', '', '', ''], bytes: bodyBytes };
    }
    const { events, bytes, age, latest } = history;
    // As it will be counted where it is held, with a place like any other.
    const { size } = new LogEntry({
      channel,
      epoch: 'epoch_of',
      offset: 1_000_000_000,
      event,
      data,
      retry,
    });
    return {
      keys: [this.#stream(channel), ...keys],
      args: [
        channel,
        key,
        body,
        `${size}`,
        `${events}`,
        `${bytes}`,
        `${age === Infinity ? 0 : age}`,
        latest ? '1' : '0',
      ],
      bytes: bodyBytes,
    };
  }

  #answerOf(text: readonly string[], channel: string, epoch: string): ChannelSnapshot {
    const [newest, trimmed, bytes, length, events, limit, age] = text.slice(0, 7).map(Number) as [
      ...[number, number, number, number],
      ...[number, number, number],
    ];
    const [latest, problem, more] = text.slice(7, 10);
    if (problem !== '') {
      this.#report(`the stream of ${channel} cannot be read: ${problem ?? 'no answer'}`);
    }
    const entries: TimedEntry[] = [];
    let lost = trimmed;
    let last = 0;
    for (let index = 10; index < text.length; index += 3) {
      const offset = Number(text[index]);
      last = offset;
      const entry = entryOf(text[index + 2] as string, channel, epoch, offset);
      if (entry === undefined) {
        this.#report(`event ${offset} of ${channel} cannot be read`);
        lost = Math.max(lost, offset);
      } else {
        entries.push({ entry, appendedAt: Number(text[index + 1]) });
      }
    }
    const limits = limitsOf(events, limit, age, latest === '1');
    // What cannot be read is not kept, as far as a reader is concerned.
    const readable = lost === trimmed ? length : 0;
    return {
      newest,
      trimmed: lost,
      bytes,
      length: readable,
      limits,
      isMore: more === '1',
      last,
      entries,
    };
  }

  #stream(channel: string): string {
    return `${this.#base}:s:${channel}`;
  }

  /** @param keys all that it looks at beside the log: a Cluster that moves them elsewhere must know that they belong together */
  async #call(
    operation: string,
    nonce: string,
    keys: readonly string[],
    args: readonly string[],
    signal: AbortSignal,
  ): Promise<unknown[]> {
    const { maxHistory, maxChannels } = this.bounds;
    const seen = this.#seen();
    const key = `${this.#base}:log`;
    const publish = this.#connection.isSharded ? 'SPUBLISH' : 'PUBLISH';
    const epoch = randomBytes(6).toString('base64url');
    const topics = await this.topics(signal);
    const common = [
      operation,
      this.#base,
      publish,
      epoch,
      seen.epoch,
      `${seen.offset}`,
      nonce,
      `${maxHistory}`,
      `${maxChannels}`,
      topics.base,
    ];
    const rest = [`${keys.length + 1}`, key, ...keys, ...common, ...args];
    const answer = await this.#run(key, rest, signal);
    if (!Array.isArray(answer)) {
      throw new TypeError('the script in Redis has answered with something else');
    }
    return answer as unknown[];
  }

  /** Again where nothing has happened: Redis does not know the script yet, or is just moving the keys. */
  async #run(key: string, rest: string[], signal: AbortSignal): Promise<unknown> {
    for (let command = ['EVALSHA', script.sha]; ;) {
      try {
        return await this.#connection.send(key, [...command, ...rest], signal);
      } catch (error) {
        const [code] = error instanceof Error ? error.message.split(' ', 1) : [];
        if (code !== 'NOSCRIPT' && code !== 'TRYAGAIN') throw error;
        if (signal.aborted) throw refused('Redis has not accepted it in time', error);
        if (code === 'NOSCRIPT') command = ['EVAL', script.source];
        else await delay(MOVING);
      }
    }
  }

  async #inTime<T>(action: (signal: AbortSignal) => Promise<T>): Promise<T> {
    if (this.#isClosed) throw refused('it is closed');
    const abort = new AbortController();
    this.#asked.add(abort);
    // Takes back what has not been written yet, too.
    const timer = setTimeout(
      () => abort.abort(new Error(`no answer within ${this.#timeout} ms`)),
      this.#timeout,
    );
    try {
      return await withLimits(action(abort.signal), { signal: abort.signal });
    } catch (error) {
      throw asBrokerError(abort.signal.aborted ? abort.signal.reason : error);
    } finally {
      clearTimeout(timer);
      this.#asked.delete(abort);
    }
  }
}

function appendedOf(result: string): Appended {
  if (result.startsWith('=')) return { id: result.slice(1) };
  return { problem: result.slice(1), isUnknown: result.startsWith('?') };
}

/** A publication as the script takes it. */
export interface AppendItem {
  readonly keys: readonly string[];
  readonly args: readonly string[];
  readonly bytes: number;
}
