/**
 * Checks the language of the documents (CONTRIBUTING.md, "Names and language"): plain technical
 * English. Prints each place that breaks a rule, and ends with the status 1 if there is one.
 *
 *     node tools/check-prose.mjs [files]
 */
import { readFileSync, readdirSync } from 'node:fs';
import process from 'node:process';

/** Patterns, and what to write instead. Code is removed from the text before. */
const RULES = [
  [/\b(whoever|whomever|whosoever)\b/i, 'name the thing or the person'],
  [
    /(?:^|[.:!?] )(So (many|much|long)|Those (who|that|of)|One (that|who)|Of (whom|which)) /,
    'begin with the subject',
  ],
  [/(?:^|[.!] )What (?![^.]*\?)[^.,:]*[.,:]/, 'begin with the noun, not with "What"'],
  [/(?:^|[.!] )Who (?![^.]*\?)[^.,:]*[.,:]/, 'begin with the noun, not with "Who"'],
  [/, for (it|they|there|he|she) (is|are|was|were|has|have|can|does|do)\b/, 'write "because"'],
  [
    /\b(in vain|thereof|therein|whereby|wherein|hereby|aught|naught|lest|amiss)\b/i,
    'use the usual word',
  ],
  [/\b(simply|easily|obviously|of course|basically|actually)\b/i, 'leave the word out'],
  [/\b(utili[sz]e|leverage|in order to|due to the fact|prior to)\b/i, 'use the short word'],
  [/\b(awesome|blazing|lightning|magic|seamless(ly)?|robust)\b/i, 'say what it does'],
];

const named = process.argv.slice(2);
const faults = (named.length > 0 ? named : documents()).flatMap(findFaults);
for (const fault of faults) process.stderr.write(`${fault}\n`);
process.exitCode = faults.length === 0 ? 0 : 1;

/** @returns the documents for readers, without the changelog */
function documents() {
  const guides = readdirSync('docs').filter((name) => name.endsWith('.md'));
  const others = ['CONTRIBUTING.md', 'SECURITY.md', 'bench/README.md', 'examples/README.md'];
  return ['README.md', 'llms.txt', ...guides.map((name) => `docs/${name}`), ...others];
}

/** @returns one line for each fault in a file */
function findFaults(file) {
  const text = readFileSync(file, 'utf8')
    // The lines of code stay as empty lines, so that the numbers are right.
    .replaceAll(/^( *)```[^]*?^\1```$/gm, (code) => '\n'.repeat(code.split('\n').length - 1))
    .replaceAll(/`[^`\n]*`/g, '`code`');
  return [...sentencesOf(text)].flatMap(({ words, line }) =>
    RULES.flatMap(([pattern, advice]) => {
      const [found] = pattern.exec(words) ?? [];
      return found === undefined ? [] : [`${file}:${line}: "${found.trim()}": ${advice}`];
    }),
  );
}

/**
 * Yields each paragraph, each item of a list and each cell of a table, with its first line.
 * Headings may be questions.
 */
function* sentencesOf(text) {
  let paragraph = { words: '', line: 0 };
  for (const [index, content] of `${text}\n`.split('\n').entries()) {
    const isNew = /^\s*([-*|#>]|\d+\.)\s?|^\s*$/.test(content);
    if (isNew && paragraph.words !== '' && !paragraph.words.startsWith('#')) yield paragraph;
    if (isNew || paragraph.words === '') paragraph = { words: '', line: index + 1 };
    const words = content.trim().replace(/^([-*>]|\d+\.) /, '');
    if (words.startsWith('|')) {
      for (const cell of words.split(/\s*\|\s*/)) yield { words: cell, line: index + 1 };
    } else {
      paragraph.words = `${paragraph.words} ${words}`.trim();
    }
  }
}
