/** What may be spoken. */

/** A haiku as everybody gets it. */
export interface Haiku {
  /** The haiku's own, by which the page knows what it has got twice. */
  id: string;
  /** Up to three lines, separated by LF. */
  text: string;
  /** Whoever gave a name. */
  author?: string;
  /** When the server received it, ISO 8601. */
  at: string;
}

/** A request that cannot be served, and the sentence that says why. */
export class ClientError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

const MAX_LINES = 3;
const MAX_TEXT = 300;
const MAX_AUTHOR = 60;

// All that some reader's screen would break a line at.
const LINE_BREAK = /\r\n|[\n\v\f\r\u{85}\u{2028}\u{2029}]/u;
const CONTROL = /(?!\t)\p{Cc}/u;
const VISIBLE = /[\p{L}\p{N}\p{P}\p{S}]/u;

/**
 * The haiku that a request's body is, trimmed.
 * @throws {ClientError} 400 for anything else
 */
export function haikuOf(body: unknown): Omit<Haiku, 'id' | 'at'> {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) {
    throw bad('Send an object: {"text": "…"}.');
  }
  const { text, author, ...others } = body as Record<string, unknown>;
  if (Object.keys(others).length > 0) {
    throw bad('Send "text" and, if you like, "author", and nothing else.');
  }
  const spoken = textOf(text);
  const name = author === undefined ? '' : authorOf(author);
  return name === '' ? { text: spoken } : { text: spoken, author: name };
}

function textOf(value: unknown): string {
  if (typeof value !== 'string') throw bad('A haiku needs a "text", which is a string.');
  const lines = value.split(LINE_BREAK).map((line) => line.trim());
  const text = lines.join('\n').trim();
  if (!VISIBLE.test(text)) throw bad('A haiku needs at least one word.');
  if (text.split('\n').length > MAX_LINES) throw bad('A haiku has up to three lines.');
  if (length(text) > MAX_TEXT) throw bad('A haiku has up to 300 characters.');
  if (lines.some((line) => CONTROL.test(line))) throw bad('A haiku has no control characters.');
  return text;
}

function authorOf(value: unknown): string {
  if (typeof value !== 'string') throw bad('An "author" is a string.');
  const author = value.trim();
  if (LINE_BREAK.test(author) || CONTROL.test(author)) {
    throw bad('An "author" is one line without control characters.');
  }
  if (length(author) > MAX_AUTHOR) throw bad('An "author" has up to 60 characters.');
  return author;
}

/** In characters, not in UTF-16 code units. */
function length(text: string): number {
  return Array.from(text).length;
}

function bad(message: string): ClientError {
  return new ClientError(400, message);
}
