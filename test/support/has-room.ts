import { read } from './reader.ts';
import { until } from './wait.ts';

/** Whether one more stream would be taken; it is not kept. */
export async function hasRoom(url: string): Promise<boolean> {
  using reader = await read(url);
  await until('the first bytes', () => reader.text !== '');
  return !/^retry: \d+\n$/.test(reader.text);
}
