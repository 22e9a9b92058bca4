/** The HTML page. The latest haiku are embedded as JSON, which the script of the page displays. */
import { readFileSync } from 'node:fs';
import type { Haiku } from './haiku.ts';

/** The data that is embedded in the page. */
export interface PageData {
  /** Cursor of the stream from before the haiku were read. The stream of the page starts there. */
  cursor: string;
  /** The latest haiku, the newest last. */
  haikus: readonly Haiku[];
}

const TEMPLATE = readFileSync(new URL('public/index.html', import.meta.url), 'utf8');
const PLACEHOLDER = '<!-- data -->';

/** Returns the page as HTML. */
export function renderPage(data: PageData): string {
  const script = `<script id="spoken" type="application/json">${toEmbeddableJson(data)}</script>`;
  // The replacement is a function, because `replace()` would expand `$&` in a string.
  return TEMPLATE.replace(PLACEHOLDER, () => script);
}

/** Returns JSON that contains no character with a meaning in HTML or in a script element. */
function toEmbeddableJson(value: unknown): string {
  return JSON.stringify(value).replace(
    /[<>&\u{2028}\u{2029}]/gu,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}
