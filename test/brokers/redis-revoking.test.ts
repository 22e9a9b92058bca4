/** Revoking, on two nodes that share a log in Redis. */
import { afterAll, beforeAll } from 'vitest';
import { testRevoking } from '../promises/revoking.ts';
import { RedisNodes } from '../promises/nodes.ts';

const nodes = new RedisNodes();
beforeAll(() => nodes.start());
afterAll(() => nodes.stop());

testRevoking(nodes.make);
