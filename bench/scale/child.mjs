/**
 * Runs one case at one size in this process, and prints lines of JSON:
 *
 *     node child.mjs CASE SIZE [fake]
 */
import process from 'node:process';
import { cases } from './cases.mjs';
import { Meter } from './meter.mjs';

const [name, size, kind] = process.argv.slice(2);
const print = (message) => process.stdout.write(`${JSON.stringify(message)}\n`);

const found = cases.find((one) => one.name === name);
const {
  act,
  note = () => '',
  items = Number(size),
} = await found.prepare(Number(size), kind === 'fake');
const meter = new Meter();
print({ kind: 'started' });
await meter.start();
await act();
const result = await meter.stop();
print({ kind: 'done', items, ...result, note: await note() });
process.exit();
