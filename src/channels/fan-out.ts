/**
 * Published events to all live streams: what one turn of the event loop publishes is joined once and written once to each.
 *
 * ```text
 * push(entry) ──► feed of its channel ──► due
 * each turn, at most SLICE streams:
 *   round = the feeds that are due ──► each audience of them, one after the other:
 *     the entries of its feeds beyond its position, joined to a frame of at most 64 KiB ──► each member
 *   end of the round: the feeds forget what all their audiences have been given
 * ```
 *
 * While a round lasts, what is published waits in the feeds and is joined to larger frames of the next one.
 */
import { nextTurnOutsideRequests } from '../common/async-context.ts';
import { Audience, type Generation, type Member } from './audience.ts';
import { HIGH_WATER_MARK } from '../stream/write-queue.ts';
import { Feed } from './feed.ts';
import { Frame } from './frame.ts';
import { mergeLogs } from '../log/log.ts';
import type { LogEntry } from '../log/log-entry.ts';

// So many streams are written to before other work gets its turn; at ten thousand the loop would stall for a tenth of a second.
const SLICE = 250;

// So much of one channel waits for its audiences, in bytes of frames, and so much of all. What is more has to be read from the log.
const MAX_FEED_BYTES = 16_777_216;
const MAX_PENDING_BYTES = 67_108_864;

class FollowedFeed extends Feed {
  /** The audiences that follow the channel. */
  readonly audiences: Set<Audience> = new Set();
}

class LiveGeneration implements Generation {
  isRetired = false;
  readonly audiences: Map<string, Audience> = new Map();
  readonly feeds: Map<string, FollowedFeed> = new Map();
}

/** The feeds that were due when the round began, each with its newest offset then, and the audiences still to be visited. */
interface Round {
  readonly feeds: readonly { readonly feed: FollowedFeed; readonly upTo: number }[];
  readonly audiences: Iterator<Audience, undefined>;
}

interface Next {
  readonly entries: readonly LogEntry[];
  /** Whether that is all there is. */
  readonly complete: boolean;
  readonly dropped: { readonly upTo: number; readonly events: number } | undefined;
}

/** The audiences of one registry. */
export class FanOut {
  readonly #hasLog: boolean;
  readonly #schedule: (run: () => void) => void;
  readonly #run = (): void => this.#giveSlice();
  #generation = new LiveGeneration();
  // Audiences of earlier generations whose members have not left yet.
  readonly #retired: Audience[] = [];
  #due: FollowedFeed[] = [];
  #round: Round | undefined;
  // The audience whose members are being given a frame.
  #giving: Audience | undefined;
  #pendingBytes = 0;
  // What was joined last of what ends with an entry. Weak: what the log lets go of is not to be kept here.
  readonly #joined = new WeakMap<LogEntry, WeakRef<Frame>>();
  #isScheduled = false;

  /**
   * @param schedule calls back when this turn of the event loop is over
   * @param hasLog whether members can read the log for what they were not given
   */
  constructor(schedule: (run: () => void) => void = nextTurnOutsideRequests, hasLog = true) {
    this.#hasLog = hasLog;
    this.#schedule = schedule;
  }

  /** Takes an entry in; its audiences get it when this turn of the event loop is over. */
  push(entry: LogEntry): void {
    const feed = this.#generation.feeds.get(entry.channel);
    if (feed?.push(entry) !== true) return;
    const before = this.#pendingBytes;
    this.#pendingBytes += entry.frame.length;
    // A single entry is given to the streams, however large it is, unless too much waits for them already.
    const isTooMuch = feed.events > 1 ? this.#isTooMuch(feed) : before > MAX_PENDING_BYTES;
    if (isTooMuch) this.#pendingBytes -= feed.drop();
    this.#makeDue(feed);
    this.#scheduleRun();
  }

  #isTooMuch({ bytes }: Feed): boolean {
    return bytes > MAX_FEED_BYTES || this.#pendingBytes > MAX_PENDING_BYTES;
  }

  /** Whether something was published that the member has not been given. */
  hasPending({ feeds }: Audience, { position }: Member): boolean {
    return feeds.some(({ newest }) => newest > position);
  }

  /**
   * Gives one member what was published, before its turn: at most one frame of 64 KiB beside the one that is being given.
   * What is more it is told to miss, so that it reads that from the log.
   * @param isAll gives it all there is, however much
   */
  flush(audience: Audience, member: Member, isAll: boolean): void {
    audience.detach(member);
    const current = audience.frameFor(member);
    if (current !== undefined) member.take(current);
    while (audience.has(member)) {
      const { position } = member;
      const { entries, complete, dropped } = this.#nextFor(audience, position);
      if (entries.length > 0) member.take(this.joined(entries));
      else if (dropped !== undefined) member.miss(dropped.upTo, dropped.events);
      if (complete || member.position === position) return;
      if (!isAll && dropped === undefined) {
        // Not told as dropped: it is still here, for the others.
        member.fallBehind();
        return;
      }
    }
  }

  /** Entries joined. Streams that are owed the same are given the same bytes. */
  joined(entries: readonly LogEntry[]): Frame {
    const last = entries.at(-1) as LogEntry;
    const known = this.#joined.get(last)?.deref();
    if (known?.holds(entries) === true) return known;
    const frame = new Frame(entries);
    this.#joined.set(last, new WeakRef(frame));
    return frame;
  }

  /** The members of all audiences, as they are now. */
  get members(): Member[] {
    return [...this.#generation.audiences.values(), ...this.#retired].flatMap(
      ({ members }) => members,
    );
  }

  /** @param channels each once */
  join(channels: readonly string[], member: Member): Audience {
    const audience = this.#generation.audiences.get(keyOf(channels)) ?? this.#add(channels);
    audience.add(member);
    return audience;
  }

  leave(audience: Audience, member: Member): void {
    audience.delete(member);
    const { audiences, feeds } = this.#generation;
    if (audience.isRetired || audience.members.length > 0) return;
    audiences.delete(keyOf(audience.channels));
    for (const channel of audience.channels) {
      const feed = feeds.get(channel) as FollowedFeed;
      feed.audiences.delete(audience);
      if (feed.audiences.size > 0) continue;
      feeds.delete(channel);
      this.#pendingBytes -= feed.forget(Infinity);
    }
  }

  /**
   * From here on what is pushed proves nothing about what came before. No audience is given anything any more, and their members
   * are told to leave, in slices.
   */
  retireAll(): void {
    const { audiences } = this.#generation;
    if (audiences.size === 0) return;
    this.#generation.isRetired = true;
    this.#giving?.abandon();
    this.#giving = undefined;
    this.#round = undefined;
    this.#due = [];
    this.#pendingBytes = 0;
    this.#generation = new LiveGeneration();
    for (const audience of audiences.values()) this.#retired.push(audience);
    this.#scheduleRun();
  }

  #add(channels: readonly string[]): Audience {
    const { audiences, feeds } = this.#generation;
    const followed = channels.map((channel) => {
      const feed = feeds.get(channel) ?? new FollowedFeed(channel);
      feeds.set(channel, feed);
      return feed;
    });
    const position = Math.max(...followed.map(({ newest }) => newest));
    const audience = new Audience(channels, followed, position, this.#generation);
    audiences.set(keyOf(channels), audience);
    for (const feed of followed) feed.audiences.add(audience);
    return audience;
  }

  #makeDue(feed: FollowedFeed): void {
    if (feed.isDue) return;
    feed.isDue = true;
    this.#due.push(feed);
  }

  #scheduleRun(): void {
    if (this.#isScheduled) return;
    this.#isScheduled = true;
    // Not a microtask: what other callbacks of this turn publish is joined, too.
    this.#schedule(this.#run);
  }

  #giveSlice(): void {
    this.#isScheduled = false;
    let left = this.#retireMembers(SLICE);
    while (left > 0) {
      this.#giving ??= this.#next();
      if (this.#giving === undefined) return;
      // An audience that has nothing to give has been looked at all the same.
      left--;
      if (!this.#giving.isGiving && !this.#begin(this.#giving)) this.#giving = undefined;
      else left = this.#giving.give(left);
      if (this.#giving?.isGiving === false) this.#giving = undefined;
    }
    this.#scheduleRun();
  }

  /** @returns how many of that number are left when all members of retired audiences have left */
  #retireMembers(most: number): number {
    let left = most;
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

  /** The next audience of the round, or of the next round. */
  #next(): Audience | undefined {
    const next = this.#round?.audiences.next().value;
    if (next !== undefined) return next;
    this.#endRound();
    if (this.#due.length === 0) return undefined;
    const feeds = this.#due.map((feed) => ({ feed, upTo: feed.newest }));
    this.#due = [];
    for (const { feed } of feeds) {
      feed.isDue = false;
      // An earlier round in which the feed was not due may have left it set; all audiences are visited now.
      feed.hasRest = false;
    }
    this.#round = { feeds, audiences: audiencesOf(feeds) };
    return this.#round.audiences.next().value;
  }

  /** What every audience has been given is forgotten. */
  #endRound(): void {
    for (const { feed, upTo } of this.#round?.feeds ?? []) {
      // An audience that did not get all of it will be visited once more.
      if (!feed.hasRest) this.#pendingBytes -= feed.forget(upTo);
    }
    this.#round = undefined;
  }

  /** @returns `false` where the audience has been given everything */
  #begin(audience: Audience): boolean {
    const { entries, complete, dropped } = this.#nextFor(audience, audience.position);
    if (!complete) this.#visitAgain(audience);
    if (entries.length > 0) audience.begin(this.joined(entries));
    else if (dropped !== undefined) audience.beginDropped(dropped.upTo, dropped.events);
    return audience.isGiving;
  }

  /** What comes behind the position: entries of at most one write, or that entries were dropped. */
  #nextFor(audience: Audience, position: number): Next {
    const dropped = audience.droppedAfter(position);
    const { entries, complete } = mergeLogs(audience.feeds, position, HIGH_WATER_MARK);
    if (dropped === undefined) return { entries, complete, dropped };
    // What is still here comes first where there is no log to read it from.
    const before = this.#hasLog ? [] : entries.filter(({ offset }) => offset < dropped.upTo);
    return { entries: before, complete: false, dropped };
  }

  /** The audience is given the rest in the next round. */
  #visitAgain({ channels }: Audience): void {
    for (const channel of channels) {
      const feed = this.#generation.feeds.get(channel);
      if (feed === undefined || feed.events === 0) continue;
      feed.hasRest = true;
      this.#makeDue(feed);
    }
  }
}

function* audiencesOf(feeds: Round['feeds']): Generator<Audience, undefined> {
  // Audiences that come while the round lasts are visited, too; those that have left are not.
  for (const { feed } of feeds) yield* feed.audiences;
}

/** One key for each set of channels. A channel name has no control characters, so it cannot be ambiguous. */
export function keyOf(channels: readonly string[]): string {
  return channels.length === 1 ? (channels[0] as string) : channels.toSorted().join('\n');
}
