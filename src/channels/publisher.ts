/** Publishes events and ends channels: all checks, then one call of the broker. */
import type { Broker } from '../brokers/broker.ts';
import { diagnostics } from '../common/diagnostics.ts';
import { SseError } from '../common/errors.ts';
import { assertOptions } from '../common/options.ts';
import { assertSource, type PipeSource } from '../common/source.ts';
import type { LimitsByChannel } from '../log/history.ts';
import {
  assertEvent,
  assertRetry,
  countEventBytes,
  serializeData,
  type Serialize,
} from '../protocol/event-stream-format.ts';
import {
  assertChannelName,
  endRules,
  pipeRules,
  publishRules,
  toMetaText,
} from './channel-options.ts';
import type { EndOptions, PipeToChannelOptions, PublishOptions } from './channels.ts';
import { pipeToChannel, type PipeChannel } from './pipe.ts';

/** The options of `createChannels()` that concern publishing. */
interface PublisherOptions {
  readonly serialize: Serialize;
  /** Maximum bytes of one event on the wire. */
  readonly maxEventBytes: number;
  /** Throws `ERR_SSE_CLOSED` after `close()`. */
  readonly assertOpen: () => void;
}

/**
 * Publishes to one broker. Invalid arguments are reported before anything has an effect, also after
 * `close()`.
 */
export class Publisher {
  readonly #broker: Broker;
  readonly #limits: LimitsByChannel;
  readonly #options: PublisherOptions;
  // The running pipes: the promise of each, by the controller that stops the pipe.
  readonly #pipes = new Map<AbortController, Promise<unknown>>();
  /** Number of accepted events, including calls that published nothing because of their `key`. */
  published = 0;

  constructor(broker: Broker, limits: LimitsByChannel, options: PublisherOptions) {
    this.#broker = broker;
    this.#limits = limits;
    this.#options = options;
  }

  /**
   * Stops the pipes that are running, so that they end their channels.
   * @returns a promise that resolves when all have ended their channels or have failed; `undefined`
   * if no pipe is running
   */
  stopPipes(reason: SseError): Promise<unknown> | undefined {
    if (this.#pipes.size === 0) return undefined;
    const running = Promise.allSettled(this.#pipes.values());
    for (const closing of this.#pipes.keys()) closing.abort(reason);
    return running;
  }

  /** See `Channels.publish`. */
  async publish(name: string, data: unknown, options: PublishOptions): Promise<{ id: string }> {
    return this.#publish(name, data, options, this.#options.assertOpen);
  }

  /** @param assertOpen called when the arguments are valid */
  async #publish(
    name: string,
    data: unknown,
    options: PublishOptions,
    assertOpen: () => void,
  ): Promise<{ id: string }> {
    assertChannelName(name);
    const { event, retry, key, meta } = assertOptions('publish()', options, publishRules);
    if (retry !== undefined) assertRetry(retry);
    const metaText = toMetaText(meta);
    const text = this.#toText(data, event);
    assertOpen();
    const history = this.#limits.limitsFor(name);
    const fields = { event, data: text, retry, meta: metaText };
    const { id } = await this.#broker.append({ ...fields, channel: name, key, history });
    this.published++;
    if (diagnostics.publish.hasSubscribers) diagnostics.publish.publish({ channel: name, id });
    return { id };
  }

  /** See `Channels.end`. */
  async end(name: string, data: unknown, options: EndOptions): Promise<{ id: string }> {
    return this.#end(name, data, options, this.#options.assertOpen);
  }

  /** @param assertOpen called when the arguments are valid */
  async #end(
    name: string,
    data: unknown,
    options: EndOptions,
    assertOpen: () => void,
  ): Promise<{ id: string }> {
    assertChannelName(name);
    const { event, key } = assertOptions('end()', options, endRules);
    if (data === undefined && event !== undefined) {
      throw new SseError(
        'ERR_SSE_DATA',
        'end() got an event name without data; pass the data of the last event, or no event name',
      );
    }
    const text = data === undefined ? undefined : this.#toText(data, event);
    assertOpen();
    const history = this.#limits.limitsFor(name);
    assertHasHistory('end()', name, history);
    const last = { channel: name, event, data: text, retry: undefined };
    const { id } = await this.#broker.append({ ...last, key, history, isEnd: true });
    if (text !== undefined) this.published++;
    if (diagnostics.end.hasSubscribers) {
      diagnostics.end.publish({ channel: name, id, reason: 'ended' });
    }
    return { id };
  }

  /** See `Channels.pipe`. */
  async pipe<T, M>(
    name: string,
    source: PipeSource<T>,
    options: PipeToChannelOptions<T, M>,
  ): Promise<{ id: string; events: number }> {
    assertChannelName(name);
    const checked = assertOptions('pipe()', options, pipeRules);
    assertSource(source);
    this.#options.assertOpen();
    const history = this.#limits.limitsFor(name);
    if (checked.end !== false) assertHasHistory('pipe()', name, history);
    // After `close()` the pipe can still end its channel, as long as the broker is open.
    const channel: PipeChannel = {
      publish: (data, fields) => this.#publish(name, data, fields, () => {}),
      end: (data, fields) => this.#end(name, data, fields, () => {}),
      hold: () => (history === false ? undefined : this.#broker.hold?.(name, history)),
    };
    const closing = new AbortController();
    const piped = pipeToChannel(channel, source, checked, closing.signal);
    this.#pipes.set(closing, piped);
    try {
      return await piped;
    } finally {
      this.#pipes.delete(closing);
    }
  }

  /**
   * Converts data to the text of an event.
   * @throws {SseError} `ERR_SSE_EVENT`, `ERR_SSE_DATA`
   */
  #toText(data: unknown, event: string | undefined): string {
    if (event !== undefined) assertEvent(event);
    const { serialize, maxEventBytes } = this.#options;
    const text = serializeData(data, serialize);
    const bytes = countEventBytes(text, event);
    if (bytes <= maxEventBytes) return text;
    throw new SseError(
      'ERR_SSE_DATA',
      `expected an event of at most ${maxEventBytes} bytes, got ${bytes}; publish a ` +
        'reference from which clients can fetch the data, or raise `maxEvent` of createChannels()',
    );
  }
}

/**
 * Checks that a channel keeps a history, because the method needs it. For example, a later reader
 * could not learn that a channel without history has ended.
 * @param method the name of the called method, for the error
 * @throws {SseError} `ERR_SSE_OPTION`
 */
export function assertHasHistory(method: string, channel: string, history: object | boolean): void {
  if (history !== false) return;
  throw new SseError(
    'ERR_SSE_OPTION',
    `${method} needs a channel with history, and ${JSON.stringify(channel)} has none; ` +
      'give the channel a history of at least one event',
  );
}
