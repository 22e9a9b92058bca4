import { readFile } from 'node:fs/promises';
import { join } from 'node:path';
import { expect, test } from 'vitest';
import { packageFolder } from '../support/packages.ts';
import { pageOf } from './blocks.ts';

test.each([
  ['Vercel AI SDK', 'ai'],
  ['TanStack AI', '@tanstack/ai-client'],
  ['htmx 4', 'htmx.org'],
  ['Datastar', '@starfederation/datastar'],
])('docs/clients.md names the version of %s that is tested', async (client, name) => {
  const { version } = JSON.parse(
    await readFile(join(packageFolder(name), 'package.json'), 'utf8'),
  ) as { version: string };
  const rows = (await pageOf('clients.md')).split('\n');
  expect(rows.find((row) => row.startsWith(`| ${client} (`))).toContain(`${version} |`);
});
