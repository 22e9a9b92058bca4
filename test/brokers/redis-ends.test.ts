/** Channels that end, on two nodes that share a log in Redis. */
import { afterAll, beforeAll } from 'vitest';
import { testEnds } from '../promises/ends.ts';
import { RedisNodes } from '../promises/nodes.ts';

const nodes = new RedisNodes();
beforeAll(() => nodes.start());
afterAll(() => nodes.stop());

testEnds(nodes.make);
