/** The timeouts, intervals and pauses of a node. */

/** Default of {@link Timing.lease}. */
export const DEFAULT_LEASE_MS = 30_000;

/** The times of a node, in ms. */
export interface Timing {
  /** Time within which Redis must answer. After this time a publish rejects. */
  readonly timeout: number;
  /** Time without a header after which a probe is sent. */
  readonly probe: number;
  /**
   * Time for which a channel stays subscribed after its last stream has left: its clients may
   * reconnect.
   */
  readonly linger: number;
  /** Limits of the pauses between attempts. Each pause is about twice as long as the last one. */
  readonly wait: { readonly min: number; readonly max: number };
  /**
   * Time for which a channel counts as in use after its last use: it is not removed from the cache
   * then to make room for another channel. Also the time for which channels that did not fit into
   * the cache are not loaded again.
   * @defaultValue `10_000`
   */
  readonly inUse?: number | undefined;
  /** Time after which a lease expires if it is not renewed. @defaultValue `30_000` */
  readonly lease?: number | undefined;
  /** Time without a connection after which a warning is emitted. @defaultValue `5_000` */
  readonly unreachable?: number | undefined;
}
