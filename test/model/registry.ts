/** A registry with all that a test knows of it. */
import {
  createChannels,
  memoryBroker,
  sse,
  type Broker,
  type Channels,
  type SseMiddleware,
} from '../../src/index.ts';
import { type DistantBroker } from './distant-broker.ts';
import { CHANNELS, type Bounds, type ChannelName } from './schedule.ts';
import { Truth, type PublishedEvent } from './truth.ts';

/** A registry from its start to its loss. */
export interface Registry {
  readonly channels: Channels;
  readonly events: SseMiddleware;
  readonly truth: Truth;
  readonly distant: DistantBroker | undefined;
  /** Events with history that were published, which is the offset of the newest. */
  published: number;
  /** Of each key the event that it published, and until when it is remembered. */
  readonly keys: Map<string, { event: PublishedEvent; until: number }>;
}

// `latest` of the newest-only channel; one object for all, as an application would have it. Its events are never too large.
const NEWEST = { latest: true, bytes: 67_108_864 };

/**
 * @param distant makes the broker through which the registry reaches the log; `undefined` where it has the log itself
 * @param scale how much larger the bounds are
 * @param clock the one by which events grow old
 */
export function openRegistry(
  { history, maxHistory, maxChannels }: Bounds,
  scale: number,
  clock: { now: number },
  distant?: (log: Broker) => DistantBroker,
): Registry {
  const log = memoryBroker();
  const broker = distant?.(log);
  const channels = createChannels({
    broker: broker ?? log,
    history: { ...history, bytes: (history.bytes ?? 1_048_576) * scale },
    historyFor: (name) => (name === 'x' ? false : name === 'n' ? NEWEST : undefined),
    maxHistory: maxHistory === undefined ? undefined : maxHistory * scale,
    maxChannels,
    maxEvent: 1_048_576 * scale,
  });
  const { events: number, age, bytes } = history;
  // A few events are never too many bytes.
  const isExact =
    number !== undefined &&
    number < 10 &&
    bytes === undefined &&
    maxHistory === undefined &&
    maxChannels === undefined;
  const truth = new Truth(
    log,
    clock,
    isExact ? { events: number, ...(age === undefined ? {} : { age }) } : undefined,
  );
  watch(log, truth);
  const events = sse({ channels, heartbeat: false, stallTimeout: false });
  return { channels, events, truth, distant: broker, published: 0, keys: new Map() };
}

/** Sees to it that the truth looks after every change. */
function watch(log: Broker, truth: Truth): void {
  const append = log.append.bind(log);
  const clear = log.clear.bind(log);
  log.append = (publication) => {
    const answer = append(publication);
    truth.note();
    return answer;
  };
  log.clear = (channel) => {
    const answer = clear(channel);
    if (CHANNELS.includes(channel as ChannelName) && channel !== 'x') {
      truth.cleared(channel as ChannelName);
    }
    return answer;
  };
}
