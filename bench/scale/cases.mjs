/** The cases of the scaling table, in the order of the table. */
import { closing } from './closing.mjs';
import { fanOut } from './fan-out.mjs';
import { oneTurn } from './one-turn.mjs';
import { overRedis } from './over-redis.mjs';
import { resuming } from './resuming.mjs';

/**
 * @typedef {object} Case
 * @property {string} name name for `--cases`
 * @property {string} title title in the table; `N` is the size
 * @property {string} item the unit of work, by which the CPU time is divided
 * @property {readonly number[]} [sizes] sizes with clients in another process
 * @property {readonly number[]} [fakeSizes] sizes with streams without sockets
 * @property {(n: number, isFake: boolean) => Promise<Prepared>} prepare does everything that is not
 * measured
 *
 * @typedef {object} Prepared
 * @property {() => Promise<unknown>} act does the work that is measured
 * @property {number} [items] number of items. @defaultValue the size
 * @property {() => string | Promise<string>} [note] returns the text of the last column
 */

/** @type {readonly Case[]} */
export const cases = [...fanOut, ...resuming, ...overRedis, ...oneTurn, ...closing];
