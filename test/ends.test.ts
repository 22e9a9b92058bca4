/** Channels that end, with the broker in this process. */
import { testEnds } from './promises/ends.ts';
import { memoryNodes } from './promises/nodes.ts';

testEnds(memoryNodes);
