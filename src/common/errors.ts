/** `SseError` and its codes. */

/** The codes of {@link SseError}. `docs/errors.md` has a section for each, with the fix. */
export type SseErrorCode =
  | 'ERR_SSE_BROKER'
  | 'ERR_SSE_CHANNEL_NAME'
  | 'ERR_SSE_CLOSED'
  | 'ERR_SSE_COMMENT'
  | 'ERR_SSE_CONFLICT'
  | 'ERR_SSE_CURSOR'
  | 'ERR_SSE_DATA'
  | 'ERR_SSE_ENDED'
  | 'ERR_SSE_EVENT'
  | 'ERR_SSE_FIELD'
  | 'ERR_SSE_FILTER'
  | 'ERR_SSE_GAP'
  | 'ERR_SSE_HEADERS_SENT'
  | 'ERR_SSE_ID'
  | 'ERR_SSE_ID_TAKEN'
  | 'ERR_SSE_NO_CHANNELS'
  | 'ERR_SSE_NO_MIDDLEWARE'
  | 'ERR_SSE_OPTION'
  | 'ERR_SSE_OTHER_REGISTRY'
  | 'ERR_SSE_RETRY'
  | 'ERR_SSE_SOURCE';

// A registered symbol, so that `instanceof` works between two copies of the package in one process.
const brand = Symbol.for('res-sse.SseError');

/**
 * An error of the library: wrong use, or a broker that has not accepted a call. Wrong use is
 * reported before the call has any effect. For a publish, `delivery` says whether it had one. A
 * client that disconnects or is slow never causes an error: its stream ends with a `CloseReason`.
 *
 * @example
 * try {
 *   res.sse.send(text, { event: name });
 * } catch (error) {
 *   if (error instanceof SseError && error.code === 'ERR_SSE_EVENT') res.sse.send(text);
 *   else throw error;
 * }
 */
export class SseError extends Error {
  static {
    Object.defineProperty(this.prototype, 'name', { value: 'SseError' });
    Object.defineProperty(this.prototype, brand, { value: true });
  }

  /**
   * The kind of the error. The message describes the error and its fix, and ends with the address
   * of the section of this code in `docs/errors.md`.
   */
  readonly code: SseErrorCode;

  /**
   * For a publish or an end that was not accepted: `'none'` if nobody received the event;
   * `'unknown'` if the event may have been published, so that only a publish with a `key` can be
   * repeated safely. `undefined` for all other errors.
   */
  readonly delivery: 'none' | 'unknown' | undefined;

  /** @internal */
  constructor(
    code: SseErrorCode,
    message: string,
    options?: ErrorOptions & { delivery?: 'none' | 'unknown' },
  ) {
    super(`${message} (${sectionOf(code)})`, options);
    this.code = code;
    this.delivery = options?.delivery;
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === 'object' && value !== null && brand in value;
  }
}

/**
 * The address of the section of a code, as a path in `node_modules`. The anchors of headings are in
 * lower case.
 * @internal
 */
export function sectionOf(code: string): string {
  return `res-sse/docs/errors.md#${code.toLowerCase()}`;
}

// Characters of a string that an error message shows.
const MAX_SHOWN_LENGTH = 60;

/**
 * Describes a value for an error message: `"x" (string)`, `-1 (number)`, `undefined`. A long string
 * is cut, and an object is not shown, because a message may be logged.
 * @internal
 */
export function describeValue(value: unknown): string {
  if (value === undefined || value === null) return String(value);
  const type = Array.isArray(value) ? 'array' : typeof value;
  if (typeof value === 'string') {
    const isLong = value.length > MAX_SHOWN_LENGTH;
    const shown = isLong ? `${value.slice(0, MAX_SHOWN_LENGTH)}…` : value;
    return `${JSON.stringify(shown)} (string)`;
  }
  if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean') {
    return `${value} (${type})`;
  }
  return `a value of type ${type}`;
}

/**
 * Describes a thrown value for the end of an error message. The value may be an object without a
 * prototype, which `String()` cannot convert.
 * @internal
 */
export function describeThrown(thrown: unknown): string {
  try {
    return String(thrown);
  } catch {
    return describeValue(thrown);
  }
}
