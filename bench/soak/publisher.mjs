/** Publishes at a steady rate, each event until it has been accepted: a key makes a second attempt safe. */
import { setTimeout as sleep } from 'node:timers/promises';
import { BULK, ROOMS, STEADY, temporaryChannels } from './settings.mjs';

const TURN_MS = 200;
// With more unanswered nothing is added, so that an outage does not end in a flood.
const MOST_PENDING = 200;

const PER_SECOND = { steady: 25, rooms: 15, temporary: 10, bulk: 3 };
const PADDING = { steady: 150, rooms: 150, temporary: 100, bulk: 65_536 };

const paddings = Object.fromEntries(
  Object.entries(PADDING).map(([kind, length]) => [kind, 'x'.repeat(length)]),
);

export class Publisher {
  /** Answers that were errors. */
  refused = 0;
  #checker;
  #choose;
  #n = 0;
  #owed = { steady: 0, rooms: 0, temporary: 0, bulk: 0 };
  #timer;

  /** @param {import('./checker.mjs').Checker} checker @param {() => import('./nodes.mjs').SoakNode} choose */
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

  /** Resolves when the event has been accepted. */
  async publish(channel, kind = 'steady') {
    const n = ++this.#n;
    this.#checker.begun(n, channel);
    for (;;) {
      const item = { channel, data: { n, channel, pad: paddings[kind] }, key: `event ${n}` };
      const [answer] = await this.#choose().ask('publish', { items: [item] });
      if (answer.id !== undefined) {
        this.#checker.wasAccepted(n, answer.id);
        return;
      }
      this.refused++;
      await sleep(300);
    }
  }

  #turn() {
    for (const [kind, rate] of Object.entries(PER_SECOND)) {
      this.#owed[kind] += (rate * TURN_MS) / 1e3;
      for (; this.#owed[kind] >= 1; this.#owed[kind]--) {
        if (this.#checker.pending < MOST_PENDING) void this.publish(oneOf(channelsOf(kind)), kind);
      }
    }
  }
}

function channelsOf(kind) {
  if (kind === 'bulk') return [BULK];
  if (kind === 'rooms') return ROOMS;
  return kind === 'steady' ? STEADY : temporaryChannels();
}

export function oneOf(list) {
  return list[Math.floor(Math.random() * list.length)];
}
