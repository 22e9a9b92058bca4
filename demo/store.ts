/** The store of the latest haiku, in place of the database of an application. */
import { readFileSync } from 'node:fs';
import { rename, writeFile } from 'node:fs/promises';
import type { Haiku } from './haiku.ts';

/** Stores the latest haiku. The methods are asynchronous, as those of a database are. */
export interface HaikuStore {
  /** Adds a haiku, unless there is one with its id. */
  add(haiku: Haiku): Promise<void>;
  /** @returns a promise of the latest haiku, the newest last */
  last(): Promise<readonly Haiku[]>;
}

/** Maximum number of haiku that are stored, which is also the number that the page shows. */
export const MAX_HAIKU = 50;

/** Stores the haiku in this process. They are lost when the process ends. */
export class MemoryStore implements HaikuStore {
  #haikus: readonly Haiku[];

  /** @param haikus the first haiku, the newest last */
  constructor(haikus: readonly Haiku[] = []) {
    this.#haikus = haikus;
  }

  async add(haiku: Haiku): Promise<void> {
    if (this.#haikus.some(({ id }) => id === haiku.id)) return;
    this.#haikus = [...this.#haikus, haiku].slice(-MAX_HAIKU);
  }

  async last(): Promise<readonly Haiku[]> {
    return this.#haikus;
  }
}

/** Stores the haiku in a file, too, for the next start of the demo. */
export class FileStore extends MemoryStore {
  readonly #path: string;
  // Writes follow each other.
  #written: Promise<void> = Promise.resolve();

  /** @throws {Error} if there is a file that does not contain haiku */
  constructor(path: string) {
    super(readHaikus(path));
    this.#path = path;
  }

  override async add(haiku: Haiku): Promise<void> {
    await super.add(haiku);
    const text = JSON.stringify(await this.last());
    const written = this.#written.then(() => this.#write(text));
    this.#written = written.catch(() => {});
    await written;
  }

  /** Replaces the file as a whole, so that it is complete after a crash. */
  async #write(text: string): Promise<void> {
    await writeFile(`${this.#path}.new`, text);
    await rename(`${this.#path}.new`, this.#path);
  }
}

function readHaikus(path: string): Haiku[] {
  try {
    return JSON.parse(readFileSync(path, 'utf8')) as Haiku[];
  } catch (error) {
    if ((error as NodeJS.ErrnoException).code === 'ENOENT') return [];
    throw error;
  }
}
