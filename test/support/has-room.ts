import { read } from './reader.ts';
import { until } from './wait.ts';

/** @returns whether one more stream is admitted; the stream is closed at once */
export async function hasRoom(url: string): Promise<boolean> {
  using reader = await read(url);
  await until('the first bytes', () => reader.text !== '');
  return !/^retry: \d+\n$/.test(reader.text);
}
