/** The pages of documentation: their blocks of code, headings and links, each with its line. */
import { readFile, readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The root of the repository. */
export const root: string = fileURLToPath(new URL('../..', import.meta.url));

/** A fenced block. */
export interface Block {
  /** What stands after the fence: the language, and words for the tests. */
  readonly language: string;
  readonly words: readonly string[];
  readonly text: string;
  /** Line of its first line of text, from 1. */
  readonly line: number;
  /** The file that its first line names in a comment. */
  readonly file: string | undefined;
}

export interface Link {
  readonly target: string;
  readonly line: number;
}

export interface Page {
  /** Relative to the root. */
  readonly path: string;
  readonly text: string;
  readonly blocks: readonly Block[];
  /** The anchors of its headings, as GitHub makes them. */
  readonly anchors: readonly string[];
  readonly links: readonly Link[];
}

// Made, installed or somebody else's.
const FOREIGN = /(^|\/)(node_modules|dist|coverage|\.git)\/|^docs\/api\//;

/** All pages of the repository, or those whose path begins so. */
export async function pages(under = ''): Promise<Page[]> {
  const files: string[] = [];
  for (const folder of ['.', '.github', 'bench', 'docs', 'examples']) {
    files.push(...(await markdownIn(folder)));
  }
  return Promise.all(
    files.filter((path) => path.startsWith(under) && !FOREIGN.test(path)).map(pageOf),
  );
}

export async function pageOf(path: string): Promise<Page> {
  const text = await readFile(join(root, path), 'utf8');
  const blocks = blocksOf(text);
  // The lines stay where they are.
  const prose = text.replaceAll(FENCED, (block) => '\n'.repeat(block.split('\n').length - 1));
  return { path, text, blocks, anchors: anchorsOf(prose), links: linksOf(prose) };
}

const FENCED = /^( *)```(.*)\n([^]*?)^\1```$/gm;

async function markdownIn(folder: string): Promise<string[]> {
  // The dependencies of the benchmark hold a link back to the root, so a recursive listing of its folder would not end.
  const isFlat = folder === '.' || folder === 'bench';
  const entries = await readdir(join(root, folder), { recursive: !isFlat }).catch(() => []);
  return entries.filter((entry) => entry.endsWith('.md')).map((entry) => join(folder, entry));
}

function blocksOf(text: string): Block[] {
  return [...text.matchAll(FENCED)].map(
    ({ 1: indent = '', 2: info = '', 3: content = '', index }) => {
      const [language = '', ...words] = info.split(' ');
      const code = content.replaceAll(new RegExp(`^${indent}`, 'gm'), '');
      return {
        language,
        words,
        text: code,
        line: lineAt(text, index) + 1,
        file: /^(?:\/\/|#|<!--) ([\w./-]+\.\w+)/.exec(code)?.[1],
      };
    },
  );
}

function anchorsOf(prose: string): string[] {
  const seen = new Map<string, number>();
  return [...prose.matchAll(/^#{1,6} (.+)$/gm)].map(([, heading = '']) => {
    const words = heading.replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1').toLowerCase();
    const slug = words.replaceAll(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-');
    const count = seen.get(slug) ?? 0;
    seen.set(slug, count + 1);
    return count === 0 ? slug : `${slug}-${count}`;
  });
}

function linksOf(prose: string): Link[] {
  const text = prose.replaceAll(/`[^`\n]*`/g, (code) => ' '.repeat(code.length));
  return [
    ...text.matchAll(/\]\(([^()\s]+)\)|\b(?:src|srcset|href)="([^"]+)"|^\[[^\]]+\]: (\S+)/gm),
  ].map(({ 1: inline, 2: html, 3: reference, index }) => ({
    target: inline ?? html ?? reference ?? '',
    line: lineAt(text, index),
  }));
}

function lineAt(text: string, index: number): number {
  return text.slice(0, index).split('\n').length;
}

/** The file that a link of a page leads to, and the anchor in it; nothing for one to elsewhere. */
export function resolved(
  page: Page,
  { target }: Link,
): { path: string; anchor: string } | undefined {
  if (/^[a-z]+:/i.test(target)) return undefined;
  const [path = '', anchor = ''] = target.split('#');
  return {
    path: path === '' ? page.path : join(dirname(page.path), decodeURIComponent(path)),
    anchor,
  };
}
