// A server in a process of its own: streams at / follow one channel; it publishes when told, and tells its memory.
import { createServer } from 'node:http';
import { createChannels, sse } from 'res-sse';

const channels = createChannels();
const events = sse({ channels, stallTimeout: false, heartbeat: false });
const listen = channels.listen('a');
const server = createServer((req, res) =>
  events(req, res, () => listen(req, res, () => res.end())),
);

const commands = {
  /** Publishes so many events of so many bytes, no faster than those who read take them. */
  async publish({ from, count, bytes, slow }) {
    const filler = 'x'.repeat(bytes);
    for (let index = from; index < from + count; index++) {
      await channels.publish('a', `${index}:${filler}`);
      do await new Promise((resolve) => setImmediate(resolve));
      while (channels.stats().behind > slow);
    }
  },
  memory() {
    for (let round = 0; round < 3; round++) globalThis.gc();
    const { heapUsed, external, rss } = process.memoryUsage();
    return { live: heapUsed + external, rss };
  },
  stats: () => ({ ...events.stats(), channels: channels.stats() }),
};

process.on('message', ({ id, command, options }) => {
  void Promise.resolve(commands[command](options)).then((result) => process.send({ id, result }));
});
server.listen(0, '127.0.0.1', () => process.send({ port: server.address().port }));
