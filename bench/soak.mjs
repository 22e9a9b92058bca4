/** Nodes, clients and a Redis that is not well, for a long time. See README.md. */
import { resolve } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { startRedis } from './redis.mjs';
import { Soak } from './soak/soak.mjs';
import { WAYS_TO_SPOIL } from './soak/spoil.mjs';

const HELP = `node bench/soak.mjs [options], after npm run build

  --minutes 30    how long, without the warm-up and the end
  --warm-up 2     minutes before the first level of memory is taken
  --every 12      seconds from one fault of Redis to the next, on average
  --no-faults     Redis stays well
  --dist folder   another build than this checkout's \`dist\`
  --spoil way     one client's record is changed, so the verdict must be FAILED: ${WAYS_TO_SPOIL.join(', ')}
`;

const { values: flags } = parseArgs({
  allowNegative: true,
  options: {
    minutes: { type: 'string', default: '30' },
    'warm-up': { type: 'string', default: '2' },
    every: { type: 'string', default: '12' },
    faults: { type: 'boolean', default: true },
    dist: { type: 'string' },
    spoil: { type: 'string' },
    help: { type: 'boolean', default: false },
  },
});

for (const signal of ['SIGINT', 'SIGTERM']) process.on(signal, () => process.exit(1));

if (flags.help) process.stdout.write(HELP);
else process.exit((await main()) ? 0 : 1);

async function main() {
  const isWay = flags.spoil === undefined || WAYS_TO_SPOIL.includes(flags.spoil);
  if (!isWay) throw new Error(`--spoil takes ${WAYS_TO_SPOIL.join(', ')}`);
  const redis = await startRedis({ appendonly: 'yes', appendfsync: 'always' });
  const soak = new Soak(redis, {
    dist: flags.dist === undefined ? undefined : resolve(flags.dist),
    every: Number(flags.every) * 1e3,
    hasFaults: flags.faults,
    spoil: flags.spoil,
  });
  await soak.start();
  await soak.load('warm-up', Number(flags['warm-up']) * 60_000);
  await soak.empty();
  await soak.takeLevels();
  await soak.load('soak', Number(flags.minutes) * 60_000);
  await soak.settle();
  await soak.empty();
  const isWell = await soak.verdict();
  await soak.stop();
  // The line of the verdict is out.
  await sleep(10);
  return isWell;
}
