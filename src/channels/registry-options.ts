/** The options of `createChannels()`. */
import type { Broker } from '../brokers/broker.ts';
import type { HistoryOptions } from '../log/history.ts';
import type { Serialize } from '../protocol/event-stream-format.ts';

/** The options of `createChannels()`. */
export interface ChannelsOptions {
  /**
   * The broker, which orders and stores events, and sends them to the other nodes.
   * @defaultValue `memoryBroker()`
   */
  broker?: Broker | undefined;
  /**
   * The history of each channel, for clients that reconnect and for streams that are behind. With
   * `false` nothing is stored: events are delivered only to the streams that are live, and have no
   * id.
   * @defaultValue `{ events: 1000, bytes: 1_048_576 }`
   */
  history?: HistoryOptions | false | undefined;
  /**
   * Returns another history for some channels, or `undefined` for the default `history`. Must
   * return the same for the same name, on every node.
   */
  historyFor?: ((name: string) => HistoryOptions | false | undefined) | undefined;
  /**
   * Limit for the history of all channels together, in bytes. Beyond the limit, the oldest events
   * of the least recently published channels are removed.
   * @defaultValue `67_108_864`
   */
  maxHistory?: number | undefined;
  /**
   * Limit for the number of channels that the log knows. Beyond the limit, channels are forgotten,
   * first those without subscribers.
   * @defaultValue `10_000`
   */
  maxChannels?: number | undefined;
  /**
   * Limit for the size of one event on the wire, in bytes. `publish` rejects larger events with
   * `ERR_SSE_DATA`.
   * @defaultValue `1_048_576`
   */
  maxEvent?: number | undefined;
  /** Converts data that is not a string to text. @defaultValue `JSON.stringify` */
  serialize?: Serialize | undefined;
}
