/** The documents that the haiku chat serves. */
import { readFile, readdir } from 'node:fs/promises';
import { describe, expect, it } from 'vitest';
import { createDemo } from '../../demo/app.ts';
import { serve } from '../support/server.ts';

const DOCS = new URL('../../docs/', import.meta.url);

describe('GET /docs/', () => {
  it('shows each document as it is, with links to the others that lead somewhere', async () => {
    await using server = await serve(createDemo().app);
    const names = (await readdir(DOCS)).filter((name) => name.endsWith('.md'));
    expect(names).toContain('client.md');
    for (const name of names) {
      const response = await fetch(`${server.url}/docs/${name}`);
      expect([response.status, response.headers.get('Content-Type')]).toEqual([
        200,
        'text/html; charset=utf-8',
      ]);
      const page = await response.text();
      const [, pre = ''] = /<pre>([^]*)<\/pre>/.exec(page) ?? [];
      const links = [...pre.matchAll(/<a href="([^"]*)">/g)].map(([, target = '']) => target);
      for (const target of links) expect(names).toContain(target);
      const markdown = await readFile(new URL(name, DOCS), 'utf8');
      // The text of a link stays, its target goes.
      const text = pre
        .replaceAll(/<\/?a\b[^>]*>/g, '')
        .replaceAll(/&#(\d+);/g, (_, code) => String.fromCharCode(Number(code)));
      expect(text).toBe(markdown.replaceAll(/\[([^\]]+)\]\([\w-]+\.md(#[\w-]*)?\)/g, '$1'));
      expect(pre.replaceAll(/<a href="[\w.-]+">|<\/a>/g, '')).not.toMatch(/[<>]/);
    }
  });

  it('begins with the list of the documents', async () => {
    await using server = await serve(createDemo().app);
    const list = await (await fetch(`${server.url}/docs/`)).text();
    expect(list).toContain('<title>Guides</title>');
    expect(list).toContain('<a href="client.md">The client</a>');
  });

  it.each(['../package.json', '..%2fpackage.json', '%2e%2e/README.md', 'api', 'nothing.md'])(
    'answers 404 to %s, because only documents can be requested',
    async (path) => {
      await using server = await serve(createDemo().app);
      const response = await fetch(`${server.url}/docs/${path}`);
      expect(response.status).toBe(404);
      await response.body?.cancel();
    },
  );
});
