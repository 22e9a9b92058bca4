/**
 * Copies the documents of the repository to `pages/`, from which the site is built. The documents
 * stay as they are for GitHub, npm and `node_modules`. The differences:
 *
 * - `README.md` of a folder is the page of the folder, `index.md`.
 * - The unchanged documents are in `public/`, too, for the links of `llms.txt`.
 * - A link to a file that is no page of the site, such as the source of an example, leads to the
 *   repository if `package.json` names its address. Otherwise its text stays without a link.
 */
import {
  cpSync,
  existsSync,
  mkdirSync,
  readFileSync,
  readdirSync,
  rmSync,
  writeFileSync,
} from 'node:fs';
import { dirname, join, posix } from 'node:path';
import { fileURLToPath } from 'node:url';

const root = fileURLToPath(new URL('..', import.meta.url));
const target = fileURLToPath(new URL('pages', import.meta.url));

const documents = [
  'README.md',
  'CHANGELOG.md',
  'CONTRIBUTING.md',
  'SECURITY.md',
  'examples/README.md',
  ...readdirSync(join(root, 'docs'))
    .filter((name) => name.endsWith('.md'))
    .map((name) => `docs/${name}`),
];

// A fenced block, or code in a line, or a link with its mark of a picture, its words and its target.
const CODE_OR_LINK =
  /^( *)```[^]*?^\1```$|`[^`\n]*`|(!?)\[((?:`[^`\n]*`|[^\]`])*)\]\(([^()\s]+)\)/gm;

const { repository } = JSON.parse(readFileSync(join(root, 'package.json'), 'utf8'));
const address = (repository?.url ?? repository)?.replace(/^git\+|\.git$/g, '');

rmSync(target, { recursive: true, force: true });
for (const document of [...documents, 'llms.txt']) {
  cpSync(join(root, document), join(target, 'public', document));
}
for (const document of documents) {
  const path = join(target, pageOf(document));
  mkdirSync(dirname(path), { recursive: true });
  writeFileSync(path, withLinks(document, readFileSync(join(root, document), 'utf8')));
}
for (const name of readdirSync(join(root, 'docs')).filter((each) => /\.(png|svg)$/.test(each))) {
  cpSync(join(root, 'docs', name), join(target, 'docs', name));
}

/** @returns the path of a document as a page of the site */
function pageOf(document) {
  return document.replace(/README\.md$/, 'index.md');
}

/** Changes the links of a document that cannot stay as they are. Code and pictures stay. */
function withLinks(document, text) {
  return text.replaceAll(CODE_OR_LINK, (found, _indent, picture, words, to) =>
    picture === '' ? changed(document, found, words, to) : found,
  );
}

/** @returns the link, with the address that its target has on the site */
function changed(document, link, words, to) {
  const [path = '', anchor] = to.split('#');
  if (/^[a-z]+:/i.test(to) || path === '') return link;
  const file = posix.join(posix.dirname(document), path);
  if (!existsSync(join(root, file))) {
    throw new Error(`${document} links to ${to}, which is missing`);
  }
  const hash = anchor === undefined ? '' : `#${anchor}`;
  if (documents.includes(file)) return `[${words}](${pageOf(path)}${hash})`;
  return address === undefined ? words : `[${words}](${address}/blob/main/${file}${hash})`;
}
