/** The membership of a stream in an audience of channels without history. */
import type { Audience, Member } from './audience.ts';
import type { GzipWindow } from '../protocol/gzip-window.ts';
import { channelsKey } from './fan-out.ts';
import type { FollowerState } from './follower-state.ts';
import type { Frame } from './frame.ts';
import type { LogEntry } from '../log/log-entry.ts';

// Maximum number of rounds of one flush, for a filter that publishes an event for every event.
const MAX_FLUSH_ROUNDS = 10;

/**
 * Channels without history have no log: events that are not written now are lost. So, unlike a
 * `StreamFollower`, this member never falls behind. If the client is slow (see send-limit.ts), the
 * option `onSlow` decides whether events are dropped or the stream is destroyed. The member is
 * never attached to its audience, because that decision is different for each client.
 */
export class EphemeralMember implements Member {
  readonly #owner: FollowerState;
  listIndex = -1;
  /**
   * Events up to this offset were written, filtered out or dropped. Each node numbers its events
   * without history itself.
   */
  position = 0;
  // Entries that the filters have accepted, and that are not written yet.
  #acceptedEntries: LogEntry[] | undefined;
  #audience: Audience | undefined;

  constructor(owner: FollowerState) {
    this.#owner = owner;
  }

  /**
   * Follows these channels from here on, and no others. Events that were published before are not
   * delivered.
   */
  follow(channels: readonly string[]): void {
    const audience = this.#audience;
    if (audience !== undefined && channelsKey(channels) === channelsKey(audience.channels)) return;
    if (audience !== undefined) this.#dropPending(audience);
    // A callback may have ended the stream.
    if (this.#owner.stream.readyState === 2) return;
    this.leave();
    this.#audience = this.#owner.host.ephemeralFanOut.addMember(channels, this);
    this.position = Math.max(this.position, this.#audience.newestOffset);
  }

  /** Leaves the audience. No effect outside an audience. */
  leave(): void {
    if (this.#audience === undefined) return;
    this.#owner.host.ephemeralFanOut.removeMember(this.#audience, this);
    this.#audience = undefined;
  }

  /**
   * Writes all pending events, because the stream could not get them later. If a filter publishes
   * events during the flush, these events are written, too. The number of such rounds is limited.
   */
  flush(): void {
    const { ephemeralFanOut } = this.#owner.host;
    for (let round = 0; round < MAX_FLUSH_ROUNDS && this.#audience !== undefined; round++) {
      ephemeralFanOut.flushMember(this.#audience, this, true);
      if (this.#audience === undefined || !ephemeralFanOut.hasPending(this.#audience, this)) return;
    }
  }

  /**
   * The member leaves its audience, and counts the pending events as dropped. The client is not
   * slow, so `onSlow` does not apply.
   */
  #dropPending(audience: Audience): void {
    const { host, stream } = this.#owner;
    const events = host.ephemeralFanOut.countPending(audience, this);
    if (events === 0) return;
    this.position = audience.newestOffset;
    stream.countDropped(events);
  }

  get isCompressed(): boolean {
    return this.#owner.stream.gzip !== undefined;
  }

  /** @returns `undefined`: never attached */
  takeFrame(frame: Frame, window?: GzipWindow): undefined {
    const from = this.position;
    if (frame.lastOffset <= from) return;
    // Set before anything is written, because a filter or a wrapped `res.write` may call back.
    this.position = frame.lastOffset;
    const { stream, host } = this.#owner;
    if (!host.mayReceive(stream)) {
      stream.countDropped(frame.entries.length);
      return;
    }
    host.deliveries.enter(stream);
    try {
      if (frame.firstOffset > from && !this.#owner.isFiltered) this.#write(frame, window);
      else this.#writeFiltered(frame, from);
    } catch (error) {
      this.#owner.fail(error);
    } finally {
      host.deliveries.exit();
    }
    this.#owner.onDelivered();
  }

  /**
   * The fan-out has dropped events. The stream counts them as dropped and applies `onSlow`, so that
   * it may end.
   */
  onDropped(upTo: number, events: number): void {
    if (this.position >= upTo) return;
    this.position = upTo;
    this.#owner.stream.dropEvents(events);
  }

  /**
   * Never called: audiences of channels without history are never retired, and are flushed
   * completely.
   */
  fallBehind(): void {
    this.leave();
  }

  fail(error: unknown): void {
    this.#owner.fail(error);
  }

  onAttached(): void {}

  onDetached(): void {}

  /** Writes events, unless too much is queued for the reader. */
  #write(frame: Frame, window: GzipWindow | undefined): void {
    const { stream } = this.#owner;
    const { length } = frame.entries;
    // If `writeShared()` has written nothing, because the stream is behind, the frame is queued:
    // `admitEvents()` has decided that the stream receives it.
    if (stream.admitEvents(length) && !stream.writeShared(frame, length, window)) {
      stream.writeBytes(frame.bytes, length, frame, window);
    }
  }

  #writeFiltered(frame: Frame, from: number): void {
    for (const entry of frame.entries) {
      if (entry.offset > from && this.#owner.accepts(entry)) {
        (this.#acceptedEntries ??= []).push(entry);
      }
    }
    this.writeAccepted();
  }

  /** Writes the entries that the filters have accepted by now. */
  writeAccepted(): void {
    const accepted = this.#acceptedEntries;
    if (accepted === undefined) return;
    this.#acceptedEntries = undefined;
    this.#write(this.#owner.host.ephemeralFanOut.frameOf(accepted), undefined);
  }
}
