/**
 * Types of revocations that `http/` and `channels/` share. `channels/` imports `http/`, so the
 * middleware finds the revocations of a registry by a symbol.
 */
import type { CloseOptions } from './close-options.ts';

/** The property of a registry that has its {@link RevocationSource}. */
export const revocationSource: unique symbol = Symbol.for('res-sse.revocations');

/** The revocation of one identity. */
export interface Revocation {
  readonly identity: string;
  /** How the streams of the identity end. */
  readonly options: CloseOptions;
}

/** The streams of one middleware that have an identity. */
export interface RevocationTarget {
  /** Ends the streams of the identity. Called in the order of the log, before any later event. */
  onRevoked(revocation: Revocation): void;
  /**
   * This node may have missed revocations: `authorize` is called for every stream with an identity,
   * or these streams end if there is no `authorize`. A stream receives no events of channels before
   * `authorize` has answered.
   */
  onMissed(): void;
}

/** The revocations of all nodes of a registry. */
export interface RevocationSource {
  /** Revokes an identity on all nodes. Resolves when no later event can reach its streams. */
  revoke(revocation: Revocation): Promise<void>;
  /** Calls the target with every later revocation. */
  attach(target: RevocationTarget): void;
}

/** How the stream ends; `'unknown'` if revocations may have been missed; `undefined` for none. */
export type FoundRevocation = CloseOptions | 'unknown' | undefined;

/** The identity of one stream. One object for each stream of a middleware with `identity`. */
export interface StreamGuard {
  /** `undefined` before the stream is open, and for a request without an identity. */
  identity: string | undefined;
  /**
   * Number of revocations that the middleware had received when it received the request. A loss of
   * revocations counts as one.
   */
  readonly revocationsBefore: number;
  /**
   * Finds a revocation that the outer middleware, which is mounted in front, has received after the
   * request. `undefined` if no middleware in front has an `identity`.
   */
  readonly findInOuter: ((identity: string) => FoundRevocation) | undefined;
  /** Set while the stream may receive no events: `authorize` is due or runs, or it will end. */
  authorization: Promise<void> | undefined;
}
