/** The page, with the last haikus in it: as data, which the page's script reads and shows as text. */
import { readFileSync } from 'node:fs';
import type { Haiku } from './haiku.ts';

/** What the page begins with. */
export interface Spoken {
  /** Where the stream was before the haikus were read, so that it goes on from there. */
  cursor: string;
  /** The newest last. */
  haikus: readonly Haiku[];
}

const TEMPLATE = readFileSync(new URL('public/index.html', import.meta.url), 'utf8');
const PLACE = '<!-- what was spoken -->';

/** The page as HTML. */
export function pageOf(spoken: Spoken): string {
  const data = `<script id="spoken" type="application/json">${embeddable(spoken)}</script>`;
  // Given as text, the haiku `$&` would be replaced by the place itself.
  return TEMPLATE.replace(PLACE, () => data);
}

/** JSON in which nothing ends or begins an element, whatever the strings in it say. */
function embeddable(value: unknown): string {
  return JSON.stringify(value).replace(
    /[<>&\u{2028}\u{2029}]/gu,
    (character) => `\\u${character.charCodeAt(0).toString(16).padStart(4, '0')}`,
  );
}
