/** Fields of a follower that a quiet live stream does not need. */
import type { LogEntry } from '../log/log-entry.ts';
import type { CatchUp } from './catch-up.ts';
import type { EphemeralMember } from './ephemeral-member.ts';
import type { GapCounts } from './gap-counts.ts';

/**
 * Created when a follower needs one of the fields, and removed when it needs none of the fields.
 */
export class RareFollowerState {
  /** Defined while the stream is catching up. */
  catchUp: CatchUp | undefined;
  /** Defined while the stream follows channels without history. */
  ephemeral: EphemeralMember | undefined;
  /** Defined if the stream has lost something. */
  gapCounts: GapCounts | undefined;
  /** Whether all pending events are being written, also large ones (`flushAll`). */
  isFlushingAll = false;
  /** Whether this flush has written a frame with the end of a channel. */
  hasFlushedEnd = false;
  /** Entries that the filters have accepted, and that are not written yet. */
  acceptedEntries: LogEntry[] | undefined;
  /** Changes that callbacks have requested in the middle of a delivery. */
  deferredChanges: (() => void)[] | undefined;

  // `hasFlushedEnd` and `acceptedEntries` are not tested: the flush or the delivery that sets them
  // unsets them before it ends.
  get isEmpty(): boolean {
    const hasGaps = this.gapCounts !== undefined && !this.gapCounts.isEmpty;
    return (
      this.catchUp === undefined &&
      this.ephemeral === undefined &&
      !hasGaps &&
      !this.isFlushingAll &&
      !this.deferredChanges
    );
  }
}
