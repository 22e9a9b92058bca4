/**
 * Estimates the number of syllables of a line. English spelling does not determine the number, so
 * the estimate is a hint, and must not reject a line.
 */

/**
 * The numbers that are added to the number of groups of vowels if a pattern matches.
 * @type {[pattern: RegExp, syllables: number][]}
 */
const RULES = [
  // A silent e: stone, loved, leaves. Not silent: table, settled, acres.
  [/[^aeiouy]e$|[^aeiouytd]ed$|(?:[^aeiouyscgxzh]|th)es$/, -1],
  [/[^aeiouylr][lr]e[ds]?$/, 1],
  // lonely
  [/[^aeiouy]ely$/, -1],
  // Adjacent vowels of two syllables: radio, lion, quiet, usual, being, theory, poem, mosaic.
  [/i(?:a(?![lng])|o(?![nu])|um)|(?<!l)lion/, 1],
  [/iet|scien/, 1],
  [/[^gq]ua[lr]/, 1],
  [/[aeiouy]ing$|[^g]eo(?![nup])/, 1],
  [/oe[mt]|aic$/, 1],
  // rhythm, prism
  [/thms?$|isms?$/, 1],
];

// Words that are frequent in haiku and follow no rule.
const EXCEPTIONS = new Map([
  ['area', 3],
  ['evening', 2],
  ['every', 2],
  ['fire', 1],
  ['idea', 3],
  ['museum', 3],
  ['ocean', 2],
  ['people', 2],
  ['piano', 3],
  ['something', 2],
  ['sometimes', 2],
  ['theatre', 3],
]);

// Each kana is one syllable, except small kana, which belong to the kana before.
const KANA = /(?![ぁぃぅぇぉゃゅょゎァィゥェォャュョヮ])[ぁ-ゖァ-ヺー]/g;

/** @param {string} line text in Latin script or kana; other characters are not counted */
export function countSyllables(line) {
  const words =
    line
      .normalize('NFD')
      .replace(/[\u0300-\u036f’']/g, '')
      .toLowerCase()
      .match(/[a-z]+/g) ?? [];
  const kana = line.normalize('NFC').match(KANA) ?? [];
  return words.reduce((sum, word) => sum + syllablesOf(word), kana.length);
}

/** @param {string} word a word of the letters a to z */
function syllablesOf(word) {
  const exception = EXCEPTIONS.get(word);
  if (exception !== undefined) return exception;
  const groups = word.match(/[aeiouy]+/g)?.length ?? 0;
  return (
    RULES.reduce(
      (sum, [pattern, syllables]) => (pattern.test(word) ? sum + syllables : sum),
      groups,
    ) || 1
  );
}
