/** The soak: nodes, clients and a Redis with faults, for a long time. See README.md. */
import { resolve } from 'node:path';
import process from 'node:process';
import { setTimeout as sleep } from 'node:timers/promises';
import { parseArgs } from 'node:util';
import { startRedis } from './redis.mjs';
import { Soak } from './soak/soak.mjs';
import { WAYS_TO_SPOIL } from './soak/spoil.mjs';

const HELP = `node bench/soak.mjs [options], after npm run build

  --minutes 30    duration in minutes, without warm-up and end
  --warm-up 2     minutes before the first measurement of memory
  --every 12      average time between two faults of Redis, in seconds
  --no-faults     run without faults of Redis
  --dist folder   use the build in this folder instead of \`dist\` of this checkout
  --spoil way     change the record of one client, so that the verdict has to be FAILED;
                  one of: ${WAYS_TO_SPOIL.join(', ')}
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
else process.exit((await runSoak()) ? 0 : 1);

/** @returns {Promise<boolean>} whether the verdict is ok */
async function runSoak() {
  const isKnownWay = flags.spoil === undefined || WAYS_TO_SPOIL.includes(flags.spoil);
  if (!isKnownWay) throw new Error(`--spoil needs one of ${WAYS_TO_SPOIL.join(', ')}`);
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
  const isOk = await soak.verdict();
  await soak.stop();
  // Gives stdout the time to write the verdict before the process exits.
  await sleep(10);
  return isOk;
}
