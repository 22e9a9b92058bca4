/** Reads the pages of the documentation: code blocks, headings and links, each with its line. */
import { readFile, readdir } from 'node:fs/promises';
import { dirname, join } from 'node:path';
import { fileURLToPath } from 'node:url';

/** The root of the repository. */
export const root: string = fileURLToPath(new URL('../..', import.meta.url));

/** A fenced code block. */
export interface Block {
  /** The text after the fence: the language, and words for the tests. */
  readonly language: string;
  readonly words: readonly string[];
  readonly text: string;
  /** Number of its first line of text, from 1. */
  readonly line: number;
  /** The file name in a comment in the first line. */
  readonly file: string | undefined;
}

export interface Link {
  readonly target: string;
  readonly line: number;
}

export interface Page {
  /** Path relative to the root of the repository. */
  readonly path: string;
  readonly text: string;
  readonly blocks: readonly Block[];
  /** The anchors of the headings, as GitHub generates them. */
  readonly anchors: readonly string[];
  readonly links: readonly Link[];
}

// Folders with generated or installed files.
const FOREIGN = /(^|\/)(node_modules|dist|coverage|\.git)\/|^docs\/api\//;

/** Returns the pages of the repository whose path starts with `under`. */
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
  // Remove code blocks, but keep the line numbers.
  const prose = text.replaceAll(FENCED, (block) => '\n'.repeat(block.split('\n').length - 1));
  return { path, text, blocks, anchors: anchorsOf(prose), links: linksOf(prose) };
}

const FENCED = /^( *)```(.*)\n([^]*?)^\1```$/gm;

async function markdownIn(folder: string): Promise<string[]> {
  // The dependencies of the benchmark contain a link to the root, so a recursive listing would not
  // end.
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
  const counts = new Map<string, number>();
  return [...prose.matchAll(/^#{1,6} (.+)$/gm)].map(([, heading = '']) => {
    const words = heading.replaceAll(/\[([^\]]*)\]\([^)]*\)/g, '$1').toLowerCase();
    const slug = words.replaceAll(/[^\p{L}\p{N} _-]/gu, '').replaceAll(' ', '-');
    const count = counts.get(slug) ?? 0;
    counts.set(slug, count + 1);
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

/** The file and the anchor of a link, or `undefined` for an external link. */
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
