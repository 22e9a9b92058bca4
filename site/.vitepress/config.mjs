/** The site: its menus come from `docs/README.md`, so a new guide needs to be listed only there. */
import { readFileSync } from 'node:fs';
import process from 'node:process';
import { fileURLToPath } from 'node:url';
import { defineConfig } from 'vitepress';

const indexFile = fileURLToPath(new URL('../../docs/README.md', import.meta.url));

export default defineConfig({
  title: 'res-sse',
  description: 'Server-Sent Events for Express, without silent loss',
  base: process.env.SITE_BASE ?? '/',
  srcDir: 'pages',
  srcExclude: ['public/**'],
  outDir: 'dist',
  lang: 'en',
  // No request for an icon that there is not.
  head: [['link', { rel: 'icon', href: 'data:,' }]],
  // Any other link to a page that does not exist ends the build.
  ignoreDeadLinks: 'localhostLinks',
  markdown: {
    anchor: { slugify: slugOf },
    languageAlias: { haproxy: 'nginx' },
    config: (md) => md.core.ruler.push('row-anchors', addRowAnchors),
  },
  themeConfig: {
    search: { provider: 'local' },
    outline: [2, 3],
    nav: [
      { text: 'Guides', link: '/docs/' },
      { text: 'Reference', link: '/docs/reference' },
      { text: 'Why do I see nothing?', link: '/docs/troubleshooting' },
    ],
    sidebar: menuOf(readFileSync(indexFile, 'utf8')),
  },
});

/** Makes the anchors that GitHub makes, so that links work there and here. */
function slugOf(heading) {
  return heading
    .trim()
    .toLowerCase()
    .replaceAll(/[^\p{L}\p{N} _-]/gu, '')
    .replaceAll(' ', '-');
}

/** @returns the groups of the index: a bold line, and the links of the list below it */
function menuOf(index) {
  return [...index.matchAll(/^\*\*(.+)\*\*\n\n((?:- .*\n)+)/gm)].map(([, text, list]) => ({
    text,
    items: [...list.matchAll(/\[([^\]]+)\]\(([^)]+\.md)\)/g)].map(([, title, path]) => ({
      text: title.replaceAll('`', ''),
      link: new URL(path.replace(/(README)?\.md$/, ''), 'http://site/docs/').pathname,
    })),
  }));
}

/**
 * Gives each row of a table an anchor: the anchor of its section, and the code in its first cell.
 * `#sse-heartbeat` is the option `heartbeat` in the section `sse()`. The code becomes a link to it.
 */
function addRowAnchors({ tokens, Token }) {
  const known = new Set();
  let section = '';
  let row;
  for (const [index, token] of tokens.entries()) {
    if (token.type === 'heading_open') section = slugOf(tokens[index + 1].content);
    if (token.type === 'tr_open') row = token;
    if (token.type !== 'inline' || row === undefined) continue;
    const [code] = token.children;
    const anchor = `${section}-${slugOf(code?.content.split('(')[0] ?? '')}`;
    if (code?.type === 'code_inline' && !known.has(anchor)) {
      row.attrSet('id', anchor);
      token.children.splice(0, 1, html(`<a href="#${anchor}">`), code, html('</a>'));
    }
    known.add(anchor);
    row = undefined;
  }

  function html(content) {
    return Object.assign(new Token('html_inline', '', 0), { content });
  }
}
