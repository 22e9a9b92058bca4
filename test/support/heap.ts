/** @returns bytes of the heap after garbage collection */
export async function liveHeap(): Promise<number> {
  if (globalThis.gc === undefined) {
    throw new Error('run node with --expose-gc, as vitest.config.ts does');
  }
  for (let round = 0; round < 3; round++) {
    await new Promise((resolve) => setImmediate(resolve));
    globalThis.gc();
  }
  return process.memoryUsage().heapUsed;
}
