/**
 * Model test of the sequence tracker and the cache of a Redis node, without sockets: whichever
 * messages are lost, the node has every event or reports a gap.
 */
import fc from 'fast-check';
import { expect, test } from 'vitest';
import type { HistoryLimits, LogEntry } from '../../src/index.ts';
import {
  parseEntry,
  formatBody,
  parseEventMessage,
  parseHeader,
} from '../../src/brokers/redis/message-format.ts';
import { LogCache } from '../../src/brokers/redis/log-cache.ts';
import type { StoredChannel } from '../../src/brokers/redis/log-snapshot.ts';
import { SequenceTracker } from '../../src/brokers/redis/sequence-tracker.ts';

const EPOCH = 'epoch';
// The node does not listen to channel `c`.
const LIMITS: Readonly<Record<string, HistoryLimits>> = {
  a: { events: 3, bytes: 1_000_000, age: Infinity, latest: false },
  b: { events: 1, bytes: 1_000_000, age: Infinity, latest: true },
  c: { events: 3, bytes: 1_000_000, age: Infinity, latest: false },
};

/** The log as the script keeps it in Redis, and the messages that the script publishes. */
class Log {
  head = 0;
  readonly published: { channel: string; offset: number }[] = [];
  readonly kept = new Map<string, number[]>();
  readonly trimmed = new Map<string, number>();
  readonly newest = new Map<string, number>();
  readonly said: (readonly [topic: string, text: string])[] = [];
  /** Channels that the node is subscribed to. */
  readonly listeners = new Set(['a', 'b']);

  publish(channels: readonly string[]): void {
    const previous = this.head;
    const lines: string[] = [];
    for (const channel of channels) {
      const before = this.newest.get(channel) ?? 0;
      const offset = ++this.head;
      this.published.push({ channel, offset });
      this.newest.set(channel, offset);
      const kept = [...(this.kept.get(channel) ?? []), offset];
      const { events, latest } = LIMITS[channel] as HistoryLimits;
      while (kept.length > events) this.trimmed.set(channel, kept.shift() as number);
      this.kept.set(channel, kept);
      const trimmed = this.trimmed.get(channel) ?? 0;
      const limits = `${events} 1000000 0 ${latest ? 1 : 0}`;
      const stamp = `1 ${EPOCH} ${offset} ${before} 0 ${trimmed} ${limits}`;
      if (this.listeners.has(channel)) {
        this.said.push([channel, `${stamp}\n${formatBody(undefined, `${offset}`, undefined)}`]);
      }
      lines.push(`\n+${offset} ${channel}`);
    }
    this.said.push(['spine', `1 ${EPOCH} ${previous} ${this.head} ${lines.join('')}`]);
  }

  clear(channel: string): void {
    const newest = this.newest.get(channel);
    if (newest === undefined) return;
    this.kept.set(channel, []);
    this.trimmed.set(channel, newest);
    this.said.push(['spine', `1 ${EPOCH} ${this.head} ${++this.head} \n-${newest} ${channel}`]);
  }

  state(channel: string): StoredChannel {
    const limits = LIMITS[channel] as HistoryLimits;
    return {
      newest: this.newest.get(channel) ?? 0,
      trimmed: this.trimmed.get(channel) ?? 0,
      limits,
      isEnded: false,
    };
  }

  entries(
    channel: string,
    after: number,
    till = Infinity,
  ): { entry: LogEntry; appendedAt: number }[] {
    const kept = (this.kept.get(channel) ?? []).filter(
      (offset) => offset > after && offset <= till,
    );
    return kept.map((offset) => {
      const entry = parseEntry(
        formatBody(undefined, `${offset}`, undefined),
        channel,
        EPOCH,
        offset,
      ) as LogEntry;
      return { entry, appendedAt: 0 };
    });
  }
}

/** A node that listens to `a` and `b`, and sometimes leaves and joins them. */
class Node {
  readonly received: number[] = [];
  readonly cache: LogCache;
  readonly tracker: SequenceTracker;
  readonly #log: Log;
  isWhole = false;
  // State of each channel that the node listens to: SUBSCRIBE sent, SUBSCRIBE confirmed, position
  // known.
  readonly #state = new Map<string, 'asked' | 'subscribed' | 'known'>([
    ['a', 'known'],
    ['b', 'known'],
  ]);
  readonly #asked = new Map<string, () => void>();

  constructor(log: Log, maxBytes: number) {
    this.#log = log;
    this.cache = new LogCache(0);
    this.cache.maxBytes = maxBytes;
    this.tracker = new SequenceTracker({
      isExpected: (channel) => this.#state.has(channel) && this.#state.get(channel) !== 'asked',
      onAppended: (entry, metadata) => {
        if (!this.#state.has(entry.channel)) return;
        this.cache.push(entry, metadata);
        this.received.push(entry.offset);
      },
      onCleared: (channel, trimmed) => this.cache.clear(channel, trimmed),
    });
  }

  knows(channel: string): boolean {
    return this.#state.get(channel) === 'known';
  }

  hear(topic: string, text: string): void {
    if (!this.isWhole) return;
    if (topic === 'ack') this.#subscribed(text);
    else if (topic === 'spine') {
      this.isWhole = this.tracker.applyHeader(parseHeader(text)!) === undefined;
    } else this.tracker.addEvent(topic, parseEventMessage(text)!);
  }

  /** Leaves a channel, or joins the channel again. */
  toggle(channel: string): void {
    this.#asked.delete(channel);
    if (this.#state.delete(channel)) {
      this.cache.remove(channel);
      this.#log.listeners.delete(channel);
    } else {
      this.#state.set(channel, 'asked');
      this.#log.listeners.add(channel);
      this.#log.said.push(['ack', channel]);
    }
  }

  #subscribed(channel: string): void {
    if (this.#state.get(channel) !== 'asked') return;
    this.#state.set(channel, 'subscribed');
    const state = this.#log.state(channel);
    // The answer with the position of the channel may arrive later.
    this.#asked.set(channel, () => {
      if (this.#state.get(channel) !== 'subscribed') return;
      this.cache.add(channel, state, this.tracker.head);
      this.#state.set(channel, 'known');
    });
  }

  /**
   * Reads the log again, as after an interruption. Messages that were sent before are discarded.
   */
  heal(isWhole: boolean): void {
    for (const channel of this.#state.keys()) {
      this.#state.set(channel, 'known');
      const entries = this.#log.entries(channel, this.cache.newest(channel) ?? Infinity);
      const answer = {
        ...this.#log.state(channel),
        bytes: 0,
        length: 0,
        entries: isWhole ? entries : entries.slice(0, 1),
        hasMore: !isWhole,
        last: 0,
      };
      const snapshot = {
        epoch: EPOCH,
        head: this.#log.head,
        at: performance.now(),
        discontinuities: { origin: 0, jumps: [] },
        pageEnd: Infinity,
        channels: [answer],
      };
      this.cache.update([channel], snapshot, this.#log.head, true);
    }
    this.tracker.reset(EPOCH, this.#log.head);
    this.#log.said.length = 0;
    this.isWhole = true;
  }

  /** Requests older events, or receives the answer to the previous request. */
  load(channel: string): void {
    const answer = this.#asked.get(channel);
    const range = this.knows(channel) ? this.cache.missingRange(channel) : undefined;
    if (answer !== undefined) {
      this.#asked.delete(channel);
      answer();
    } else if (range !== undefined) {
      const entries = this.#log.entries(channel, range.after, range.until);
      const state = this.#log.state(channel);
      this.#asked.set(channel, () => this.cache.prepend(channel, range, state, entries));
    }
  }
}

function check(node: Node, log: Log, after: number): void {
  for (const channel of ['a', 'b']) {
    if (!node.knows(channel) || node.cache.incomplete([channel], after).length > 0) continue;
    const { entries, trimmed, complete } = node.cache.read([channel], after, 1_000_000);
    const got = entries.map(({ offset }) => offset);
    const due = log.published.filter(
      (event) =>
        event.channel === channel && event.offset > after && event.offset <= node.tracker.head,
    );
    const [lost] = trimmed as [number];
    const latest = due.at(-1);
    // In a newest-only channel only the newest event is required.
    const owed = channel === 'b' && lost === 0 ? (latest === undefined ? [] : [latest]) : due;
    const offsets = owed.map(({ offset }) => offset);
    expect(offsets.filter((offset) => offset > lost && !got.includes(offset))).toEqual([]);
    expect(got).toEqual(
      got
        .toSorted((one, other) => one - other)
        .filter((offset) => due.some((event) => event.offset === offset)),
    );
    expect(lost).toBeLessThanOrEqual(log.trimmed.get(channel) ?? 0);
    expect(complete).toBe(true);
  }
}

const channel = fc.constantFrom('a', 'b', 'c');
const step = fc.oneof(
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('publish' as const),
      channels: fc.array(channel, { minLength: 1, maxLength: 4 }),
    }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('hear' as const),
      count: fc.integer({ min: 1, max: 8 }),
    }),
  },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('lose' as const), at: fc.nat(8) }) },
  { weight: 1, arbitrary: fc.record({ do: fc.constant('clear' as const), channel }) },
  {
    weight: 4,
    arbitrary: fc.record({ do: fc.constant('load' as const), channel: fc.constantFrom('a', 'b') }),
  },
  {
    weight: 6,
    arbitrary: fc.record({
      do: fc.constant('toggle' as const),
      channel: fc.constantFrom('a', 'b'),
    }),
  },
  { weight: 2, arbitrary: fc.record({ do: fc.constant('read' as const), after: fc.nat(40) }) },
);

test('a node has each event or reports a gap, whichever messages are lost', () => {
  fc.assert(
    fc.property(
      fc.array(step, { maxLength: 60, size: 'max' }),
      fc.boolean(),
      fc.constantFrom(1_500, 100_000),
      (steps, isWhole, maxBytes) => {
        const log = new Log();
        const node = new Node(log, maxBytes);
        for (const one of steps) {
          if (one.do === 'publish') log.publish(one.channels);
          else if (one.do === 'clear') log.clear(one.channel);
          else if (one.do === 'lose' && log.said[one.at]?.[0] !== 'ack') log.said.splice(one.at, 1);
          else if (one.do === 'load') node.load(one.channel);
          else if (one.do === 'toggle') node.toggle(one.channel);
          else if (one.do === 'hear') {
            for (const [topic, text] of log.said.splice(0, one.count)) node.hear(topic, text);
          }
          if (!node.isWhole) node.heal(isWhole);
          if (one.do === 'read') check(node, log, one.after);
          check(node, log, 0);
          check(node, log, node.tracker.head);
        }
        expect(node.received).toEqual(
          [...new Set(node.received)].toSorted((one, other) => one - other),
        );
      },
    ),
    { numRuns: 600 },
  );
});

test('parsing a header or an event message never throws, whatever the text is', () => {
  const line = fc.oneof(
    fc.string(),
    fc.constantFrom('1 e 0 1 ', '+1 a', '-1 a', '1 e 1 0 0 0 1 1 0 0', '1 ', ''),
  );
  const text = fc.array(line, { maxLength: 5 }).map((lines) => lines.join('\n'));
  fc.assert(
    fc.property(text, (one) => {
      parseHeader(one);
      parseEventMessage(one);
      const frame =
        parseEntry(one, 'a', EPOCH, 1)?.frame.toString() ?? `id: ${EPOCH}.1\ndata: \n\n`;
      // No text can forge a field: the frame has one event, with the id of the entry.
      expect(frame.match(/^id: /gm)).toHaveLength(1);
      expect(frame.endsWith('\n\n')).toBe(true);
      expect(frame.slice(0, -2)).not.toMatch(/\r|\n\n/);
    }),
    { numRuns: 5_000 },
  );
});
