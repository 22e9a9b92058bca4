/** Where the haikus are kept: what the database is to an application. */
import type { Haiku } from './haiku.ts';

/** Keeps the last haikus. Asynchronous, as a database is. */
export interface HaikuStore {
  add(haiku: Haiku): Promise<void>;
  /** The last haikus, the newest last. */
  last(): Promise<readonly Haiku[]>;
}

/** As many as the page shows. */
export const KEEP = 50;

/** Keeps them in this process, so that they end with it. */
export class MemoryStore implements HaikuStore {
  #kept: readonly Haiku[] = [];

  async add(haiku: Haiku): Promise<void> {
    this.#kept = [...this.#kept, haiku].slice(-KEEP);
  }

  async last(): Promise<readonly Haiku[]> {
    return this.#kept;
  }
}
