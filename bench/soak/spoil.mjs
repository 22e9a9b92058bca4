/** Changes the record of one client, to prove that the checker finds errors. */

const WAYS = {
  /** Omits one event. */
  lose: () => [],
  /** Records one event twice. */
  repeat: (items) => [...items, ...items],
  /** Records one event after the next event. */
  swap(items, held) {
    if (held.length > 0) return [...items, ...held.splice(0)];
    held.push(...items);
    return [];
  },
};

/** Records nothing after some event, like the client of a node that receives no events any more. */
const DEAF = 'deaf';

export const WAYS_TO_SPOIL = [...Object.keys(WAYS), DEAF];

/** The change of the record of one client. The first 20 events are recorded unchanged. */
export class Spoil {
  #way;
  #change;
  #remaining;
  #passes = 20;
  #held = [];

  /** @param {string} way */
  constructor(way) {
    this.#way = way;
    this.#change = WAYS[way];
    // A swap changes two events, any other way one event.
    this.#remaining = way === 'swap' ? 2 : 1;
  }

  get isDeaf() {
    return this.#way === DEAF && this.#passes === 0;
  }

  change(items) {
    if (this.#passes > 0) {
      this.#passes--;
      return items;
    }
    if (this.#remaining === 0) return items;
    this.#remaining--;
    return this.#change(items, this.#held);
  }
}
