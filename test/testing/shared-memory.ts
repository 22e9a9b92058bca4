/** The smallest broker with several nodes: nodes in one process that share a log. */
import {
  memoryBroker,
  type Broker,
  type LogBounds,
  type LogEntry,
  type Receiver,
} from '../../src/index.ts';

interface Hub {
  readonly log: Broker;
  readonly nodes: Set<{ readonly receiver: Receiver; head: number }>;
  isOpen: boolean;
}

/**
 * Returns a function that creates brokers. Brokers with the same log name share a log. Appended
 * entries reach the nodes a little later, in order.
 */
export function sharedMemory(): (log: string) => Broker {
  const hubs = new Map<string, Hub>();
  return (name) => {
    const hub = hubs.get(name) ?? { log: memoryBroker(), nodes: new Set(), isOpen: false };
    hubs.set(name, hub);
    return nodeOf(hub);
  };
}

function nodeOf(hub: Hub): Broker {
  const node: { receiver: Receiver; head: number } = {
    receiver: undefined as unknown as Receiver,
    head: 0,
  };
  let state: 'open' | 'closed' = 'open';
  function assertOpen(): void {
    if (state === 'closed') throw Object.assign(new Error('closed'), { code: 'ERR_SSE_CLOSED' });
  }
  return {
    get state() {
      return state;
    },
    get head() {
      return node.head;
    },
    get held() {
      return hub.log.held;
    },
    open(receiver: Receiver, bounds: LogBounds) {
      node.receiver = receiver;
      hub.nodes.add(node);
      if (!hub.isOpen) hub.log.open(receiverOf(hub), bounds);
      hub.isOpen = true;
    },
    async append(publication) {
      assertOpen();
      return hub.log.append(publication);
    },
    listen: (channel) => hub.log.listen(channel),
    unlisten: (channel) => hub.log.unlisten(channel),
    async position() {
      assertOpen();
      // Resolve after all entries that are in transit to the nodes.
      await new Promise((resolve) => setImmediate(resolve));
      return hub.log.position();
    },
    async read(channels, after, maxBytes) {
      assertOpen();
      return hub.log.read(channels, after, maxBytes);
    },
    countHeld: (channels, after) => hub.log.countHeld(channels, after),
    async startsOfNewest(channels, count) {
      assertOpen();
      return hub.log.startsOfNewest(channels, count);
    },
    async channelState(channel) {
      assertOpen();
      return hub.log.channelState(channel);
    },
    async clear(channel) {
      assertOpen();
      return hub.log.clear(channel);
    },
    async close() {
      state = 'closed';
      hub.nodes.delete(node);
    },
  };
}

function receiverOf({ nodes }: Hub): Receiver {
  return {
    receive(entry: LogEntry) {
      for (const node of nodes) {
        setImmediate(() => {
          if (!nodes.has(node)) return;
          node.head = entry.offset;
          if (node.receiver.follows(entry.channel)) node.receiver.receive(entry);
        });
      }
    },
    // The log passes on every entry, and each node selects the channels that it follows.
    follows: () => true,
    interrupted: () => undefined,
  };
}
