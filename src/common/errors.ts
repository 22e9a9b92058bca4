/** Every code an {@link SseError} can carry. `docs` and the README list them with their fix. */
export type SseErrorCode =
  | 'ERR_SSE_BROKER'
  | 'ERR_SSE_CHANNEL_NAME'
  | 'ERR_SSE_CLOSED'
  | 'ERR_SSE_COMMENT'
  | 'ERR_SSE_CONFLICT'
  | 'ERR_SSE_CURSOR'
  | 'ERR_SSE_DATA'
  | 'ERR_SSE_EVENT'
  | 'ERR_SSE_FIELD'
  | 'ERR_SSE_FILTER'
  | 'ERR_SSE_HEADERS_SENT'
  | 'ERR_SSE_ID'
  | 'ERR_SSE_ID_TAKEN'
  | 'ERR_SSE_NO_CHANNELS'
  | 'ERR_SSE_NO_MIDDLEWARE'
  | 'ERR_SSE_OPTION'
  | 'ERR_SSE_OTHER_REGISTRY'
  | 'ERR_SSE_RETRY'
  | 'ERR_SSE_SOURCE';

// A registered symbol, so that `instanceof` holds between two copies of the package in one process.
const brand = Symbol.for('res-sse.SseError');

/**
 * Wrong use of the library. Thrown at the call that is wrong, before it has had any effect;
 * a reader that leaves or is slow is never an error but a `CloseReason`.
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

  /** What is wrong, for programs. The message says it for people, with the fix. */
  readonly code: SseErrorCode;

  /**
   * Of a publish that was not accepted: `'none'`, nobody got it; `'unknown'`, it may have been published, and only a `key` makes
   * it safe to try again. `undefined` for everything else.
   */
  readonly delivery: 'none' | 'unknown' | undefined;

  /** @internal */
  constructor(
    code: SseErrorCode,
    message: string,
    options?: ErrorOptions & { delivery?: 'none' | 'unknown' },
  ) {
    super(message, options);
    this.code = code;
    this.delivery = options?.delivery;
  }

  static override [Symbol.hasInstance](value: unknown): boolean {
    return typeof value === 'object' && value !== null && brand in value;
  }
}

/** `'x' (string)`, `-1 (number)`, `undefined`: a value as an error message shows it. @internal */
export function describeValue(value: unknown): string {
  if (value === undefined || value === null) return String(value);
  const type = Array.isArray(value) ? 'array' : typeof value;
  if (typeof value === 'string') {
    return `${JSON.stringify(value.length > 60 ? `${value.slice(0, 60)}…` : value)} (string)`;
  }
  if (typeof value === 'number' || typeof value === 'bigint' || typeof value === 'boolean') {
    return `${value} (${type})`;
  }
  return `a value of type ${type}`;
}

/** What was thrown, as the end of an error message. An object without `toString` can be thrown, too. @internal */
export function describeThrown(thrown: unknown): string {
  try {
    return String(thrown);
  } catch {
    return describeValue(thrown);
  }
}
