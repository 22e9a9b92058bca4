/** The cases of the scaling table, in the order of the table. */
import { closing } from './closing.mjs';
import { fanOut } from './fan-out.mjs';
import { oneTurn } from './one-turn.mjs';
import { overRedis } from './over-redis.mjs';
import { resuming } from './resuming.mjs';

/**
 * @typedef {object} Case
 * @property {string} name for `--cases`
 * @property {string} title `N` is the size
 * @property {string} item what the work is divided by
 * @property {readonly number[]} [sizes] with clients in another process
 * @property {readonly number[]} [fakeSizes] with streams that have no socket, as far as memory allows
 * @property {(n: number, isFake: boolean) => Promise<Prepared>} prepare everything that is not measured
 *
 * @typedef {object} Prepared
 * @property {() => Promise<unknown>} act what is measured
 * @property {number} [items] how many there are, where that is not the size
 * @property {() => string | Promise<string>} [note] for the last column
 */

/** @type {readonly Case[]} */
export const cases = [...fanOut, ...resuming, ...overRedis, ...oneTurn, ...closing];
