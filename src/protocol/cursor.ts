/** Cursors: positions in a log, written as `<epoch>.<offset>`. Every event id is a cursor. */

/**
 * A position in the log of a registry. The epoch names the log: after a log was lost, its cursors
 * must not be taken for positions in the next log. The offset grows across all channels of the
 * registry.
 */
export interface Cursor {
  readonly epoch: string;
  readonly offset: number;
}

// A client may send a megabyte of text as its cursor. Text that is longer than this is not a cursor
// of this library, and is not parsed.
const MAX_LENGTH = 127;

// Up to 16 digits: `Number.MAX_SAFE_INTEGER` has 16.
const PATTERN = /^([A-Za-z0-9_-]+)\.(0|[1-9][0-9]{0,15})$/;

/** Writes a cursor as text. */
export function formatCursor(epoch: string, offset: number): string {
  return `${epoch}.${offset}`;
}

/**
 * Parses the text of a cursor, which may come from the network.
 * @returns `undefined` for any text that {@link formatCursor} does not write
 */
export function parseCursor(text: string): Cursor | undefined {
  if (text.length > MAX_LENGTH) return undefined;
  const [, epoch, digits] = PATTERN.exec(text) ?? [];
  if (epoch === undefined) return undefined;
  const offset = Number(digits);
  return Number.isSafeInteger(offset) ? { epoch, offset } : undefined;
}
