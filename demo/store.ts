/** The store of the latest haiku, in place of the database of an application. */
import type { Haiku } from './haiku.ts';

/** Stores the latest haiku. The methods are asynchronous, as those of a database are. */
export interface HaikuStore {
  add(haiku: Haiku): Promise<void>;
  /** @returns a promise of the latest haiku, the newest last */
  last(): Promise<readonly Haiku[]>;
}

/** Maximum number of haiku that are stored, which is also the number that the page shows. */
export const MAX_HAIKU = 50;

/** Stores the haiku in this process. They are lost when the process ends. */
export class MemoryStore implements HaikuStore {
  #haikus: readonly Haiku[] = [];

  async add(haiku: Haiku): Promise<void> {
    this.#haikus = [...this.#haikus, haiku].slice(-MAX_HAIKU);
  }

  async last(): Promise<readonly Haiku[]> {
    return this.#haikus;
  }
}
