/**
 * The client of the script in Redis: formats the arguments, sends the call, parses the answer.
 *
 *     look     queries the state and newer events of channels, at one moment
 *     page     reads a page of several channels, merged
 *     append   publishes events
 *     clear    deletes the events of a channel
 *     lease    renews leases, and ends channels whose lease has expired
 */
import { randomBytes } from 'node:crypto';
import { setTimeout as delay } from 'node:timers/promises';
import { withLimits } from '../../common/async.ts';
import type { Cursor } from '../../protocol/cursor.ts';
import type { LogBounds, Publication } from '../broker.ts';
import {
  END_SIZE,
  parseAppendAnswer,
  streamKey,
  toAppendItem,
  type AppendItem,
  type AppendResult,
} from './append-format.ts';
import { parseSnapshot, type ChannelQuery, type LogSnapshot } from './log-snapshot.ts';
import type { RedisConnection } from './redis-connection.ts';
import { noEffectError, toBrokerError } from './redis-errors.ts';
import { script } from './script.ts';
import { Topics } from './topics.ts';
import { MIN_BYTES, TransferLimit, type TransferShare } from './transfer-limit.ts';

// Maximum bytes of events of one channel in one answer.
const MAX_CHANNEL_BYTES = 1_048_576;

/** A call that renews leases. */
interface LeaseCall {
  /** Names this node. */
  readonly owner: string;
  /** Time in ms for which the renewed leases are valid. */
  readonly leaseMs: number;
  /** Whether the channels of the leases end now. */
  readonly endsNow: boolean;
  /** As the script takes them. */
  readonly leases: readonly string[];
}

interface LeaseResult {
  /**
   * Names the log and its leases (`state` in log.lua). It is another name after the log has gone
   * back or the leases were lost.
   */
  readonly log: string;
  /** The channels that were ended, each with the id of its end. */
  readonly ended: readonly { readonly channel: string; readonly id: string }[];
}

/** How many bytes of events a query requests, see {@link TransferLimit.take}. */
interface WantedTransfer {
  readonly wanted: number;
  readonly least: number;
  /** Ends the query. */
  readonly signal?: AbortSignal | undefined;
}

const NO_TRANSFER: WantedTransfer = { wanted: 0, least: 0 };

// Time in ms, beyond the timeout, for which the answer to an append is kept in Redis, for a client
// that sends the command again by itself.
const REPEATABLE_MS = 5_000;

// Pause in ms before a command is sent again to a Cluster that is moving the keys to another shard.
const TRY_AGAIN_MS = 25;

/** Calls the script. Calls reject with an `SseError` whose code is `ERR_SSE_BROKER`. */
export class LogClient {
  readonly #connection: RedisConnection;
  readonly #base: string;
  readonly #timeoutMs: number;
  readonly #seenCursor: () => Cursor;
  readonly #onProblem: (problem: string) => void;
  readonly #pendingQueries = new Set<AbortController>();
  readonly #transfers: TransferLimit;
  #topics: Topics | undefined;
  #isClosed = false;
  /** Limits over all channels, which the script enforces. */
  bounds: LogBounds = { maxHistory: 0, maxChannels: 0 };

  /**
   * @param seenCursor returns the highest place in the log that this node knows. If the head of the
   * log in Redis is before this place, then the log has gone back
   * @param onProblem called with a description of data in Redis that cannot be read
   */
  constructor(
    connection: RedisConnection,
    prefix: string,
    timeoutMs: number,
    seenCursor: () => Cursor,
    onProblem: (problem: string) => void,
  ) {
    this.#connection = connection;
    this.#base = `{${prefix}}`;
    this.#timeoutMs = timeoutMs;
    this.#seenCursor = seenCursor;
    this.#onProblem = onProblem;
    this.#transfers = new TransferLimit(timeoutMs);
  }

  /** Number of bytes of events that one answer may have now; not 0. */
  get answerBytes(): number {
    return Math.max(this.#transfers.bytes, MIN_BYTES);
  }

  /** Rejects pending and later queries. Pending appends are still answered. */
  close(): void {
    this.#isClosed = true;
    for (const controller of this.#pendingQueries) {
      controller.abort(new Error('the client of the log is closed'));
    }
  }

  /**
   * @param isForced whether to ask Redis again for the database, because the application may have
   * selected another one
   * @returns the topics of the registry
   */
  async topics(signal?: AbortSignal, isForced?: boolean): Promise<Topics> {
    const database = await this.#connection.database(signal, isForced);
    if (this.#topics?.database !== database) this.#topics = new Topics(this.#base, database);
    return this.#topics;
  }

  /**
   * Reads the state of the log and of channels, all at one moment.
   * @param nonce if not empty, the script publishes a header with it at that moment
   * @param maxBytes maximum bytes of events of all channels. On a slow link fewer bytes are
   * requested, or 0
   * @param minBytes bytes that are requested even if the link is very slow
   * @param signal ends the wait for the answer, and the wait for other answers before the query
   */
  async look(
    queries: readonly ChannelQuery[],
    nonce: string = '',
    maxBytes: number = Infinity,
    minBytes: number = 0,
    signal?: AbortSignal,
  ): Promise<LogSnapshot> {
    const channels = queries.map(({ channel }) => channel);
    const args = queries.flatMap(({ channel, after, until }) => [
      channel,
      after?.toString() ?? '',
      until?.toString() ?? '',
    ]);
    const wanted = queries.some(({ after }) => after !== undefined) ? maxBytes : 0;
    const transfer = { wanted, least: minBytes, signal };
    return this.#query('look', channels, nonce, transfer, (bytes) => [
      `${MAX_CHANNEL_BYTES}`,
      `${bytes}`,
      ...args,
    ]);
  }

  /** Reads events after the offset, of all channels merged: at most `maxBytes`, at least one. */
  async page(channels: readonly string[], after: number, maxBytes: number): Promise<LogSnapshot> {
    const transfer = { wanted: maxBytes, least: MIN_BYTES };
    return this.#query('page', channels, '', transfer, (bytes) => [
      `${bytes}`,
      `${after}`,
      ...channels,
    ]);
  }

  /**
   * Sends a query within the timeout, and parses the answer.
   * @param toArgs makes the arguments, from the bytes of events that may be requested
   */
  async #query(
    operation: string,
    channels: readonly string[],
    nonce: string,
    transfer: WantedTransfer,
    toArgs: (bytes: number) => readonly string[],
  ): Promise<LogSnapshot> {
    const keys = channels.map((channel) => streamKey(this.#base, channel));
    const answer = await this.#withTimeout(transfer, (signal, bytes) =>
      this.#call(operation, nonce, keys, toArgs(bytes), signal),
    );
    return parseSnapshot(answer, channels, this.#onProblem);
  }

  /**
   * Appends publications in this order, in one atomic call.
   * @returns the result of each. Rejects with an error whose `delivery` says whether any of them
   * may have been published
   */
  async append(items: readonly AppendItem[], signal: AbortSignal): Promise<AppendResult> {
    const keys = items.flatMap((item) => item.keys);
    // The client of a Sentinel may send a command again by itself, which must not publish twice.
    const repeatKey = this.#connection.repeats
      ? `${this.#base}:b:${randomBytes(9).toString('base64url')}`
      : '';
    if (repeatKey !== '') keys.push(repeatKey);
    const repeatableMs = `${Math.ceil(this.#timeoutMs) + REPEATABLE_MS}`;
    const args = [repeatableMs, ...items.flatMap((item) => item.args)];
    try {
      const answer = await this.#call('append', repeatKey, keys, args, signal);
      const result = parseAppendAnswer(answer);
      if (result.warning !== '') {
        this.#onProblem(`the limits of the history cannot be enforced: ${result.warning}`);
      }
      return result;
    } catch (error) {
      throw toBrokerError(error);
    }
  }

  /**
   * Deletes the events of a channel.
   * @returns the head of the log, and the offset up to which the channel has no events
   */
  async clear(channel: string): Promise<Cursor & { trimmed: number }> {
    const answer = await this.#withTimeout(NO_TRANSFER, (signal) =>
      this.#call('clear', '', [streamKey(this.#base, channel)], [channel], signal),
    );
    const [epoch, head, trimmed] = answer as [string, string, string];
    return { epoch, offset: Number(head), trimmed: Number(trimmed) };
  }

  /**
   * Renews leases, and ends channels whose lease has run out.
   */
  async lease({ owner, leaseMs, endsNow, leases }: LeaseCall): Promise<LeaseResult> {
    const keys = [`${this.#base}:leases`, `${this.#base}:limits`];
    const args = [`${leaseMs}`, `${END_SIZE}`, owner, endsNow ? '1' : '0', ...leases];
    const answer = await this.#withTimeout(NO_TRANSFER, (signal) =>
      this.#call('lease', '', keys, args, signal),
    );
    const [log, , headerProblem, endProblem, ...ended] = answer as [
      ...[string, string, string, string],
      ...string[],
    ];
    // The other nodes find the ends when they miss the header.
    if (headerProblem !== '') this.#onProblem(`the nodes were not notified: ${headerProblem}`);
    if (endProblem !== '') {
      this.#onProblem(`a channel without a producer could not be ended yet: ${endProblem}`);
    }
    return {
      log,
      ended: ended.flatMap((channel, index) =>
        index % 2 === 0 ? [{ channel, id: ended[index + 1] as string }] : [],
      ),
    };
  }

  /** As {@link toAppendItem}. */
  toAppendItem(publication: Publication, owner: string): AppendItem {
    return toAppendItem(publication, owner, this.#base);
  }

  /**
   * Calls the script; see log.lua for the arguments.
   * @param keys the keys in addition to the log. A Cluster needs all keys of a command, for the
   * case that it is moving them to another shard
   */
  async #call(
    operation: string,
    nonce: string,
    keys: readonly string[],
    args: readonly string[],
    signal: AbortSignal,
  ): Promise<unknown[]> {
    const { maxHistory, maxChannels } = this.bounds;
    const seen = this.#seenCursor();
    const logKey = `${this.#base}:log`;
    const topics = await this.topics(signal);
    const common = [
      operation,
      this.#base,
      this.#connection.isSharded ? 'SPUBLISH' : 'PUBLISH',
      randomBytes(6).toString('base64url'),
      seen.epoch,
      `${seen.offset}`,
      nonce,
      `${maxHistory}`,
      `${maxChannels}`,
      topics.base,
    ];
    const evalArgs = [`${keys.length + 1}`, logKey, ...keys, ...common, ...args];
    const order = this.#transfers.nextOrder();
    const sentAt = performance.now();
    const answer = await this.#evaluate(logKey, evalArgs, signal);
    if (!Array.isArray(answer)) throw new TypeError('the script in Redis returned no array');
    this.#transfers.onAnswered(order, estimateSize(answer), performance.now() - sentAt);
    return answer as unknown[];
  }

  /**
   * Sends EVALSHA. Sends the command again if Redis has refused it without effect: the script is
   * not cached (NOSCRIPT), or the Cluster is moving the keys (TRYAGAIN).
   */
  async #evaluate(logKey: string, evalArgs: string[], signal: AbortSignal): Promise<unknown> {
    for (let command = ['EVALSHA', script.sha]; ;) {
      try {
        return await this.#connection.send(logKey, [...command, ...evalArgs], signal);
      } catch (error) {
        const [code] = error instanceof Error ? error.message.split(' ', 1) : [];
        if (code !== 'NOSCRIPT' && code !== 'TRYAGAIN') throw error;
        if (signal.aborted) {
          throw noEffectError('Redis has not accepted the command in time', error);
        }
        if (code === 'NOSCRIPT') command = ['EVAL', script.source];
        else await delay(TRY_AGAIN_MS);
      }
    }
  }

  /**
   * Runs a query that ends at the timeout, or when the client is closed. The query may wait before
   * it is sent, see {@link TransferLimit}; its timeout begins when it is sent.
   * @param query called with the bytes of events that may be requested
   */
  async #withTimeout<T>(
    { wanted, least, signal: callerSignal }: WantedTransfer,
    query: (signal: AbortSignal, bytes: number) => Promise<T>,
  ): Promise<T> {
    if (this.#isClosed) throw noEffectError('the client of the log is closed');
    const controller = new AbortController();
    const { signal } = controller;
    this.#pendingQueries.add(controller);
    const onAbort = (): void => controller.abort(callerSignal?.reason);
    if (callerSignal?.aborted === true) onAbort();
    callerSignal?.addEventListener('abort', onAbort);
    let timer: NodeJS.Timeout | undefined;
    let share: TransferShare | undefined;
    try {
      if (wanted > 0) share = await this.#transfers.take(wanted, least, signal);
      // The signal also removes a command that node-redis has not written yet.
      timer = setTimeout(() => {
        if (wanted > 0) this.#transfers.onTimeout();
        controller.abort(new Error(`no answer within ${this.#timeoutMs} ms`));
      }, this.#timeoutMs);
      const answer = query(signal, share?.bytes ?? 0);
      const release = (): void => share?.release();
      answer.then(release, release);
      return await withLimits(answer, { signal });
    } catch (error) {
      throw toBrokerError(signal.aborted ? signal.reason : error);
    } finally {
      clearTimeout(timer);
      callerSignal?.removeEventListener('abort', onAbort);
      share?.stopWaiting();
      this.#pendingQueries.delete(controller);
    }
  }
}

/** Estimates the bytes of events in an answer. */
function estimateSize(answer: readonly unknown[]): number {
  let characters = 0;
  for (const part of answer) {
    if (!Array.isArray(part)) continue;
    for (const value of part) characters += String(value).length;
  }
  return characters;
}
