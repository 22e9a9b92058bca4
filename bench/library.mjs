/**
 * The build that is measured. `BENCH_DIST` names its folder, so that the same script can measure an
 * older build.
 */
import { join } from 'node:path';
import process from 'node:process';
import { pathToFileURL } from 'node:url';

const dist = process.env.BENCH_DIST ?? join(import.meta.dirname, '..', 'dist');
const load = (file) => import(pathToFileURL(join(dist, file)).href);

export const { createChannels, sse } = await load('index.js');
export const { redisBroker } = await load('brokers/redis.js');
