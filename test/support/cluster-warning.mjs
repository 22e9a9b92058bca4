// Prints the code and the detail of the warning that a memory broker gives in a cluster worker.
import cluster from 'node:cluster';
import { createChannels } from 'res-sse';

if (cluster.isPrimary) {
  cluster.fork().on('exit', (status) => process.exit(status ?? 1));
} else {
  process.on('warning', ({ code, detail }) => {
    process.stdout.write(`${code}\n${detail}\n`, () => process.exit(0));
  });
  createChannels();
}
