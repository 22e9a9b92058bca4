import type { Socket } from 'node:net';

/** Collects what is written to the sockets from now on. */
export function chunksWrittenTo(sockets: Iterable<Socket>): unknown[] {
  const chunks: unknown[] = [];
  for (const socket of sockets) {
    const write = socket.write.bind(socket);
    socket.write = ((...args: Parameters<Socket['write']>) => {
      chunks.push(args[0]);
      return write(...args);
    }) as Socket['write'];
  }
  return chunks;
}
