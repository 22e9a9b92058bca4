/** Clients behind buffers and without event names, on two nodes that share a log in Redis. */
import { afterAll, beforeAll } from 'vitest';
import { testBuffers } from '../promises/buffers.ts';
import { RedisNodes } from '../promises/nodes.ts';

const nodes = new RedisNodes();
beforeAll(() => nodes.start());
afterAll(() => nodes.stop());

testBuffers(nodes.make);
