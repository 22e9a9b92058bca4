/** Reading channels in the process, with the broker in this process. */
import { testReading } from './promises/reading.ts';
import { memoryNodes } from './promises/nodes.ts';

testReading(memoryNodes);
