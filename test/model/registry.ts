/** A registry, and the state that the test keeps about it. */
import {
  createChannels,
  memoryBroker,
  sse,
  type Broker,
  type Channels,
  type SseMiddleware,
} from '../../src/index.ts';
import type { ChannelState } from '../../src/brokers/broker.ts';
import { type DistantBroker } from './distant-broker.ts';
import { CHANNELS, type Bounds, type ChannelName } from './schedule.ts';
import { Truth, Violation, type PublishedEvent, type Publishing } from './truth.ts';

/** A call of `publish()` or `end()` with a key. */
export interface KeyedCall {
  /** `undefined` if the call has ended the channel without a last event. */
  readonly event: PublishedEvent | undefined;
  readonly id: string;
  /** The time until which the key is remembered. */
  readonly until: number;
}

/** A registry, from its start to the simulated end of its process. */
export interface Registry {
  readonly channels: Channels;
  readonly events: SseMiddleware;
  readonly truth: Truth;
  readonly distant: DistantBroker | undefined;
  /** The calls of `publish()` and `end()` that have not reached the log, in order. */
  readonly publishings: Publishing[];
  /** For each key: the call that was made with the key. */
  readonly keys: Map<string, KeyedCall>;
  /**
   * Checks that the states of the channels follow the clock, although nothing has read the log since
   * the clock moved. Updates the truth.
   */
  expectStates(): Promise<void>;
}

// History of the newest-only channel. One object for all calls, as an application would have it.
// Its byte limit is larger than any event.
const NEWEST_ONLY = { latest: true, bytes: 67_108_864 };

/**
 * Opens a registry.
 * @param scale factor for all byte limits
 * @param clock the clock that determines the age of events
 * @param distant creates a remote broker in front of the log; without it the registry uses the log
 * directly
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
    historyFor: (name) => (name === 'x' ? false : name === 'n' ? NEWEST_ONLY : undefined),
    maxHistory: maxHistory === undefined ? undefined : maxHistory * scale,
    maxChannels,
    maxEvent: 1_048_576 * scale,
  });
  const { events: number, age, bytes } = history;
  // Fewer than ten events never exceed the default byte limit.
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
  const publishings: Publishing[] = [];
  const channelState = log.channelState.bind(log);
  watch(log, truth, publishings);
  const events = sse({ channels, heartbeat: false, stallTimeout: false });
  return {
    channels,
    events,
    truth,
    distant: broker,
    publishings,
    keys: new Map(),
    async expectStates() {
      const states = CHANNELS.map((channel) => channelState(channel));
      truth.update();
      const expected = CHANNELS.map((channel) => truth.stateOf(channel));
      for (const [index, state] of (await Promise.all(states)).entries()) {
        expectState(CHANNELS[index]!, state, expected[index]!);
      }
    },
  };
}

/**
 * Updates the truth with every change of the log, and checks the states of channels.
 * @param publishings calls arrive in this order
 */
function watch(log: Broker, truth: Truth, publishings: Publishing[]): void {
  const append = log.append.bind(log);
  const clear = log.clear.bind(log);
  const channelState = log.channelState.bind(log);
  log.append = (publication) => {
    const publishing = publishings.shift();
    if (publishing?.channel !== publication.channel) {
      throw new Violation(`an unexpected call of append() for ${publication.channel}`);
    }
    truth.onAppend(publishing);
    const answer = append(publication);
    truth.update();
    return answer;
  };
  log.clear = (channel) => {
    const answer = clear(channel);
    if (CHANNELS.includes(channel as ChannelName) && channel !== 'x') {
      truth.onClear(channel as ChannelName);
    }
    return answer;
  };
  log.channelState = async (channel) => {
    const expected = truth.stateOf(channel as ChannelName);
    const state = await channelState(channel);
    expectState(channel, state, expected);
    return state;
  };
}

function expectState(channel: string, state: ChannelState, expected: ChannelState): void {
  if (state === expected) return;
  throw new Violation(`the state of ${channel} is ${state}, expected ${expected}`);
}
