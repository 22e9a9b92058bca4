/** The clients: some stay, some come and go, some leave for good, some read slowly. */
import { Client } from './client.mjs';
import { oneOf } from './publisher.mjs';
import { BULK, ROOMS, STEADY, temporaryChannels } from './settings.mjs';
import { Spoil } from './spoil.mjs';

const TURN_MS = 500;

/** How many of each kind there are at a time. */
const SIZES = { stays: 60, commutes: 40, visits: 20, slow: 10, wide: 30 };

export class Crowd {
  /** How many there were. */
  came = 0;
  #members = Object.fromEntries(Object.keys(SIZES).map((kind) => [kind, new Set()]));
  #ends = new Map();
  #world;
  #spoil;
  #timer;

  /** @param {{ checker: import('./checker.mjs').Checker, choose: () => import('./nodes.mjs').SoakNode }} world @param {string} [spoil] */
  constructor(world, spoil) {
    this.#world = world;
    this.#spoil = spoil === undefined ? undefined : new Spoil(spoil);
  }

  get clients() {
    return Object.values(this.#members).flatMap((members) => Array.from(members));
  }

  start() {
    this.#timer = setInterval(() => this.#turn(), TURN_MS);
  }

  /** Nobody goes away any more, and who is away comes back. */
  gather() {
    clearInterval(this.#timer);
    for (const client of this.clients) client.connect();
  }

  leave() {
    clearInterval(this.#timer);
    for (const client of this.clients) client.leave();
    for (const members of Object.values(this.#members)) members.clear();
  }

  #turn() {
    const now = performance.now();
    for (const [kind, members] of Object.entries(this.#members)) {
      for (const client of members) {
        if (now >= (this.#ends.get(client) ?? Infinity)) this.#forget(client, members);
        else BEHAVIOUR[kind](client);
      }
      // A few at a time.
      for (let come = 0; come < 4 && members.size < SIZES[kind]; come++) {
        this.#come(kind, members, now);
      }
    }
  }

  #come(kind, members, now) {
    // The one that is spoiled stays, so that it is there to be judged.
    const spoil = kind === 'stays' ? this.#spoil : undefined;
    if (spoil !== undefined) this.#spoil = undefined;
    const client = new Client(`client ${++this.came} (${kind})`, CHANNELS[kind](), {
      ...this.#world,
      spoil,
    });
    members.add(client);
    if (kind === 'visits') this.#ends.set(client, now + 2_000 + Math.random() * 8_000);
    if (kind === 'commutes') this.#ends.set(client, now + 30_000 + Math.random() * 60_000);
  }

  #forget(client, members) {
    client.leave();
    members.delete(client);
    this.#ends.delete(client);
  }
}

const CHANNELS = {
  stays: () => someOf(STEADY, 1 + Math.floor(Math.random() * 4)),
  commutes: () => [...someOf(STEADY, 2), temporaryChannels()[0]],
  // Mostly channels that the node does not listen to yet.
  visits: () => [oneOf(STEADY), ...temporaryChannels(), ...someOf(ROOMS, 20)],
  slow: () => [BULK, oneOf(STEADY)],
  wide: () => someOf(ROOMS, 100),
};

/** What a client may do in a turn of the crowd. */
const BEHAVIOUR = {
  stays: (client) => perhaps(0.002, () => client.drop(100)),
  commutes: (client) => perhaps(0.03, () => client.drop(Math.random() * 15_000)),
  visits: () => {},
  wide: (client) => perhaps(0.005, () => client.drop(2_000)),
  slow: (client) => perhaps(0.02, () => client.pause(5_000 + Math.random() * 35_000)),
};

function perhaps(probability, callback) {
  if (Math.random() < probability) callback();
}

function someOf(list, count) {
  return list.toSorted(() => Math.random() - 0.5).slice(0, count);
}
