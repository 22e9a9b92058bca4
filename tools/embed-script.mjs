/**
 * Writes `src/brokers/redis/script.ts` from `log.lua`. Part of `npm run build`.
 *
 * The script is embedded, not read from a file at run time, so that bundlers include it.
 */
import { createHash } from 'node:crypto';
import { readFileSync, writeFileSync } from 'node:fs';

const folder = new URL('../src/brokers/redis/', import.meta.url);
const target = new URL('script.ts', folder);
const source = readFileSync(new URL('log.lua', folder), 'utf8');
const sha = createHash('sha1').update(source).digest('hex');
const literal = source.replaceAll(/[\\`]|\$\{/g, String.raw`\$&`);

const text = `/** The script that runs inside Redis. Generated from log.lua by \`npm run build\`: edit log.lua. */
export const script: {
  /** Lua source, for EVAL. */
  readonly source: string;
  /** SHA-1 of the source, for EVALSHA. */
  readonly sha: string;
} = {
  sha: '${sha}',
  source: \`${literal}\`,
};
`;

// An unchanged file keeps its time of modification.
if (readFileSync(target, 'utf8') !== text) writeFileSync(target, text);
