/** The clients of the soak: some stay, some disconnect often, some leave, some read slowly. */
import { Client } from './client.mjs';
import { drawOne } from './publisher.mjs';
import { BULK, ROOMS, STEADY, temporaryChannels } from './settings.mjs';
import { Spoil } from './spoil.mjs';

const TURN_MS = 500;

/** The number of clients of each kind at a time. */
const SIZES = { stays: 60, commutes: 40, visits: 20, slow: 10, wide: 30 };

// Maximum number of new clients of each kind in one turn of the crowd.
const MAX_NEW_CLIENTS = 4;

/** Keeps the number of clients of each kind, and lets the clients act. */
export class Crowd {
  /** Number of clients since the start. */
  totalCount = 0;
  #members = Object.fromEntries(Object.keys(SIZES).map((kind) => [kind, new Set()]));
  #ends = new Map();
  #clientOptions;
  #spoil;
  #timer;

  /**
   * @param {object} clientOptions options of each client
   * @param {import('./checker.mjs').Checker} clientOptions.checker
   * @param {() => import('./nodes.mjs').SoakNode} clientOptions.choose
   * @param {string} [spoil] way in which the record of one client is changed
   */
  constructor(clientOptions, spoil) {
    this.#clientOptions = clientOptions;
    this.#spoil = spoil === undefined ? undefined : new Spoil(spoil);
  }

  /** All clients, connected or not. */
  get clients() {
    return Object.values(this.#members).flatMap((members) => Array.from(members));
  }

  start() {
    this.#timer = setInterval(() => this.#turn(), TURN_MS);
  }

  /** Stops all actions, and connects all clients. */
  connectAll() {
    clearInterval(this.#timer);
    for (const client of this.clients) client.connect();
  }

  /** Disconnects all clients for good. */
  leave() {
    clearInterval(this.#timer);
    for (const client of this.clients) client.leave();
    for (const members of Object.values(this.#members)) members.clear();
  }

  #turn() {
    const now = performance.now();
    for (const [kind, members] of Object.entries(this.#members)) {
      for (const client of members) {
        if (now >= (this.#ends.get(client) ?? Infinity)) this.#remove(client, members);
        else ACTIONS[kind](client);
      }
      for (let added = 0; added < MAX_NEW_CLIENTS && members.size < SIZES[kind]; added++) {
        this.#add(kind, members, now);
      }
    }
  }

  #add(kind, members, now) {
    // The spoiled client is of a kind that stays, so that it is still there to be judged.
    const spoil = kind === 'stays' ? this.#spoil : undefined;
    if (spoil !== undefined) this.#spoil = undefined;
    const name = `client ${++this.totalCount} (${kind})`;
    const client = new Client(name, CHANNELS[kind](), { ...this.#clientOptions, spoil });
    members.add(client);
    if (kind === 'visits') this.#ends.set(client, now + 2_000 + Math.random() * 8_000);
    if (kind === 'commutes') this.#ends.set(client, now + 30_000 + Math.random() * 60_000);
  }

  #remove(client, members) {
    client.leave();
    members.delete(client);
    this.#ends.delete(client);
  }
}

/** The channels of a new client, by kind. */
const CHANNELS = {
  stays: () => drawSome(STEADY, 1 + Math.floor(Math.random() * 4)),
  commutes: () => [...drawSome(STEADY, 2), temporaryChannels()[0]],
  // Mostly channels to which the node is not subscribed yet.
  visits: () => [drawOne(STEADY), ...temporaryChannels(), ...drawSome(ROOMS, 20)],
  slow: () => [BULK, drawOne(STEADY)],
  wide: () => drawSome(ROOMS, 100),
};

/** The action of a client in a turn of the crowd, by kind. */
const ACTIONS = {
  stays: (client) => runWithProbability(0.002, () => client.drop(100)),
  commutes: (client) => runWithProbability(0.03, () => client.drop(Math.random() * 15_000)),
  visits: () => {},
  wide: (client) => runWithProbability(0.005, () => client.drop(2_000)),
  slow: (client) => runWithProbability(0.02, () => client.pause(5_000 + Math.random() * 35_000)),
};

/** Calls the function with the given probability. */
function runWithProbability(probability, callback) {
  if (Math.random() < probability) callback();
}

/** @returns different members of a list, at random */
function drawSome(list, count) {
  return list.toSorted(() => Math.random() - 0.5).slice(0, count);
}
