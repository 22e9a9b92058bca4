/** Time in ms for which a lease is valid that is not renewed, unless {@link Timing} has another. */
export const DEFAULT_LEASE_MS = 30_000;

/** The times by which a node works, in ms. */
export interface Timing {
  /** Time that Redis has to answer, and after which a publish rejects. */
  readonly timeout: number;
  /** Time without a message after which a probe is sent. */
  readonly probe: number;
  /** Time for which a channel stays subscribed after its last stream left: clients reconnect. */
  readonly linger: number;
  /** Pauses between attempts. Each pause is twice as long as the one before. */
  readonly wait: { readonly min: number; readonly max: number };
  /**
   * Time for which a channel that was used keeps its place in the cache, and for which channels
   * that do not fit into the cache are not loaded again.
   * @defaultValue `10_000`
   */
  readonly inUse?: number | undefined;
  /** Time for which a lease is valid that is not renewed. @defaultValue `30_000` */
  readonly lease?: number | undefined;
  /** Time without a connection after which a warning is emitted. @defaultValue `5_000` */
  readonly unreachable?: number | undefined;
}
