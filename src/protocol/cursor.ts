/** A place in a log: `<epoch>.<offset>`, an event's id and what a client brings back. */

/** The epoch names the log, so that a lost one is not mistaken for the next; the offset grows across the whole registry. */
export interface Cursor {
  readonly epoch: string;
  readonly offset: number;
}

// Beyond this it is no cursor of ours, however it goes on: a client may send a megabyte.
const MAX_LENGTH = 127;

const FORM = /^([A-Za-z0-9_-]+)\.(0|[1-9][0-9]{0,15})$/;

export function formatCursor(epoch: string, offset: number): string {
  return `${epoch}.${offset}`;
}

/** @returns `undefined` for whatever {@link formatCursor} does not make; the text comes from the network */
export function parseCursor(text: string): Cursor | undefined {
  if (text.length > MAX_LENGTH) return undefined;
  const [, epoch, digits] = FORM.exec(text) ?? [];
  if (epoch === undefined) return undefined;
  const offset = Number(digits);
  return Number.isSafeInteger(offset) ? { epoch, offset } : undefined;
}
