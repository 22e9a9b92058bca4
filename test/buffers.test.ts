/** Clients behind buffers and without event names, with the broker in this process. */
import { testBuffers } from './promises/buffers.ts';
import { memoryNodes } from './promises/nodes.ts';

testBuffers(memoryNodes);
