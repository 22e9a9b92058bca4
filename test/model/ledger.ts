/**
 * The contract (DESIGN.md, 2.3, rules 0 to 10) as an account of one connection: of each channel it knows what the stream owes,
 * and reads what was written, event by event, beside what was asked for.
 */
import type { ParsedEvent } from '../support/strict-parser.ts';
import type { ChannelName, FollowOptions } from './schedule.ts';
import {
  Violation,
  verdictOf,
  type Loss,
  type PublishedEvent,
  type Truth,
  type Verdict,
} from './truth.ts';

/** One call of `subscribe`. */
export interface Hold {
  readonly options: FollowOptions;
  /** Where it begins: after an offset, or as the words say. */
  readonly start: number | 'now' | 'whole' | 'foreign';
  /** Where the log was when the call was made, and when it had resolved. */
  readonly headAtCall: number;
  /** How many events had been published by then. */
  readonly numberAtCall: number;
  headAtStart: number | undefined;
  lossAtCall: Loss;
  /**
   * Whether it was made by a filter or in the middle of a write, or whether user code has done something else in the middle of it.
   * Then it has its place when the events that were being given have been written, or what was done has been: it is not known when,
   * as with a broker elsewhere.
   */
  isInside: boolean;
  /** Whether what user code has published in the middle of the call may have changed where it begins. */
  isStartUnsure: boolean;
}

/** What happened beside the bytes, and behind which of them. */
export type Mark = { at: number | undefined } & (
  | { what: 'called'; hold: Hold; live: boolean; owedFrom: number }
  | { what: 'started'; hold: Hold; recovered: boolean }
  | { what: 'leaving'; hold: Hold }
  | { what: 'left'; hold: Hold; live: boolean; head: number; n: number }
  | {
      what: 'asked';
      by: FollowOptions;
      channels: readonly string[];
      cursor: string;
      loss: Loss | undefined;
      /** Where the log was when it was read, at least, and where it is. */
      least: number;
      head: number;
    }
  | { what: 'answered'; channels: readonly string[]; cursor: string | undefined }
  | { what: 'ended'; live: boolean; head: number }
  | { what: 'finishing'; head: number }
);

/** An event that was sent directly. */
export interface Direct {
  readonly k: number;
  live: boolean;
  /** The offset up to which everything had come to this node. */
  readonly head: number;
  /** Whether it was sent by a filter or in the middle of a write: then it may come before what was written earlier. */
  readonly isInside: boolean;
}

/** All that is known of one connection when it is over. */
export interface Account {
  readonly truth: Truth;
  readonly isDistant: boolean;
  readonly marks: readonly Mark[];
  readonly items: readonly ParsedEvent[];
  readonly directs: readonly Direct[];
  /** How many items the client got before it left; what is behind was written, and lost with the connection. */
  readonly received: number;
  /** Whether the stream was open when everything had come to rest. */
  readonly isWhole: boolean;
  /** Whether events were dropped for a slow reader. */
  readonly hasDropped: boolean;
  readonly byNumber: readonly PublishedEvent[];
}

/** What the stream owes of one channel. */
interface Owed {
  hold: Hold;
  /** The subscription that brought the channel, which has a say in all of it. */
  readonly origin: Hold;
  /** Everything at or below was written or filtered out, or was never owed. */
  have: number;
  /** Of the channel's events, the first beyond. */
  next: number;
  /** What was lost up to here has been told: at least, and at most, as far as a gap tells. */
  toldAtLeast: number;
  told: number;
  /** A gap that was false because a channel was forgotten was told up to here. */
  toldOfFloor: number;
  /** Whether an announcement is due because the cursor was of another log. */
  foreign: boolean;
  /** With a broker elsewhere it is not known when a subscription takes its place, only that it has when something of it is written. */
  armed: boolean;
  begun: boolean;
  /** A subscription of now may begin anywhere up to here. */
  fuzzyUpTo: number;
  armedAt: number;
  /** Whether two subscriptions name it that are under way or are being ended from inside, and it may begin with either of them. */
  isLoose: boolean;
}

/** @throws {Violation} */
export function audit(account: Account): void {
  const ledger = new Ledger(account);
  const { marks, items } = account;
  let next = 0;
  for (let index = 0; index <= items.length; index++) {
    while (
      marks[next] !== undefined &&
      marks[next]!.at !== undefined &&
      marks[next]!.at! <= index
    ) {
      ledger.mark(marks[next++]!, index);
    }
    if (index === account.received) ledger.left(index);
    const item = items[index];
    if (item !== undefined) ledger.item(item, index);
  }
  ledger.end();
}

class Ledger {
  readonly #account: Account;
  readonly #owed = new Map<ChannelName, Owed>();
  readonly #holds: Hold[] = [];
  readonly #gaps = new Map<Hold, 'own' | "another's">();
  readonly #begun = new Set<Hold>();
  // Those that something else was asked for before they were known to have started: a gap may have come after the start.
  readonly #disturbed = new Set<Hold>();
  // Of the channel without history: the first number that is owed, the newest one delivered.
  #liveOnly: { must: number; may: number } | undefined;
  #lastId = '';
  #lastOffset = -1;
  #stepsBack = 0;
  // Events of this turn that were owed when a later subscription came may be written before it takes its place.
  #grace: { hold: Hold; from: number; before: Hold[] | undefined } | undefined;
  // Direct events that have come, and the place of the newest that was not sent from inside.
  readonly #sentBefore = new Set<number>();
  #direct = -1;
  // Those that are ending from inside: they may have a say or not.
  readonly #leaving = new Set<Hold>();
  #hasEnded = false;
  // Set once the stream was closed for good.
  #finalHead: number | undefined;
  #asked = false;
  readonly #askedFor = new Set<Owed>();
  #askedBy: object | undefined;
  #askedChannels: readonly string[] = [];
  // Channels whose loss is told once more, because the subscription that was asked about it has ended.
  readonly #toldAgain = new Set<string>();
  // Whose onGap was asked since an event with a place in the log was delivered.
  readonly #askedBefore = new Set<FollowOptions>();
  #gap: { cursor: string; told: Set<string> } | undefined;
  #owesCheckpoint = false;
  #beginsWithCheckpoint = true;
  #history: string[] = [];

  constructor(account: Account) {
    this.#account = account;
  }

  mark(mark: Mark, index: number): void {
    this.#note(
      `— ${mark.what}`,
      'hold' in mark ? { channels: mark.hold.options.channels, start: mark.hold.start } : mark,
    );
    if (mark.what === 'called') this.#called(mark, index);
    else if (mark.what === 'started') this.#started(mark.hold, mark.recovered, index);
    else if (mark.what === 'leaving') this.#leave(mark.hold);
    else if (mark.what === 'left') this.#unfollow(mark);
    else if (mark.what === 'asked') this.#ask(mark);
    else if (mark.what === 'answered') this.#answer(mark.channels, mark.cursor);
    else if (mark.what === 'finishing') this.#finalHead = mark.head;
    else this.#close(mark);
  }

  item(item: ParsedEvent, index: number): void {
    this.#note(
      item.type,
      item.data.length > 200 ? `${item.data.slice(0, 12)}…` : item.data,
      item.lastEventId,
    );
    if (this.#hasEnded) this.#violation(`${item.type} came after the end of the stream`);
    if (item.type === 'direct') this.#sent(item);
    else if (item.type === 'sse:end') this.#finalEnd();
    else if (item.type === 'sse:gap') this.#gapEvent(item, index);
    else if (item.type === 'sse:checkpoint') this.#checkpoint(item);
    else this.#event(item, index);
  }

  /** The client has left here, and may come back with the last id it got: that must not lose anything. */
  left(index: number): void {
    if (this.#account.isWhole || this.#lastOffset < 0) return;
    for (const [channel, owed] of this.#owed) {
      if (!owed.armed || owed.armedAt >= index || this.#grace?.hold === owed.hold) continue;
      const missing = this.#missing(channel, owed, this.#lastOffset);
      if (missing !== undefined) {
        this.#violation(`a reconnect from ${this.#lastId} would lose ${describe(missing)}`);
      }
    }
  }

  end(): void {
    const { isWhole, hasDropped, directs, truth } = this.#account;
    if (!isWhole) return;
    for (const hold of this.#holds) {
      if (hold.headAtStart === undefined) {
        this.#violation(`subscribe to ${hold.options.channels.join()} has never resolved`);
      }
    }
    this.#expectAll(truth.head, 'everything has come to rest');
    if (!hasDropped && this.#sentBefore.size < directs.length) {
      this.#violation(`of ${directs.length} direct events ${this.#sentBefore.size} have arrived`);
    }
    if (this.#owesCheckpoint && this.#owed.size > 0) {
      this.#violation('no checkpoint was written after a gap');
    }
  }

  // What was asked for.

  #called({ hold, live, owedFrom }: Mark & { what: 'called' }, index: number): void {
    const { isDistant, truth } = this.#account;
    const before = [...this.#holds];
    const isFuzzy = hold.isStartUnsure || (hold.start === 'now' && (isDistant || hold.isInside));
    if (!hold.options.checkpoints) this.#beginsWithCheckpoint = false;
    for (const other of this.#holds) this.#disturbed.add(other);
    // Within an onGap a subscription does not wait for its start, or the one would wait for the other.
    if (this.#asked) this.#disturbed.add(hold);
    this.#holds.push(hold);
    // Also where nothing is followed any more: what it followed before is behind it.
    const isLater = this.#gaps.size > 0 || this.#lastOffset >= 0 || this.#owed.size > 0;
    for (const channel of hold.options.channels) {
      if (channel === 'x') {
        this.#liveOnly ??=
          isDistant || hold.isInside
            ? { must: Infinity, may: 0 }
            : { must: hold.numberAtCall, may: hold.numberAtCall };
        continue;
      }
      const have =
        typeof hold.start === 'number' ? hold.start : hold.start === 'now' ? hold.headAtCall : 0;
      const known = this.#owed.get(channel);
      if (known !== undefined) {
        if (hold.isInside && !known.armed) this.#mix(channel, known, hold, have);
        continue;
      }
      const isWhole = hold.start === 'whole';
      this.#owed.set(channel, {
        hold,
        origin: hold,
        have,
        next: truth.of(channel).findIndex((event) => event.offset > have),
        toldAtLeast: isWhole ? (hold.lossAtCall.lost[channel] ?? 0) : 0,
        // The log is read for the first time before it resolves, or, within an onGap, after that.
        told: isWhole
          ? lostIn(
              channel,
              this.#asked ? truth.now : truth.lossAt(hold.headAtStart ?? truth.head).most,
            )
          : 0,
        toldOfFloor: 0,
        foreign: hold.start === 'foreign' && !hold.isStartUnsure,
        armed: !isDistant && !hold.isInside,
        begun: false,
        fuzzyUpTo: isFuzzy ? (hold.headAtStart ?? Infinity) : -1,
        armedAt: index,
        isLoose: hold.isStartUnsure,
      });
    }
    if (!isLater) return;
    this.#stepsBack++;
    if (!isDistant && !hold.isInside) {
      this.#grace = { hold, from: owedFrom, before: live ? before : undefined };
    }
  }

  /** Two subscriptions that are under way name the channel: it begins where the one does or where the other does. */
  #mix(
    channel: ChannelName,
    owed: Owed,
    { start, headAtStart = Infinity }: Hold,
    have: number,
  ): void {
    owed.have = Math.min(owed.have, have);
    owed.next = this.#account.truth.of(channel).findIndex((event) => event.offset > owed.have);
    owed.fuzzyUpTo = Math.max(headAtStart, owed.hold.headAtStart ?? Infinity);
    owed.foreign &&= start === 'foreign';
    owed.armed = false;
    owed.isLoose = true;
  }

  #started(hold: Hold, recovered: boolean, index: number): void {
    if (!this.#holds.includes(hold)) return;
    this.#begun.add(hold);
    // Of channels that another subscription has brought before, the gap may be that one's.
    if (recovered && this.#gaps.get(hold) === 'own' && !this.#disturbed.has(hold)) {
      this.#violation('recovered is true, but a gap was told');
    }
    const isAlone = [...this.#owed].every(
      ([channel, owed]) => owed.hold === hold || !hold.options.channels.includes(channel),
    );
    const isUnexplained =
      !recovered && !this.#gaps.has(hold) && isAlone && !this.#disturbed.has(hold);
    if (isUnexplained) this.#violation('recovered is false, but no gap was told');
    for (const [channel, owed] of this.#owed) {
      owed.isLoose &&= this.#holds.some(
        (other) => other.options.channels.includes(channel) && !this.#begun.has(other),
      );
      if (owed.hold !== hold || owed.armed) continue;
      owed.armed = true;
      owed.armedAt = index;
    }
    if (!this.#disturbed.has(hold)) {
      const untold = [...this.#owed].find(([, owed]) => owed.hold === hold && owed.foreign);
      if (untold !== undefined) {
        this.#violation(`subscribe resolved before the gap of ${untold[0]} was told`);
      }
    }
  }

  /** A subscription is ended from inside: events that are being given may still come, and none is owed. */
  #leave(hold: Hold): void {
    this.#leaving.add(hold);
    const others = this.#holds.filter((other) => !this.#leaving.has(other));
    for (const [channel, owed] of this.#owed) {
      const heirs = others.filter(({ options }) => options.channels.includes(channel));
      owed.isLoose ||= owed.hold === hold && heirs.some((heir) => !this.#begun.has(heir));
      if (heirs.length === 0 || owed.isLoose) owed.next = -1;
    }
  }

  #close({ live, head }: Mark & { what: 'ended' }): void {
    if (live) this.#expectAll(head, 'the end of the stream', 'ends the stream');
    this.#hasEnded = true;
  }

  #unfollow({ hold, live, head, n }: Mark & { what: 'left' }): void {
    // The answer of a subscription that has ended is not waited for.
    if (this.#asked && this.#askedBy === hold.options) {
      this.#asked = false;
      this.#askedFor.clear();
      for (const channel of this.#askedChannels) this.#toldAgain.add(channel);
    }
    const gone = hold.options.channels.filter(
      (channel) =>
        !this.#holds.some((other) => other !== hold && other.options.channels.includes(channel)),
    );
    if (live) {
      for (const channel of gone) {
        const owed = this.#owed.get(channel);
        const missing =
          owed === undefined || !owed.armed ? undefined : this.#missing(channel, owed, head);
        if (missing !== undefined) {
          this.#violation(`${describe(missing)} was owed when the stream stopped following`);
        }
      }
    }
    if (gone.includes('x')) {
      if (live && !this.#account.isDistant) this.#expectLiveOnly(n);
      this.#liveOnly = undefined;
    }
    for (const channel of gone) this.#owed.delete(channel);
    this.#holds.splice(this.#holds.indexOf(hold), 1);
    this.#leaving.delete(hold);
    // The client need not know where it is in what it does not follow any more.
    if (this.#owed.size === 0) this.#owesCheckpoint = false;
    this.#grace = undefined;
    for (const other of this.#holds) this.#disturbed.add(other);
    for (const [channel, owed] of this.#owed) if (owed.hold === hold) this.#passOn(channel, owed);
  }

  /** Another subscription has the channel, too; from now on it alone. It may not have its place yet. */
  #passOn(channel: ChannelName, owed: Owed): void {
    const heir = this.#holds.find((hold) => hold.options.channels.includes(channel))!;
    const isPlaced = !this.#account.isDistant && !heir.isInside && !owed.isLoose;
    if (isPlaced || this.#begun.has(heir)) {
      owed.hold = heir;
      return;
    }
    const start =
      typeof heir.start === 'number' ? heir.start : heir.start === 'now' ? owed.have : 0;
    const have = Math.min(owed.have, start);
    const next = this.#account.truth.of(channel).findIndex((event) => event.offset > have);
    this.#owed.set(channel, {
      ...owed,
      hold: heir,
      have,
      next,
      foreign: false,
      armed: false,
      begun: false,
      fuzzyUpTo: heir.headAtStart ?? Infinity,
      isLoose: false,
    });
  }

  // What was told.

  #ask({ by, channels, cursor, loss, least, head }: Mark & { what: 'asked' }): void {
    if (this.#asked) this.#violation('onGap was called while it was being asked');
    const offset = this.#offsetOf(cursor);
    const around = this.#account.truth.lossAt(offset);
    if (this.#askedBefore.has(by)) this.#violation('onGap was called twice in a row');
    this.#askedBefore.add(by);
    // One gap may concern several subscriptions, which are asked one after the other.
    // Each channel is asked about once; the log may be at the same place when something more is cleared.
    const isSame =
      this.#gap?.cursor === cursor && !channels.some((channel) => this.#gap?.told.has(channel));
    if (!isSame) {
      if (!this.#account.isDistant && (offset < least || offset > head)) {
        this.#violation(`gap.cursor is ${offset} where the head is ${head}`);
      }
      this.#gap = { cursor, told: new Set() };
    }
    this.#tell(channels, loss === undefined || isSame ? around : { least: loss, most: loss });
    for (const channel of channels) this.#gap?.told.add(channel);
    this.#askedFor.clear();
    for (const channel of channels) {
      const owed = this.#owed.get(channel as ChannelName);
      if (owed !== undefined) this.#askedFor.add(owed);
    }
    this.#asked = true;
    this.#askedBy = by;
    this.#askedChannels = channels;
    this.#owesCheckpoint = true;
  }

  #answer(channels: readonly string[], cursor: string | undefined): void {
    this.#asked = false;
    if (cursor === undefined) return;
    const offset = this.#offsetOf(cursor);
    for (const channel of channels) {
      const owed = this.#owed.get(channel as ChannelName);
      // One that was subscribed to anew meanwhile has a start of its own.
      if (owed !== undefined && this.#askedFor.has(owed)) {
        this.#advance(channel as ChannelName, owed, offset);
      }
    }
  }

  #gapEvent({ data, lastEventId }: ParsedEvent, index: number): void {
    this.#expectSameId(lastEventId);
    this.#expectUnasked('sse:gap');
    const { channels, after, cursor } = JSON.parse(data) as {
      channels: string[];
      after: string;
      cursor: string;
    };
    const offset = this.#offsetOf(cursor);
    const owed = channels.map((channel) => this.#owed.get(channel as ChannelName));
    // One announcement may be of two losses, of which one has no cursor of ours.
    const mayBeForeign = [...this.#owed.values()].some(
      (one) => one.isLoose || one.hold.start === 'foreign',
    );
    if (after === '' ? !mayBeForeign : owed.some((one) => one?.foreign)) {
      this.#violation(`a gap after "${after}"`);
    }
    if (after !== '' && this.#offsetOf(after) < this.#lastOffset && this.#stepsBack === 0) {
      this.#violation(`a gap after ${after}, which the client is beyond`);
    }
    this.#grace = undefined;
    this.#tell(channels, this.#account.truth.lossAt(offset), index);
    this.#owesCheckpoint = true;
  }

  #tell(
    channels: readonly string[],
    { least, most }: { least: Loss; most: Loss },
    index = 0,
  ): void {
    if (channels.length === 0) this.#violation('a gap that names no channel');
    for (const channel of channels as readonly ChannelName[]) {
      const owed = this.#owed.get(channel);
      if (owed === undefined) this.#violation(`a gap in ${channel}, which is not followed`);
      const known = Math.max(owed.have, owed.toldAtLeast);
      const isLost = lostIn(channel, most) > known;
      const isFloor = (most.trimmed[channel] ?? 0) > Math.max(known, owed.toldOfFloor);
      if (!owed.foreign && !isLost && isFloor) owed.toldOfFloor = least.trimmed[channel] ?? 0;
      // Elsewhere, a subscription that has inherited the channel may begin with a gap of its own.
      const isInherited = !owed.armed && owed.hold.start === 'foreign';
      const isToldAgain = this.#toldAgain.delete(channel);
      if (!owed.foreign && !isLost && !isFloor && !isInherited && !owed.isLoose && !isToldAgain) {
        this.#violation(`a gap in ${channel}, which has lost nothing beyond ${known}`);
      }
      if (!owed.armed) owed.armedAt = index;
      owed.armed = true;
      owed.foreign = false;
      owed.toldAtLeast = Math.max(owed.toldAtLeast, lostIn(channel, least));
      owed.told = Math.max(owed.told, lostIn(channel, most));
    }
    for (const hold of this.#holds) {
      const lost = hold.options.channels.filter((channel) => channels.includes(channel));
      if (lost.some((channel) => this.#owed.get(channel)?.hold === hold)) {
        this.#gaps.set(hold, 'own');
      } else if (lost.length > 0 && !this.#gaps.has(hold)) this.#gaps.set(hold, "another's");
    }
  }

  // What was written.

  #checkpoint({ data, lastEventId }: ParsedEvent): void {
    const { cursor } = JSON.parse(data) as { cursor: string };
    if (cursor !== lastEventId) {
      this.#violation(`a checkpoint of ${cursor} with the id ${lastEventId}`);
    }
    const offset = this.#offsetOf(cursor);
    // While onGap is being asked, a subscription that comes later may take the ids back, but nothing goes on.
    if (this.#asked && offset > this.#lastOffset) this.#expectUnasked('a checkpoint');
    this.#owesCheckpoint &&= this.#asked;
    // One that steps back comes of a subscription in the middle of it.
    if (!this.#asked && offset >= this.#lastOffset) this.#gap = undefined;
    this.#grace = undefined;
    if (offset < this.#lastOffset && this.#stepsBack-- > 0) this.#lastOffset = offset;
    this.#reach(offset);
    this.#moveTo(cursor, offset);
  }

  #event(item: ParsedEvent, index: number): void {
    const event = this.#account.byNumber[Number.parseInt(item.data.slice(5), 10)];
    if (event === undefined) this.#violation(`nobody has published ${item.data.slice(0, 40)}`);
    if (item.type !== event.type || item.data !== event.data) {
      this.#violation(`${describe(event)} arrived garbled`);
    }
    if (event.channel === 'x') return this.#liveOnlyEvent(item, event);
    this.#expectUnasked('an event');
    if (this.#owesCheckpoint) {
      this.#violation('an event came before the checkpoint that belongs after a gap');
    }
    if (
      item.lastEventId !== `${event.epoch}.${event.offset}` ||
      event.epoch !== this.#account.truth.epoch
    ) {
      this.#violation(`${describe(event)} came with the id ${item.lastEventId}`);
    }
    const owed = this.#owed.get(event.channel);
    if (owed === undefined) this.#violation(`${describe(event)} came where it is not followed`);
    const isOwedOfTurn =
      this.#grace !== undefined &&
      event.offset > this.#grace.from &&
      event.offset <= this.#grace.hold.headAtCall &&
      owed.hold !== this.#grace.hold;
    if (!isOwedOfTurn) this.#grace = undefined;
    if (this.#verdict(event, this.#grace?.before) !== 'passes') {
      this.#violation(`${describe(event)} came past the filter`);
    }
    if (this.#lastId === '' && this.#beginsWithCheckpoint) {
      this.#violation('an event came before the first checkpoint');
    }
    if (event.offset <= owed.have && !owed.isLoose) {
      this.#violation(
        `${describe(event)} came twice or out of order: the stream has everything up to ${owed.have}`,
      );
    }
    if (!owed.armed) owed.armedAt = index;
    owed.armed = true;
    this.#askedBefore.clear();
    this.#gap = undefined;
    this.#reach(event.offset, event);
    owed.begun = true;
    this.#moveTo(item.lastEventId, event.offset);
  }

  #liveOnlyEvent({ lastEventId }: ParsedEvent, event: PublishedEvent): void {
    this.#expectSameId(lastEventId);
    if (this.#liveOnly === undefined || event.n < this.#liveOnly.may) {
      this.#violation(`${describe(event)} came where it is not followed, or twice`);
    }
    if (this.#verdict(event) !== 'passes') {
      this.#violation(`${describe(event)} came past the filter`);
    }
    if (this.#liveOnly.must !== Infinity) this.#expectLiveOnly(event.n);
    this.#liveOnly.may = event.n + 1;
    if (this.#liveOnly.must !== Infinity) this.#liveOnly.must = event.n + 1;
  }

  #sent({ data, lastEventId }: ParsedEvent): void {
    this.#expectSameId(lastEventId);
    const { directs, hasDropped } = this.#account;
    const k = Number.parseInt(data, 10);
    const direct = directs.find((one) => one.k === k);
    if (direct === undefined) this.#violation(`nobody has sent ${data.slice(0, 40)}`);
    if (this.#sentBefore.has(k)) this.#violation(`direct event ${k} came twice`);
    this.#sentBefore.add(k);
    if (direct.isInside) return;
    const place = directs.indexOf(direct);
    const between = directs
      .slice(this.#direct + 1, Math.max(0, place))
      .filter(({ isInside }) => !isInside);
    if (place < this.#direct || (between.length > 0 && !hasDropped)) {
      this.#violation(
        `direct event ${place} came where ${directs.indexOf(between[0] ?? direct)} was expected`,
      );
    }
    this.#direct = place;
    if (direct.live) this.#expectAll(direct.head, `direct event ${k}`);
  }

  /** The client does not come back: it has been given what was published before the stream was closed for good. */
  #finalEnd(): void {
    if (this.#finalHead === undefined) {
      this.#violation('sse:end came to a stream that was not closed for good');
    }
    this.#hasEnded = true;
    if (this.#account.hasDropped) return;
    for (const [channel, owed] of this.#owed) {
      // Where a subscription of now that is under way begins is not known.
      if (!owed.armed && typeof owed.hold.start !== 'number') continue;
      const missing = this.#missing(channel, owed, this.#finalHead);
      if (missing !== undefined && this.#verdict(missing) !== 'ends the stream') {
        this.#violation(`${describe(missing)} was owed before sse:end`);
      }
    }
  }

  // The id rule.

  /** An id is written: everything at or below it that the stream follows was written, filtered out or told. */
  #reach(offset: number, event?: PublishedEvent): void {
    for (const [channel, owed] of this.#owed) {
      if (!owed.armed || this.#grace?.hold === owed.hold) continue;
      if (owed.foreign && offset > owed.have) {
        this.#violation(`the id ${offset} came before the gap of ${channel} was told`);
      }
      const missing = this.#missing(channel, owed, offset, event);
      if (missing !== undefined) {
        this.#violation(`the id ${offset} came before ${describe(missing)}`);
      }
      this.#advance(channel, owed, offset);
    }
  }

  /** The first event up to the offset that is owed and was not accounted for. */
  #missing(
    channel: ChannelName,
    owed: Owed,
    offset: number,
    but?: PublishedEvent,
  ): PublishedEvent | undefined {
    const events = this.#account.truth.of(channel);
    if (owed.next === -1) return undefined;
    for (let index = owed.next; index < events.length && events[index]!.offset <= offset; index++) {
      const event = events[index]!;
      if (event === but || event.offset <= owed.told) continue;
      if (!owed.begun && event.offset <= owed.fuzzyUpTo) continue;
      if (channel === 'n' && index + 1 < events.length) continue;
      if (
        this.#verdict(
          event,
          this.#holds.filter(
            (hold) =>
              !this.#leaving.has(hold) &&
              (hold === owed.origin || event.offset > this.#placeOf(hold)),
          ),
        ) === 'is kept away'
      ) {
        continue;
      }
      return event;
    }
    return undefined;
  }

  #advance(channel: ChannelName, owed: Owed, offset: number): void {
    const events = this.#account.truth.of(channel);
    owed.have = Math.max(owed.have, offset);
    while (
      owed.next !== -1 &&
      owed.next < events.length &&
      events[owed.next]!.offset <= owed.have
    ) {
      owed.next++;
    }
  }

  #expectAll(offset: number, what: string, except?: Verdict): void {
    for (const [channel, owed] of this.#owed) {
      if (!owed.armed || owed.hold.headAtStart === undefined) continue;
      const missing = this.#missing(channel, owed, offset);
      if (missing !== undefined && this.#verdict(missing) !== except) {
        this.#violation(`${describe(missing)} was owed before ${what}`);
      }
    }
  }

  #expectLiveOnly(before: number): void {
    if (this.#account.hasDropped || this.#liveOnly === undefined) return;
    const { must } = this.#liveOnly;
    const { byNumber, truth } = this.#account;
    const owed = byNumber
      .slice(must, before)
      .filter((event) => event.channel === 'x' && event.epoch === truth.epoch);
    const missing = owed.find(
      (event) =>
        this.#verdict(
          event,
          this.#holds.filter(
            (hold) => !this.#leaving.has(hold) && !hold.isInside && event.n >= hold.numberAtCall,
          ),
        ) === 'passes',
    );
    if (missing !== undefined) {
      this.#violation(`${describe(missing)} of the channel without history was lost`);
    }
  }

  #moveTo(id: string, offset: number): void {
    if (offset < this.#lastOffset) {
      this.#violation(`the ids step back from ${this.#lastOffset} to ${offset}`);
    }
    this.#lastOffset = offset;
    this.#lastId = id;
  }

  /** The offset beyond which another subscription on a channel that is followed already has a say. */
  #placeOf(hold: Hold): number {
    return this.#account.isDistant || hold.isInside
      ? (hold.headAtStart ?? Infinity)
      : hold.headAtCall;
  }

  /** One subscription that lets it through is enough; where one of them ends the stream, it is not asked again. */
  #verdict(event: PublishedEvent, holds: readonly Hold[] = this.#holds): Verdict {
    const verdicts = new Set(
      holds
        .filter((hold) => hold.options.channels.includes(event.channel))
        .map((hold) => verdictOf(hold.options.filter, event.n)),
    );
    if (verdicts.has('passes')) return 'passes';
    return verdicts.has('ends the stream') ? 'ends the stream' : 'is kept away';
  }

  #expectUnasked(what: string): void {
    if (this.#asked) this.#violation(`${what} came while onGap was being asked`);
  }

  #expectSameId(id: string): void {
    if (id !== this.#lastId) {
      this.#violation(
        `an event without an id changed the last event id from ${this.#lastId} to ${id}`,
      );
    }
  }

  #offsetOf(cursor: string): number {
    const { epoch, head } = this.#account.truth;
    const offset = Number(cursor.slice(epoch.length + 1));
    if (
      cursor !== `${epoch}.${offset}` ||
      !Number.isInteger(offset) ||
      offset < 0 ||
      offset > head
    ) {
      this.#violation(`${cursor} is no id of ${epoch} up to ${head}`);
    }
    return offset;
  }

  #note(...what: unknown[]): void {
    this.#history.push(
      what.map((part) => (typeof part === 'string' ? part : JSON.stringify(part))).join(' '),
    );
  }

  #violation(what: string): never {
    throw new Violation(`${what}\n  ${this.#history.slice(-25).join('\n  ')}`);
  }
}

function lostIn(channel: ChannelName, { lost }: Loss): number {
  return lost[channel] ?? 0;
}

function describe({ channel, offset, n }: PublishedEvent): string {
  return `${channel}@${offset} (n = ${n})`;
}
