/** The documents of res-sse, as pages that show their Markdown as it is, with links to each other. */
import { readdirSync, readFileSync } from 'node:fs';

const DIRECTORY = new URL('../docs/', import.meta.url);

// A link to another document, in Markdown.
const LINK = /\[([^\]]+)\]\(([\w-]+\.md)(?:#[\w-]*)?\)/g;

/** The pages as HTML, by their names. They are read once, so that no other file can be requested. */
export function readDocuments(): Map<string, string> {
  const names = readdirSync(DIRECTORY).filter((name) => name.endsWith('.md'));
  return new Map(
    names.map((name) => [name, renderDocument(readFileSync(new URL(name, DIRECTORY), 'utf8'))]),
  );
}

/** Returns a document as HTML. Its first line is the title. */
function renderDocument(markdown: string): string {
  const text = markdown.replace(/[<>&]/g, (character) => `&#${character.charCodeAt(0)};`);
  const title = text.slice(0, text.indexOf('\n')).replace(/^# /, '');
  return `<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>${title}</title>
<link rel="icon" href="data:,">
<link rel="stylesheet" href="/style.css">
<body class="document">
<p><a href="/">Haiku</a> · <a href="/docs/">All documents</a></p>
<pre>${text.replace(LINK, '<a href="$2">$1</a>')}</pre>
`;
}
