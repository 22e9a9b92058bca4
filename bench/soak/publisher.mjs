/**
 * The publisher: publishes at a constant rate, and repeats each event until it is accepted. Each
 * event has a key, so that a repetition cannot publish it twice.
 */
import { setTimeout as sleep } from 'node:timers/promises';
import { BULK, ROOMS, STEADY, temporaryChannels } from './settings.mjs';

const TURN_MS = 200;
// Maximum number of publishes without an answer. Without this limit an outage of Redis would be
// followed by a flood of events.
const MAX_PENDING = 200;

/** Events per second, and bytes of the padding of each event, by kind of channel. */
const PER_SECOND = { steady: 25, rooms: 15, temporary: 10, bulk: 3 };
const PADDING = { steady: 150, rooms: 150, temporary: 100, bulk: 65_536 };

const paddings = Object.fromEntries(
  Object.entries(PADDING).map(([kind, length]) => [kind, 'x'.repeat(length)]),
);

/** Publishes events of all kinds. */
export class Publisher {
  /** Number of publishes that were refused. */
  refused = 0;
  #checker;
  #choose;
  #n = 0;
  #dueCounts = { steady: 0, rooms: 0, temporary: 0, bulk: 0 };
  #timer;

  /**
   * @param {import('./checker.mjs').Checker} checker
   * @param {() => import('./nodes.mjs').SoakNode} choose returns a running node
   */
  constructor(checker, choose) {
    this.#checker = checker;
    this.#choose = choose;
  }

  start() {
    this.#timer = setInterval(() => this.#turn(), TURN_MS);
  }

  stop() {
    clearInterval(this.#timer);
  }

  /** Publishes one event. @returns a promise that resolves when the event is accepted */
  async publish(channel, kind = 'steady') {
    const n = ++this.#n;
    this.#checker.onPublishStarted(n, channel);
    for (;;) {
      const item = { channel, data: { n, channel, pad: paddings[kind] }, key: `event ${n}` };
      const [answer] = await this.#choose().ask('publish', { items: [item] });
      if (answer.id !== undefined) {
        this.#checker.onPublishAccepted(n, answer.id);
        return;
      }
      this.refused++;
      await sleep(300);
    }
  }

  #turn() {
    for (const [kind, rate] of Object.entries(PER_SECOND)) {
      this.#dueCounts[kind] += (rate * TURN_MS) / 1e3;
      for (; this.#dueCounts[kind] >= 1; this.#dueCounts[kind]--) {
        if (this.#checker.pending < MAX_PENDING) void this.publish(drawOne(channelsOf(kind)), kind);
      }
    }
  }
}

/** @returns the channels of a kind */
function channelsOf(kind) {
  if (kind === 'bulk') return [BULK];
  if (kind === 'rooms') return ROOMS;
  return kind === 'steady' ? STEADY : temporaryChannels();
}

/** @returns a member of a list, at random */
export function drawOne(list) {
  return list[Math.floor(Math.random() * list.length)];
}
