import type { Socket } from 'node:net';

export type Part = Buffer | string;

/**
 * Calls `note` with the parts of each packet that is passed to the kernel from now on. The `write`
 * of the socket is not replaced: with another `write`, streams would not share their bytes.
 */
export function watchWrites(socket: Socket, note: (parts: Part[]) => void): void {
  // `net` implements its streams with these methods: one call is one write to the kernel.
  for (const method of ['_write', '_writev'] as const) {
    const send = socket[method] as (...args: unknown[]) => void;
    socket[method] = (given: Part | { chunk: Part }[], ...rest: unknown[]) => {
      note(Array.isArray(given) ? given.map(({ chunk }) => chunk) : [given]);
      Reflect.apply(send, socket, [given, ...rest]);
    };
  }
}

/** Collects the bytes that are written to the sockets from now on. */
export function chunksWrittenTo(sockets: Iterable<Socket>): Part[] {
  const chunks: Part[] = [];
  for (const socket of sockets) watchWrites(socket, (parts) => chunks.push(...parts));
  return chunks;
}
