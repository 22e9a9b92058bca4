/**
 * Delivers published events to all live streams. The events of one event loop turn are joined to
 * frames of at most 64 KiB. The streams of one audience get the same frames.
 *
 * ```text
 * push(entry) ──► feed of its channel ──► #dueFeeds
 *
 * each turn, at most 250 members:
 *   1. start a round, if none is in progress:   round.feeds = #dueFeeds, upTo = feed.newest
 *   2. for each audience of these feeds:        frame = entries of its feeds after its position,
 *                                                       at most 64 KiB
 *                                               audience.startFrame(frame), audience.deliver()
 *   3. end the round:                           round.feeds forget the entries up to `upTo`
 *
 * feed news     1  2  3  │  4  5       4 and 5 were published while the round lasted: the feed
 *                     upTo             is due again, and the next round joins them to one frame
 * ```
 *
 * A round may last many turns. If an audience did not receive all entries of a feed, because they
 * exceed one frame, the feed is marked incomplete: it keeps its entries and is due again.
 */
import { nextTurnOutsideRequests } from '../common/async-context.ts';
import { Audience, type Member } from './audience.ts';
import { HIGH_WATER_MARK } from '../stream/write-queue.ts';
import { Feed } from './feed.ts';
import { Frame } from './frame.ts';
import { mergeLogs } from '../log/merge.ts';
import type { LogEntry } from '../log/log-entry.ts';

// Number of streams that are written to before other work gets its turn. With 10,000, the event
// loop would be blocked for 100 ms.
const MAX_MEMBERS_PER_TURN = 250;

// Number of bytes that are compressed in the time in which one member is written to.
const COMPRESSED_BYTES_PER_MEMBER = 512;

// Maximum bytes of pending entries: of one feed, and of all feeds of a fan-out. If a limit is
// exceeded, the entries of a feed are dropped. Streams read them from the log, if there is history.
const MAX_FEED_BYTES = 16_777_216;
const MAX_PENDING_BYTES = 67_108_864;

class AudienceFeed extends Feed {
  /** The audiences that follow the channel. */
  readonly audiences: Set<Audience> = new Set();
}

/** One visit to all audiences of the feeds that were due when the round started. */
interface Round {
  /** Each feed, with the offset of its newest entry at the start of the round. */
  readonly feeds: readonly { readonly feed: AudienceFeed; readonly upTo: number }[];
  /** The audiences that remain to be visited. */
  readonly audiences: Iterator<Audience, undefined>;
}

/** The entries after a position, for one frame. */
interface PendingEntries {
  readonly entries: readonly LogEntry[];
  /** Whether no further entries, and no dropped entries, follow. */
  readonly complete: boolean;
  readonly dropped: { readonly upTo: number; readonly events: number } | undefined;
}

/**
 * Audiences and feeds of one registry. A registry has one fan-out for channels with history, and
 * one for channels without.
 */
export class FanOut {
  readonly #hasLog: boolean;
  readonly #scheduleTurn: (run: () => void) => void;
  readonly #runTurn = (): void => this.#deliverSlice();
  #audiences = new Map<string, Audience>();
  #feeds = new Map<string, AudienceFeed>();
  // Retired audiences whose members have not left yet.
  readonly #retired: Audience[] = [];
  #dueFeeds: AudienceFeed[] = [];
  #round: Round | undefined;
  // The audience to which a frame is being delivered.
  #currentAudience: Audience | undefined;
  #pendingBytes = 0;
  // For each entry, the most recent frame whose last entry it is. Weak references, because the
  // fan-out must not keep entries that the log has removed.
  readonly #recentFrames = new WeakMap<LogEntry, WeakRef<Frame>>();
  #isScheduled = false;

  /**
   * @param schedule calls its argument when this turn of the event loop is over
   * @param hasLog whether members can read the log for entries that they did not receive.
   * @defaultValue `true`
   */
  constructor(schedule: (run: () => void) => void = nextTurnOutsideRequests, hasLog = true) {
    this.#hasLog = hasLog;
    this.#scheduleTurn = schedule;
  }

  /** Adds a published entry. Its audiences receive it when this turn of the event loop is over. */
  push(entry: LogEntry): void {
    const feed = this.#feeds.get(entry.channel);
    if (feed?.push(entry) !== true) return;
    const bytesBefore = this.#pendingBytes;
    this.#pendingBytes += entry.frame.length;
    // A single entry of a feed is delivered even if it is very large, unless the pending bytes
    // exceeded their limit before.
    const isTooMuch = feed.events > 1 ? this.#isOverLimit(feed) : bytesBefore > MAX_PENDING_BYTES;
    if (isTooMuch) this.#pendingBytes -= feed.dropAll();
    this.#markDue(feed);
    this.#schedule();
  }

  #isOverLimit({ bytes }: Feed): boolean {
    return bytes > MAX_FEED_BYTES || this.#pendingBytes > MAX_PENDING_BYTES;
  }

  /** Whether something was published that the member has not received. */
  hasPending({ feeds }: Audience, { position }: Member): boolean {
    return feeds.some(({ newest }) => newest > position);
  }

  /** Number of entries in the feeds that the member has not received, ends included. */
  countPending({ feeds }: Audience, { position }: Member): number {
    return feeds.reduce((sum, feed) => sum + feed.events - feed.indexAfter(position), 0);
  }

  /**
   * Delivers pending entries to one member before its turn: the current frame, and one more frame
   * of at most 64 KiB. If more is pending, the member falls behind and reads the rest from the log.
   * @param isAll delivers all pending entries instead, of any size
   */
  flushMember(audience: Audience, member: Member, isAll: boolean): void {
    audience.detach(member);
    const currentFrame = audience.pendingFrameOf(member);
    if (currentFrame !== undefined) member.takeFrame(currentFrame);
    while (audience.has(member)) {
      const { position } = member;
      const { entries, complete, dropped } = this.#pendingAfter(audience, position);
      if (entries.length > 0) member.takeFrame(this.frameOf(entries));
      else if (dropped !== undefined) member.onDropped(dropped.upTo, dropped.events);
      if (complete || member.position === position) return;
      if (!isAll && dropped === undefined) {
        // Not `onDropped`: the feeds still have the rest, for the other members.
        member.fallBehind();
        return;
      }
    }
  }

  /**
   * Joins entries to a frame.
   * @returns the frame that was made last of the same entries, if it still exists
   */
  frameOf(entries: readonly LogEntry[]): Frame {
    const last = entries.at(-1) as LogEntry;
    const recentFrame = this.#recentFrames.get(last)?.deref();
    if (recentFrame?.consistsOf(entries) === true) return recentFrame;
    const frame = new Frame(entries);
    this.#recentFrames.set(last, new WeakRef(frame));
    return frame;
  }

  // Members.

  /** A copy of the list of all members, those of retired audiences included. */
  get members(): Member[] {
    return [...this.#audiences.values(), ...this.#retired].flatMap(({ members }) => members);
  }

  /** @param channels a set: each channel once */
  addMember(channels: readonly string[], member: Member): Audience {
    const { isCompressed } = member;
    const audience =
      this.#audiences.get(audienceKey(channels, isCompressed)) ??
      this.#addAudience(channels, isCompressed);
    audience.add(member);
    return audience;
  }

  removeMember(audience: Audience, member: Member): void {
    audience.delete(member);
    if (audience.isRetired || audience.members.length > 0) return;
    this.#audiences.delete(audienceKey(audience.channels, audience.window !== undefined));
    for (const channel of audience.channels) {
      const feed = this.#feeds.get(channel) as AudienceFeed;
      feed.audiences.delete(audience);
      if (feed.audiences.size > 0) continue;
      this.#feeds.delete(channel);
      this.#pendingBytes -= feed.forget(Infinity);
    }
  }

  /**
   * Retires all audiences, because this node may have missed events: before the entries that are
   * pushed later, events may be missing. Retired audiences deliver nothing any more. Their members
   * leave in the next turns, at most 250 in each, and read the log.
   */
  retireAll(): void {
    if (this.#audiences.size === 0) return;
    for (const audience of this.#audiences.values()) {
      audience.isRetired = true;
      this.#retired.push(audience);
    }
    this.#currentAudience?.clearFrame();
    this.#currentAudience = undefined;
    this.#round = undefined;
    this.#dueFeeds = [];
    this.#pendingBytes = 0;
    this.#audiences = new Map();
    this.#feeds = new Map();
    this.#schedule();
  }

  #addAudience(channels: readonly string[], isCompressed: boolean): Audience {
    const feeds = channels.map((channel) => {
      const feed = this.#feeds.get(channel) ?? new AudienceFeed(channel);
      this.#feeds.set(channel, feed);
      return feed;
    });
    const position = Math.max(...feeds.map(({ newest }) => newest));
    const audience = new Audience(channels, feeds, position, isCompressed);
    this.#audiences.set(audienceKey(channels, isCompressed), audience);
    for (const feed of feeds) feed.audiences.add(audience);
    return audience;
  }

  // Rounds.

  #markDue(feed: AudienceFeed): void {
    if (feed.isDue) return;
    feed.isDue = true;
    this.#dueFeeds.push(feed);
  }

  /**
   * Schedules a turn. Not a microtask: other callbacks of this turn may publish to the same frame.
   */
  #schedule(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    this.#scheduleTurn(this.#runTurn);
  }

  /** Does the work of one turn. */
  #deliverSlice(): void {
    this.#isScheduled = false;
    let left = this.#removeRetiredMembers(MAX_MEMBERS_PER_TURN);
    while (left > 0) {
      this.#currentAudience ??= this.#nextAudience();
      if (this.#currentAudience === undefined) return;
      // The visit of an audience counts as well, even if no event is pending for the audience.
      left--;
      const audience = this.#currentAudience;
      if (!audience.isDelivering) left -= this.#startNextFrame(audience);
      if (audience.isDelivering) left = audience.deliver(left);
      if (!audience.isDelivering && this.#currentAudience === audience) {
        this.#currentAudience = undefined;
      }
    }
    this.#schedule();
  }

  /**
   * Lets members of retired audiences fall behind.
   * @returns `maxMembers` minus the number of members that have left
   */
  #removeRetiredMembers(maxMembers: number): number {
    let left = maxMembers;
    for (
      let audience = this.#retired.at(-1);
      audience !== undefined && left > 0;
      audience = this.#retired.at(-1)
    ) {
      const member = audience.members.at(-1);
      if (member === undefined) {
        this.#retired.pop();
        continue;
      }
      left--;
      member.fallBehind();
    }
    return left;
  }

  /** The next audience of this round or, after the end of this round, of a new round. */
  #nextAudience(): Audience | undefined {
    const audience = this.#round?.audiences.next().value;
    if (audience !== undefined) return audience;
    this.#endRound();
    if (this.#dueFeeds.length === 0) return undefined;
    const feeds = this.#dueFeeds.map((feed) => ({ feed, upTo: feed.newest }));
    this.#dueFeeds = [];
    for (const { feed } of feeds) {
      feed.isDue = false;
      // The flag may have been set while the feed was not part of a round. This round visits all
      // audiences of the feed.
      feed.isIncomplete = false;
    }
    this.#round = { feeds, audiences: audiencesOf(feeds) };
    return this.#round.audiences.next().value;
  }

  /** Removes the entries that every audience has received. */
  #endRound(): void {
    for (const { feed, upTo } of this.#round?.feeds ?? []) {
      // An incomplete feed is due again.
      if (!feed.isIncomplete) this.#pendingBytes -= feed.forget(upTo);
    }
    this.#round = undefined;
  }

  /**
   * Starts the delivery of the next frame, if anything is pending for the audience.
   * @returns the time to compress the frame, as the number of members that could be written to
   * meanwhile
   */
  #startNextFrame(audience: Audience): number {
    const { entries, complete, dropped } = this.#pendingAfter(audience, audience.position);
    if (!complete) this.#markIncomplete(audience);
    if (entries.length > 0) {
      audience.startFrame(this.frameOf(entries));
      return compressionCost(audience);
    }
    if (dropped !== undefined) audience.startDropped(dropped.upTo, dropped.events);
    return 0;
  }

  /** The entries after the position for one frame, or the information that entries were dropped. */
  #pendingAfter(audience: Audience, position: number): PendingEntries {
    const dropped = audience.droppedAfter(position);
    const { entries, complete } = mergeLogs(audience.feeds, position, HIGH_WATER_MARK);
    if (dropped === undefined) return { entries, complete, dropped };
    // With a log, the members read everything from there. Without a log, older entries that the
    // feeds still hold are delivered first.
    const older = this.#hasLog ? [] : entries.filter(({ offset }) => offset < dropped.upTo);
    return { entries: older, complete: false, dropped };
  }

  /** The audience has not received all entries of its feeds: the next round visits it again. */
  #markIncomplete({ channels, position }: Audience): void {
    for (const channel of channels) {
      const feed = this.#feeds.get(channel);
      // An empty feed matters, too, if the audience was not informed of the entries that it
      // dropped.
      if (feed === undefined || (feed.events === 0 && feed.droppedUpTo <= position)) continue;
      feed.isIncomplete = true;
      this.#markDue(feed);
    }
  }
}

function* audiencesOf(feeds: Round['feeds']): Generator<Audience, undefined> {
  // The iteration of a Set visits audiences that are added meanwhile, but not those that are
  // deleted.
  for (const { feed } of feeds) yield* feed.audiences;
}

/** The cost of the frame that was started last, see `#startNextFrame`. */
function compressionCost({ window }: Audience): number {
  return window === undefined
    ? 0
    : Math.ceil((window.end - window.start) / COMPRESSED_BYTES_PER_MEMBER);
}

/** The key of an audience. Plain and compressed streams have audiences of their own. */
function audienceKey(channels: readonly string[], isCompressed: boolean): string {
  const key = channelsKey(channels);
  return isCompressed ? `gzip\n\n${key}` : key;
}

/**
 * Makes a key that is the same for the same set of channels, in any order. Channel names
 * contain no control characters, so two sets cannot have the same key.
 */
export function channelsKey(channels: readonly string[]): string {
  return channels.length === 1 ? (channels[0] as string) : channels.toSorted().join('\n');
}
