/** The warnings of the library, which the process emits. */
import { sectionOf } from './errors.ts';

/** The `code` of a warning. `docs/errors.md` has a section for each, with the fix. */
export type WarningCode =
  | 'RES_SSE_BODY_TRANSFORMED'
  | 'RES_SSE_BROKER_UNREACHABLE'
  | 'RES_SSE_CREATED_PER_REQUEST'
  | 'RES_SSE_HEARTBEAT_TOO_LONG'
  | 'RES_SSE_KEY_UNDEFINED'
  | 'RES_SSE_MAX_CHANNELS'
  | 'RES_SSE_MEMORY_BROKER_IN_CLUSTER'
  | 'RES_SSE_MOUNTED_TWICE'
  | 'RES_SSE_SERVER_TIMEOUT'
  | 'RES_SSE_SIX_STREAMS'
  | 'RES_SSE_TIME_IN_SECONDS';

/**
 * Emits a warning of the process.
 * @param message the situation
 * @param fix the remedy, which Node prints below the message, and after it the address of the
 * section of the code
 */
export function emitWarning(code: WarningCode, message: string, fix: string): void {
  process.emitWarning(message, { code, detail: `${fix} (${sectionOf(code)})` });
}
