/** Proof that the checker can fail: one client's record of what it got is changed. */

const WAYS = {
  /** Drops one event. */
  lose: () => [],
  /** Notes one event twice. */
  repeat: (items) => [...items, ...items],
  /** Notes one event after the one that follows it. */
  swap(items, held) {
    if (held.length > 0) return [...items, ...held.splice(0)];
    held.push(...items);
    return [];
  },
};

/** Notes nothing from some event on, as the client of a deaf node. */
const DEAF = 'deaf';

export const WAYS_TO_SPOIL = [...Object.keys(WAYS), DEAF];

export class Spoil {
  #way;
  #change;
  #left;
  #passes = 20;
  #held = [];

  /** @param {string} way */
  constructor(way) {
    this.#way = way;
    this.#change = WAYS[way];
    // A swap takes two events.
    this.#left = way === 'swap' ? 2 : 1;
  }

  get isDeaf() {
    return this.#way === DEAF && this.#passes === 0;
  }

  change(items) {
    if (this.#passes > 0) {
      this.#passes--;
      return items;
    }
    if (this.#left === 0) return items;
    this.#left--;
    return this.#change(items, this.#held);
  }
}
