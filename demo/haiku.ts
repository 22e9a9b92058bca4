/** The haiku, and the check of a request body that contains one. */

/** A haiku as it is published. */
export interface Haiku {
  /** Unique id. The page recognises by it a haiku that arrives twice. */
  id: string;
  /** Up to three lines, separated by LF. */
  text: string;
  /** Name of the author, if given. */
  author?: string;
  /** Time at which the server received the haiku, ISO 8601. */
  at: string;
}

/** An error that is the client's. The message is sent to the client. */
export class ClientError extends Error {
  readonly status: number;

  constructor(status: number, message: string) {
    super(message);
    this.status = status;
  }
}

const MAX_LINES = 3;
const MAX_TEXT_LENGTH = 300;
const MAX_AUTHOR_LENGTH = 60;

// All characters at which a client may break a line.
const LINE_BREAK = /\r\n|[\n\v\f\r\u{85}\u{2028}\u{2029}]/u;
const CONTROL = /(?!\t)\p{Cc}/u;
const VISIBLE = /[\p{L}\p{N}\p{P}\p{S}]/u;

/**
 * Checks a request body and trims its texts.
 * @throws {ClientError} 400 if the body is not a haiku
 */
export function parseHaiku(body: unknown): Omit<Haiku, 'id' | 'at'> {
  if (typeof body !== 'object' || body === null || Array.isArray(body)) {
    throw badRequest('Send an object: {"text": "…"}.');
  }
  const { text, author, ...others } = body as Record<string, unknown>;
  if (Object.keys(others).length > 0) {
    throw badRequest('Send "text" and, if you like, "author", and nothing else.');
  }
  const parsedText = parseText(text);
  const parsedAuthor = author === undefined ? '' : parseAuthor(author);
  return parsedAuthor === '' ? { text: parsedText } : { text: parsedText, author: parsedAuthor };
}

/** @returns the trimmed lines, separated by LF */
function parseText(value: unknown): string {
  if (typeof value !== 'string') throw badRequest('A haiku needs a "text", which is a string.');
  const lines = value.split(LINE_BREAK).map((line) => line.trim());
  const text = lines.join('\n').trim();
  if (!VISIBLE.test(text)) throw badRequest('A haiku needs at least one word.');
  if (text.split('\n').length > MAX_LINES) throw badRequest('A haiku has up to three lines.');
  if (countCharacters(text) > MAX_TEXT_LENGTH) {
    throw badRequest('A haiku has up to 300 characters.');
  }
  if (lines.some((line) => CONTROL.test(line))) {
    throw badRequest('A haiku has no control characters.');
  }
  return text;
}

/** @returns the trimmed name, `''` if there is none */
function parseAuthor(value: unknown): string {
  if (typeof value !== 'string') throw badRequest('An "author" is a string.');
  const author = value.trim();
  if (LINE_BREAK.test(author) || CONTROL.test(author)) {
    throw badRequest('An "author" is one line without control characters.');
  }
  if (countCharacters(author) > MAX_AUTHOR_LENGTH) {
    throw badRequest('An "author" has up to 60 characters.');
  }
  return author;
}

/** Counts code points. The property `length` would count a character beyond the BMP twice. */
function countCharacters(text: string): number {
  return Array.from(text).length;
}

function badRequest(message: string): ClientError {
  return new ClientError(400, message);
}
