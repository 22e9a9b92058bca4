/** Reading channels in the process, on two nodes that share a log in Redis. */
import { afterAll, beforeAll } from 'vitest';
import { testReading } from '../promises/reading.ts';
import { RedisNodes } from '../promises/nodes.ts';

const nodes = new RedisNodes();
beforeAll(() => nodes.start());
afterAll(() => nodes.stop());

testReading(nodes.make);
