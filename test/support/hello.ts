/** An application whose streams get one event, and the expectation that `readEvents()` reads it. */
import type { RequestListener } from 'node:http';
import { expect } from 'vitest';
import { sse, stream } from '../../src/index.ts';
import { readEvents } from '../../src/testing/index.ts';

export const events = sse();
export const hello = stream((stream) => void stream.send('hello'));
export const listener: RequestListener = (req, res) =>
  events(req, res, () => hello(req, res, console.error));

export async function expectHello(target: Parameters<typeof readEvents>[0]): Promise<void> {
  await using reader = await readEvents(target);
  expect((await reader.next()).data).toBe('hello');
}
