/**
 * Checks one connection against the contract of channels (`docs/channels.md`). The ledger knows for
 * each channel which events the stream owes to its client. It reads the written items one after the
 * other and compares each with the calls of the application.
 */
import type { CloseReason } from '../../src/index.ts';
import type { ParsedEvent } from '../support/strict-parser.ts';
import type { ChannelName, FollowOptions } from './schedule.ts';
import type { Start } from './starts.ts';
import {
  Violation,
  verdictOf,
  type LogItem,
  type Loss,
  type PublishedEvent,
  type Truth,
  type Verdict,
} from './truth.ts';

/** Record of one call of `subscribe`. */
export interface SubscriptionRecord {
  readonly options: FollowOptions;
  /** The start of the subscription: after an offset, or as the `since` option says. */
  readonly start: Start;
  /**
   * For each channel, the offset after which the newest events of `since: { last }` come: at the
   * time of the call, and after the call resolved.
   */
  readonly newestAtCall: ReadonlyMap<string, number>;
  newestAtStart: ReadonlyMap<string, number> | undefined;
  /** Whether the `snapshot` must be called at the start: the client brings no id. */
  readonly hasSnapshotAtStart: boolean;
  /**
   * The head of the log at the time of the call; `headAtStart` is the head after the call resolved.
   */
  readonly headAtCall: number;
  /** Number of events that had been published at the time of the call. */
  readonly publishedAtCall: number;
  /** The version of the log at the time of the call. */
  readonly versionAtCall: number;
  headAtStart: number | undefined;
  lossAtCall: Loss;
  /**
   * Whether the call was made by a filter or in the middle of a write, or whether user code did
   * something else during the call. Such a subscription takes effect after the events of the
   * current delivery have been written, so its exact start is unknown, as with a remote broker.
   */
  isInside: boolean;
  /** Whether an `onGap` had answered, but the library had not yet got the answer. */
  readonly isDuringAnswer: boolean;
  /** Whether an event that user code published during the call may have changed the start. */
  isStartUncertain: boolean;
}

/** A call or a callback, with the number of items that had been written before (`at`). */
export type Mark = { at: number | undefined } & (
  | { kind: 'called'; record: SubscriptionRecord; live: boolean; owedFrom: number }
  | { kind: 'started'; record: SubscriptionRecord; recovered: boolean }
  | { kind: 'leaving'; record: SubscriptionRecord }
  | { kind: 'left'; record: SubscriptionRecord; live: boolean; head: number; n: number }
  | {
      kind: 'asked';
      by: FollowOptions;
      /** Whether a `snapshot` is called at the start of a subscription, without a loss. */
      isStart: boolean;
      channels: readonly string[];
      cursor: string;
      loss: Loss | undefined;
      /** The lowest possible head of the log when the gap was found, and the head now. */
      least: number;
      head: number;
    }
  | { kind: 'answered'; channels: readonly string[]; cursor: string | undefined }
  | { kind: 'ended'; live: boolean; head: number }
  | { kind: 'finishing'; head: number }
);

/** How a stream ended. */
export interface Closing {
  readonly reason: CloseReason;
  /** The channels that the stream followed. */
  readonly channels: readonly ChannelName[];
  /** The channels of subscriptions that were beginning or being ended: followed, or not. */
  readonly perhaps: readonly ChannelName[];
  /** The first version of the log that may have been the reason, and the version at the end. */
  readonly sinceVersion: number;
  readonly version: number;
}

/** An event that the application sent with `stream.send()`. */
export interface Direct {
  readonly k: number;
  live: boolean;
  /** All events up to this offset had arrived at this node. */
  readonly head: number;
  /**
   * Whether the event was sent by a filter or in the middle of a write. Such an event may come
   * before events that were written earlier.
   */
  readonly isInside: boolean;
}

/** Everything that is recorded about one connection, for the check after its end. */
export interface ConnectionRecord {
  readonly truth: Truth;
  readonly isDistant: boolean;
  readonly marks: readonly Mark[];
  readonly items: readonly ParsedEvent[];
  readonly directs: readonly Direct[];
  /**
   * Number of items that the client received. Later items were written and lost with the
   * connection.
   */
  readonly receivedCount: number;
  /** Whether the stream was still open when all work had been done. */
  readonly isComplete: boolean;
  /** Whether the stream dropped events because its client was slow. */
  readonly hasDropped: boolean;
  readonly byNumber: readonly PublishedEvent[];
  /** How the stream ended; `undefined` if it has not ended. */
  readonly closing: Closing | undefined;
  /** Whether the client disconnected during the schedule. */
  readonly wasDropped: boolean;
}

/** The state of one channel: the events that the stream owes to its client. */
interface Owed {
  record: SubscriptionRecord;
  /** The subscription that added the channel. Its filter applies to all events of the channel. */
  readonly origin: SubscriptionRecord;
  /** All events up to this offset were written, filtered out, or never owed. */
  doneUpTo: number;
  /** Index of the first event of the channel beyond `have`. */
  nextIndex: number;
  /**
   * Losses up to this offset have been reported, as far as reported gaps allow to tell: at least up
   * to `reportedAtLeast`, at most up to `reportedAtMost`.
   */
  reportedAtLeast: number;
  reportedAtMost: number;
  /** A false gap, caused by a channel that the log forgot, was reported up to this offset. */
  falseGapUpTo: number;
  /** Whether a gap must be reported because the cursor belongs to another log. */
  isForeign: boolean;
  /**
   * Whether the subscription has certainly taken effect. With a remote broker this is known only
   * after the first item of the channel was written.
   */
  isActive: boolean;
  hasEvents: boolean;
  /** A subscription with `since: 'now'` may start at any offset up to this one. */
  uncertainUpTo: number;
  activeAt: number;
  /**
   * Whether two subscriptions to the channel are pending, or are being ended by user code inside a
   * delivery. The channel may then start with either of them.
   */
  hasUncertainStart: boolean;
}

/**
 * Checks one connection.
 * @throws {Violation} if an item or a missing item breaks a rule
 */
export function audit(account: ConnectionRecord): void {
  const ledger = new Ledger(account);
  const { marks, items } = account;
  let next = 0;
  for (let index = 0; index <= items.length; index++) {
    while (
      marks[next] !== undefined &&
      marks[next]!.at !== undefined &&
      marks[next]!.at! <= index
    ) {
      ledger.onMark(marks[next++]!, index);
    }
    if (index === account.receivedCount) ledger.onDisconnect(index);
    const item = items[index];
    if (item !== undefined) ledger.onItem(item, index);
  }
  ledger.finish();
}

class Ledger {
  readonly #connection: ConnectionRecord;
  readonly #owed = new Map<ChannelName, Owed>();
  readonly #records: SubscriptionRecord[] = [];
  readonly #gaps = new Map<SubscriptionRecord, 'own' | "another's">();
  readonly #startedRecords = new Set<SubscriptionRecord>();
  // Subscriptions that were followed by another call before they had certainly started. A gap after
  // the start is then no violation.
  readonly #uncertainRecords = new Set<SubscriptionRecord>();
  // For the channel without history: the number of the first event that must come, and of the first
  // event that may come.
  #ephemeral: { must: number; may: number } | undefined;
  #lastId = '';
  #lastOffset = -1;
  #stepsBack = 0;
  // Events that were published in this turn before a later subscription may be written before the
  // later subscription takes effect.
  #grace:
    | { record: SubscriptionRecord; from: number; before: SubscriptionRecord[] | undefined }
    | undefined;
  // Numbers of the direct events that have arrived, and the index of the newest that was not sent
  // from inside a delivery.
  readonly #arrivedDirects = new Set<number>();
  #lastDirectIndex = -1;
  // Subscriptions that user code is ending from inside a delivery. Their filters may or may not
  // apply.
  readonly #endingRecords = new Set<SubscriptionRecord>();
  #hasEnded = false;
  // The head of the log when the stream was closed with `{ final: true }`.
  #finalHead: number | undefined;
  #isOnGapPending = false;
  readonly #owedOfOnGap = new Set<Owed>();
  #onGapOwner: object | undefined;
  #onGapChannels: readonly string[] = [];
  // The subscription at whose start a `snapshot` is running, and all that have called theirs.
  #snapshotOf: SubscriptionRecord | undefined;
  readonly #recordsWithSnapshot = new Set<SubscriptionRecord>();
  // Channels whose loss is reported again because the subscription with the pending `onGap` has
  // ended.
  readonly #reportedAgain = new Set<string>();
  // Subscriptions whose `onGap` was called since the last event with an offset.
  readonly #recentOnGapOwners = new Set<FollowOptions>();
  #gap: { cursor: string; channels: Set<string> } | undefined;
  #owesCheckpoint = false;
  #beginsWithCheckpoint = true;
  #history: string[] = [];

  constructor(account: ConnectionRecord) {
    this.#connection = account;
  }

  onMark(mark: Mark, index: number): void {
    this.#note(
      `— ${mark.kind}`,
      'record' in mark
        ? { channels: mark.record.options.channels, start: mark.record.start }
        : mark,
    );
    if (mark.kind === 'called') this.#onCalled(mark, index);
    else if (mark.kind === 'started') this.#onStarted(mark.record, mark.recovered, index);
    else if (mark.kind === 'leaving') this.#onLeaving(mark.record);
    else if (mark.kind === 'left') this.#onLeft(mark);
    else if (mark.kind === 'asked') this.#onAsked(mark);
    else if (mark.kind === 'answered') this.#onAnswered(mark.channels, mark.cursor);
    else if (mark.kind === 'finishing') this.#finalHead = mark.head;
    else this.#onEnded(mark);
  }

  onItem(item: ParsedEvent, index: number): void {
    this.#note(
      item.type,
      item.data.length > 200 ? `${item.data.slice(0, 12)}…` : item.data,
      item.lastEventId,
    );
    if (this.#hasEnded) this.#violation(`${item.type} came after the end of the stream`);
    if (item.type === 'direct') this.#onDirect(item);
    else if (item.type === 'sse:end') this.#onFinalEnd();
    else if (item.type === 'sse:gap') this.#onGapEvent(item, index);
    else if (item.type === 'sse:checkpoint') this.#onCheckpoint(item);
    else this.#onEvent(item, index);
  }

  /**
   * The client disconnected here. A reconnect with the last id that the client received must not
   * lose an event.
   */
  onDisconnect(index: number): void {
    if (this.#connection.isComplete || this.#lastOffset < 0) return;
    for (const [channel, owed] of this.#owed) {
      if (!owed.isActive || owed.activeAt >= index || this.#grace?.record === owed.record) continue;
      const missing = this.#missing(channel, owed, this.#lastOffset);
      if (missing !== undefined) {
        this.#violation(`a reconnect from ${this.#lastId} would lose ${describe(missing)}`);
      }
    }
  }

  finish(): void {
    const { isComplete: isWhole, hasDropped, directs, truth, closing } = this.#connection;
    if (closing?.reason === 'final' && !this.#connection.wasDropped && !this.#hasEnded) {
      this.#violation('the stream ended with the reason final, but without sse:end');
    }
    if (!isWhole) return;
    for (const record of this.#records) {
      if (record.headAtStart === undefined) {
        this.#violation(`subscribe to ${record.options.channels.join()} did not resolve`);
      }
    }
    this.#expectAll(truth.head, 'the end of all work');
    if (!hasDropped && this.#arrivedDirects.size < directs.length) {
      this.#violation(
        `only ${this.#arrivedDirects.size} of ${directs.length} direct events arrived`,
      );
    }
    if (this.#owesCheckpoint && this.#owed.size > 0) {
      this.#violation('no checkpoint was written after a gap');
    }
  }

  // Calls of the application.

  #onCalled({ record, live, owedFrom }: Mark & { kind: 'called' }, index: number): void {
    const { isDistant, truth } = this.#connection;
    const before = [...this.#records];
    const isUncertain =
      record.isStartUncertain ||
      ((record.start === 'now' || record.start === 'newest') && (isDistant || record.isInside));
    if (!record.options.checkpoints) this.#beginsWithCheckpoint = false;
    for (const other of this.#records) this.#uncertainRecords.add(other);
    // A subscription made inside `onGap` does not wait for its start, because that would deadlock.
    const isInsideOnGap = this.#isOnGapPending || record.isDuringAnswer;
    if (isInsideOnGap) this.#uncertainRecords.add(record);
    this.#records.push(record);
    // This holds also if the stream follows no channel at the moment: it followed channels before.
    const isLater = this.#gaps.size > 0 || this.#lastOffset >= 0 || this.#owed.size > 0;
    for (const channel of record.options.channels) {
      if (channel === 'x') {
        this.#ephemeral ??=
          isDistant || record.isInside
            ? { must: Infinity, may: 0 }
            : { must: record.publishedAtCall, may: record.publishedAtCall };
        continue;
      }
      const have = startIn(channel, record, record.headAtCall);
      const known = this.#owed.get(channel);
      if (known !== undefined) {
        const isPending = record.isInside || known.record.isInside;
        if (isPending && !known.isActive) this.#mergeStarts(channel, known, record, have);
        continue;
      }
      const isWhole = record.start === 'whole' || record.start === 'newest';
      this.#owed.set(channel, {
        record,
        origin: record,
        doneUpTo: have,
        nextIndex: truth.itemsOf(channel).findIndex((item) => item.offset > have),
        reportedAtLeast: isWhole ? (record.lossAtCall.lost[channel] ?? 0) : 0,
        // The log is first read before the call resolves, or after that if the call is inside
        // `onGap`.
        reportedAtMost: isWhole
          ? lostIn(
              channel,
              isInsideOnGap ? truth.now : truth.lossAt(record.headAtStart ?? truth.head).most,
            )
          : 0,
        falseGapUpTo: 0,
        isForeign: record.start === 'foreign' && !record.isStartUncertain,
        isActive: !isDistant && !record.isInside,
        hasEvents: false,
        uncertainUpTo: isUncertain ? latestStartIn(channel, record) : -1,
        activeAt: index,
        hasUncertainStart: record.isStartUncertain,
      });
    }
    if (!isLater) return;
    this.#stepsBack++;
    if (!isDistant && !record.isInside) {
      this.#grace = { record, from: owedFrom, before: live ? before : undefined };
    }
  }

  /** Two pending subscriptions name the channel. The channel starts where either of them starts. */
  #mergeStarts(
    channel: ChannelName,
    owed: Owed,
    { start, headAtStart = Infinity }: SubscriptionRecord,
    have: number,
  ): void {
    owed.doneUpTo = Math.min(owed.doneUpTo, have);
    owed.nextIndex = this.#connection.truth
      .itemsOf(channel)
      .findIndex((item) => item.offset > owed.doneUpTo);
    owed.uncertainUpTo = Math.max(headAtStart, owed.record.headAtStart ?? Infinity);
    owed.isForeign &&= start === 'foreign';
    owed.isActive = false;
    owed.hasUncertainStart = true;
  }

  #onStarted(record: SubscriptionRecord, recovered: boolean, index: number): void {
    if (!this.#records.includes(record)) return;
    this.#startedRecords.add(record);
    // If another subscription added the channel before, the gap may belong to that subscription.
    if (recovered && this.#gaps.get(record) === 'own' && !this.#uncertainRecords.has(record)) {
      this.#violation('recovered is true, but a gap was reported');
    }
    const isAlone = [...this.#owed].every(
      ([channel, owed]) => owed.record === record || !record.options.channels.includes(channel),
    );
    const isUnexplained =
      !recovered && !this.#gaps.has(record) && isAlone && !this.#uncertainRecords.has(record);
    if (isUnexplained) this.#violation('recovered is false, but no gap was reported');
    this.#expectSnapshot(record);
    for (const [channel, owed] of this.#owed) {
      owed.hasUncertainStart &&= this.#records.some(
        (other) => other.options.channels.includes(channel) && !this.#startedRecords.has(other),
      );
      if (owed.record !== record || owed.isActive) continue;
      owed.isActive = true;
      owed.activeAt = index;
    }
    if (!this.#uncertainRecords.has(record)) {
      const unreported = [...this.#owed].find(
        ([, owed]) => owed.record === record && owed.isForeign,
      );
      if (unreported !== undefined) {
        this.#violation(`subscribe resolved before the gap of ${unreported[0]} was reported`);
      }
    }
  }

  /** The `snapshot` must have been called before a subscription starts that has added a channel. */
  #expectSnapshot(record: SubscriptionRecord): void {
    if (!record.hasSnapshotAtStart || this.#recordsWithSnapshot.has(record)) return;
    if (this.#uncertainRecords.has(record)) return;
    const added = [...this.#owed].find(
      ([, owed]) => owed.origin === record && !owed.hasUncertainStart,
    );
    if (added !== undefined) this.#violation(`no snapshot at the start of ${added[0]}`);
  }

  /**
   * User code ends a subscription from inside a delivery. Events of the delivery may still come,
   * and none must come.
   */
  #onLeaving(record: SubscriptionRecord): void {
    this.#endingRecords.add(record);
    const others = this.#records.filter((other) => !this.#endingRecords.has(other));
    for (const [channel, owed] of this.#owed) {
      const heirs = others.filter(({ options }) => options.channels.includes(channel));
      owed.hasUncertainStart ||=
        owed.record === record && heirs.some((heir) => !this.#startedRecords.has(heir));
      if (heirs.length === 0 || owed.hasUncertainStart) owed.nextIndex = -1;
    }
  }

  #onEnded({ live, head }: Mark & { kind: 'ended' }): void {
    if (live) this.#expectAll(head, 'the end of the stream', 'ends the stream');
    this.#hasEnded = true;
  }

  #onLeft({ record, live, head, n }: Mark & { kind: 'left' }): void {
    // The library does not wait for the `onGap` of a subscription that has ended.
    if (this.#isOnGapPending && this.#onGapOwner === record.options) {
      this.#isOnGapPending = false;
      this.#owedOfOnGap.clear();
      this.#snapshotOf = undefined;
      for (const channel of this.#onGapChannels) this.#reportedAgain.add(channel);
    }
    const removedChannels = record.options.channels.filter(
      (channel) =>
        !this.#records.some(
          (other) => other !== record && other.options.channels.includes(channel),
        ),
    );
    if (live) {
      for (const channel of removedChannels) {
        const owed = this.#owed.get(channel);
        const missing =
          owed === undefined || !owed.isActive ? undefined : this.#missing(channel, owed, head);
        if (missing !== undefined) {
          this.#violation(
            `${describe(missing)} was not written before the end of its subscription`,
          );
        }
      }
    }
    if (removedChannels.includes('x')) {
      if (live && !this.#connection.isDistant) this.#expectEphemeral(n);
      this.#ephemeral = undefined;
    }
    for (const channel of removedChannels) this.#owed.delete(channel);
    this.#records.splice(this.#records.indexOf(record), 1);
    this.#endingRecords.delete(record);
    // No checkpoint is needed for channels that the stream does not follow any more.
    if (this.#owed.size === 0) this.#owesCheckpoint = false;
    this.#grace = undefined;
    for (const other of this.#records) this.#uncertainRecords.add(other);
    for (const [channel, owed] of this.#owed) {
      if (owed.record === record) this.#passToHeir(channel, owed);
    }
  }

  /**
   * Passes the channel to another subscription that names it. That subscription may not have taken
   * effect yet.
   */
  #passToHeir(channel: ChannelName, owed: Owed): void {
    const heir = this.#records.find((record) => record.options.channels.includes(channel))!;
    const isPlaced = !this.#connection.isDistant && !heir.isInside && !owed.hasUncertainStart;
    if (isPlaced || this.#startedRecords.has(heir)) {
      owed.record = heir;
      return;
    }
    const have = Math.min(owed.doneUpTo, startIn(channel, heir, owed.doneUpTo));
    const next = this.#connection.truth.itemsOf(channel).findIndex((item) => item.offset > have);
    this.#owed.set(channel, {
      ...owed,
      record: heir,
      doneUpTo: have,
      nextIndex: next,
      // The heir may start before losses that were reported to its predecessor.
      reportedAtLeast: 0,
      isForeign: false,
      isActive: false,
      hasEvents: false,
      uncertainUpTo: heir.headAtStart ?? Infinity,
      hasUncertainStart: false,
    });
  }

  // Gaps.

  #onAsked(mark: Mark & { kind: 'asked' }): void {
    const { by, channels, cursor, loss, least, head } = mark;
    if (this.#isOnGapPending) this.#violation('onGap was called while onGap was pending');
    const offset = this.#offsetOf(cursor);
    if (mark.isStart) {
      this.#onSnapshotAtStart(mark, offset);
      return;
    }
    const around = this.#connection.truth.lossAt(offset);
    if (this.#recentOnGapOwners.has(by)) this.#violation('onGap was called twice in a row');
    this.#recentOnGapOwners.add(by);
    // One gap may concern several subscriptions. Their `onGap` functions are called one after the
    // other, and each channel is reported once. After another `clear()` the log may be at the same
    // head.
    const isSame =
      this.#gap?.cursor === cursor && !channels.some((channel) => this.#gap?.channels.has(channel));
    if (!isSame) {
      if (!this.#connection.isDistant && (offset < least || offset > head)) {
        this.#violation(`gap.cursor is ${offset}, but the head is ${head}`);
      }
      this.#gap = { cursor, channels: new Set() };
    }
    this.#onGap(channels, loss === undefined || isSame ? around : { least: loss, most: loss });
    for (const channel of channels) this.#gap?.channels.add(channel);
    this.#onQuestion(by, channels);
    this.#onGapChannels = channels;
  }

  /** A callback of the application is running. No event may be written before its answer. */
  #onQuestion(by: FollowOptions, channels: readonly string[]): void {
    this.#owedOfOnGap.clear();
    for (const channel of channels) {
      const owed = this.#owed.get(channel as ChannelName);
      if (owed !== undefined) this.#owedOfOnGap.add(owed);
    }
    this.#isOnGapPending = true;
    this.#onGapOwner = by;
    this.#owesCheckpoint = true;
  }

  /**
   * A `snapshot` was called at the start of a subscription: once, before all events of the channels
   * that the subscription has added to the stream.
   */
  #onSnapshotAtStart(mark: Mark & { kind: 'asked' }, offset: number): void {
    const { by, channels, least, head } = mark;
    const record = this.#records.find(({ options }) => options === by);
    if (record?.hasSnapshotAtStart !== true || this.#recordsWithSnapshot.has(record)) {
      this.#violation(`unexpected snapshot at the start of ${channels.join()}`);
    }
    this.#recordsWithSnapshot.add(record);
    // Other subscriptions may be asked about a gap afterwards, with the same cursor.
    const isFirstQuestion = this.#gap?.cursor !== mark.cursor;
    if (isFirstQuestion) this.#gap = { cursor: mark.cursor, channels: new Set() };
    // A snapshot that was asked for before, with the same cursor, may have published.
    const isTooSmall = isFirstQuestion && offset < least;
    if (!this.#connection.isDistant && (isTooSmall || offset > head)) {
      this.#violation(`the cursor of the snapshot is ${offset}, but the head is ${head}`);
    }
    if (channels.join() !== record.options.channels.join()) {
      this.#violation(`the snapshot of ${record.options.channels.join()} got ${channels.join()}`);
    }
    const added = [...this.#owed].filter(([, owed]) => this.#isAddedBy(owed, record) !== false);
    if (added.length === 0) this.#violation('a snapshot, but the stream follows all channels');
    const begun = added.find(
      ([, { hasEvents, hasUncertainStart }]) => hasEvents && !hasUncertainStart,
    );
    if (begun !== undefined && !this.#uncertainRecords.has(record)) {
      this.#violation(`snapshot of ${begun[0]}, whose events the stream receives already`);
    }
    this.#onQuestion(by, channels);
    this.#onGapChannels = [];
    this.#snapshotOf = record;
  }

  /**
   * A `snapshot` at the start is complete. The events of the channels that the subscription added
   * go on after the cursor, and all of them must come. No event of other channels is passed over.
   */
  #onSnapshotSent(record: SubscriptionRecord, offset: number): void {
    for (const [channel, owed] of this.#owed) {
      const isAdded = this.#isAddedBy(owed, record);
      if (isAdded === false || !this.#owedOfOnGap.has(owed)) continue;
      if (isAdded === 'perhaps') {
        owed.hasEvents = false;
        owed.uncertainUpTo = Math.max(owed.uncertainUpTo, offset);
        // The snapshot may have replaced the lost events.
        if (owed.isForeign) this.#reportedAgain.add(channel);
        owed.isForeign = false;
        continue;
      }
      this.#advance(channel, owed, offset);
      owed.isForeign = false;
      owed.isActive = true;
      owed.uncertainUpTo = -1;
      owed.reportedAtMost = Math.min(owed.reportedAtMost, offset);
    }
  }

  /** Whether the subscription has added the channel to the stream. */
  #isAddedBy(owed: Owed, record: SubscriptionRecord): boolean | 'perhaps' {
    if (owed.hasUncertainStart) return 'perhaps';
    if (owed.origin === record) return true;
    const isInherited = owed.record === record && !this.#records.includes(owed.origin);
    return isInherited && !owed.isActive ? 'perhaps' : false;
  }

  #onAnswered(channels: readonly string[], cursor: string | undefined): void {
    this.#isOnGapPending = false;
    const snapshotOf = this.#snapshotOf;
    this.#snapshotOf = undefined;
    if (snapshotOf !== undefined && cursor !== undefined) {
      this.#onSnapshotSent(snapshotOf, this.#offsetOf(cursor));
      return;
    }
    if (cursor === undefined) return;
    const offset = this.#offsetOf(cursor);
    for (const channel of channels) {
      const owed = this.#owed.get(channel as ChannelName);
      // A channel that was subscribed again meanwhile has a new start.
      if (owed !== undefined && this.#owedOfOnGap.has(owed)) {
        this.#advance(channel as ChannelName, owed, offset);
      }
    }
  }

  #onGapEvent({ data, lastEventId }: ParsedEvent, index: number): void {
    this.#expectSameId(lastEventId);
    this.#expectNoOnGapPending('sse:gap');
    const { channels, after, cursor } = JSON.parse(data) as {
      channels: string[];
      after: string;
      cursor: string;
    };
    const offset = this.#offsetOf(cursor);
    const owed = channels.map((channel) => this.#owed.get(channel as ChannelName));
    // One `sse:gap` may report two losses, one of them for a cursor of another log.
    const mayBeForeign = [...this.#owed.values()].some(
      ({ hasUncertainStart, isForeign, record }) =>
        hasUncertainStart || isForeign || record.start === 'foreign',
    );
    if (after === '' ? !mayBeForeign : owed.some((channel) => channel?.isForeign)) {
      this.#violation(`unexpected gap after "${after}"`);
    }
    if (after !== '' && this.#offsetOf(after) < this.#lastOffset && this.#stepsBack === 0) {
      this.#violation(`gap after ${after}, but the client is at a later id`);
    }
    this.#grace = undefined;
    this.#onGap(channels, this.#connection.truth.lossAt(offset), index);
    this.#owesCheckpoint = true;
  }

  #onGap(
    channels: readonly string[],
    { least, most }: { least: Loss; most: Loss },
    index = 0,
  ): void {
    if (channels.length === 0) this.#violation('a gap names no channel');
    for (const channel of channels as readonly ChannelName[]) {
      const owed = this.#owed.get(channel);
      if (owed === undefined) this.#violation(`gap in ${channel}, which is not followed`);
      const known = Math.max(owed.doneUpTo, owed.reportedAtLeast);
      const isLost = lostIn(channel, most) > known;
      const isFloor = (most.trimmed[channel] ?? 0) > Math.max(known, owed.falseGapUpTo);
      if (!owed.isForeign && !isLost && isFloor) owed.falseGapUpTo = least.trimmed[channel] ?? 0;
      // With a remote broker, a subscription that inherited the channel may start with a gap.
      const isInherited = !owed.isActive && owed.record.start === 'foreign';
      const isReportedAgain = this.#reportedAgain.delete(channel);
      if (
        !owed.isForeign &&
        !isLost &&
        !isFloor &&
        !isInherited &&
        !owed.hasUncertainStart &&
        !isReportedAgain
      ) {
        this.#violation(`gap in ${channel}, but the channel lost nothing beyond ${known}`);
      }
      if (!owed.isActive) owed.activeAt = index;
      owed.isActive = true;
      owed.isForeign = false;
      owed.reportedAtLeast = Math.max(owed.reportedAtLeast, lostIn(channel, least));
      owed.reportedAtMost = Math.max(owed.reportedAtMost, lostIn(channel, most));
    }
    for (const record of this.#records) {
      const lost = record.options.channels.filter((channel) => channels.includes(channel));
      if (lost.some((channel) => this.#owed.get(channel)?.record === record)) {
        this.#gaps.set(record, 'own');
      } else if (lost.length > 0 && !this.#gaps.has(record)) this.#gaps.set(record, "another's");
    }
  }

  // Written items.

  #onCheckpoint({ data, lastEventId }: ParsedEvent): void {
    const { cursor } = JSON.parse(data) as { cursor: string };
    if (cursor !== lastEventId) {
      this.#violation(`checkpoint with cursor ${cursor} has the id ${lastEventId}`);
    }
    const offset = this.#offsetOf(cursor);
    // During `onGap` a later subscription may take the ids back, but no id may go forward.
    if (this.#isOnGapPending && offset > this.#lastOffset) {
      this.#expectNoOnGapPending('a checkpoint');
    }
    this.#owesCheckpoint &&= this.#isOnGapPending;
    // A checkpoint that steps back belongs to a subscription made during the gap.
    if (!this.#isOnGapPending && offset >= this.#lastOffset) this.#gap = undefined;
    this.#grace = undefined;
    if (offset < this.#lastOffset && this.#stepsBack-- > 0) this.#lastOffset = offset;
    this.#onId(offset);
    this.#moveTo(cursor, offset);
  }

  #onEvent(item: ParsedEvent, index: number): void {
    const event = this.#connection.byNumber[Number.parseInt(item.data.slice(5), 10)];
    if (event === undefined) this.#violation(`no publish has the data ${item.data.slice(0, 40)}`);
    if (item.type !== event.type || item.data !== event.data) {
      this.#violation(`${describe(event)} arrived with another type or other data`);
    }
    if (event.channel === 'x') return this.#onEphemeralEvent(item, event);
    this.#expectNoOnGapPending('an event');
    if (this.#owesCheckpoint) {
      this.#violation('an event came before the checkpoint that must follow a gap');
    }
    if (
      item.lastEventId !== `${event.epoch}.${event.offset}` ||
      event.epoch !== this.#connection.truth.epoch
    ) {
      this.#violation(`${describe(event)} came with the id ${item.lastEventId}`);
    }
    const owed = this.#owed.get(event.channel);
    if (owed === undefined) this.#violation(`${describe(event)} came, but is not followed`);
    const isOwedOfTurn =
      this.#grace !== undefined &&
      event.offset > this.#grace.from &&
      event.offset <= this.#grace.record.headAtCall &&
      owed.record !== this.#grace.record;
    if (!isOwedOfTurn) this.#grace = undefined;
    if (this.#verdict(event, this.#grace?.before) !== 'passes') {
      this.#violation(`${describe(event)} came, but a filter rejects the event`);
    }
    if (this.#lastId === '' && this.#beginsWithCheckpoint) {
      this.#violation('an event came before the first checkpoint');
    }
    if (event.offset <= owed.doneUpTo && !owed.hasUncertainStart) {
      this.#violation(
        `${describe(event)} came twice or out of order: ${owed.doneUpTo} was reached before`,
      );
    }
    if (
      owed.origin.hasSnapshotAtStart &&
      this.#records.includes(owed.origin) &&
      !this.#recordsWithSnapshot.has(owed.origin) &&
      !owed.hasUncertainStart
    ) {
      this.#violation(`${describe(event)} came before the snapshot of its channel`);
    }
    if (!owed.isActive) owed.activeAt = index;
    owed.isActive = true;
    this.#recentOnGapOwners.clear();
    this.#gap = undefined;
    this.#onId(event.offset, event);
    owed.hasEvents = true;
    this.#moveTo(item.lastEventId, event.offset);
  }

  #onEphemeralEvent({ lastEventId }: ParsedEvent, event: PublishedEvent): void {
    this.#expectSameId(lastEventId);
    if (this.#ephemeral === undefined || event.n < this.#ephemeral.may) {
      this.#violation(`${describe(event)} came twice, or the stream does not follow the channel`);
    }
    if (this.#verdict(event) !== 'passes') {
      this.#violation(`${describe(event)} came, but a filter rejects the event`);
    }
    if (this.#ephemeral.must !== Infinity) this.#expectEphemeral(event.n);
    this.#ephemeral.may = event.n + 1;
    if (this.#ephemeral.must !== Infinity) this.#ephemeral.must = event.n + 1;
  }

  #onDirect({ data, lastEventId }: ParsedEvent): void {
    this.#expectSameId(lastEventId);
    const { directs, hasDropped } = this.#connection;
    const k = Number.parseInt(data, 10);
    const direct = directs.find((each) => each.k === k);
    if (direct === undefined) this.#violation(`no send has the data ${data.slice(0, 40)}`);
    if (this.#arrivedDirects.has(k)) this.#violation(`direct event ${k} came twice`);
    this.#arrivedDirects.add(k);
    if (direct.isInside) return;
    const place = directs.indexOf(direct);
    const between = directs
      .slice(this.#lastDirectIndex + 1, Math.max(0, place))
      .filter(({ isInside }) => !isInside);
    if (place < this.#lastDirectIndex || (between.length > 0 && !hasDropped)) {
      this.#violation(
        `direct event ${place} came, expected ${directs.indexOf(between[0] ?? direct)}`,
      );
    }
    this.#lastDirectIndex = place;
    if (direct.live) this.#expectAll(direct.head, `direct event ${k}`);
  }

  /**
   * After `sse:end` the client does not reconnect. If the application has called
   * `close({ final: true })`, everything that was published before must have been written.
   * Otherwise all channels of the stream must have ended.
   */
  #onFinalEnd(): void {
    const { closing, hasDropped, directs, marks } = this.#connection;
    // A wrapped `write` that gets `sse:end` may close the stream.
    const isClosed = marks.some(({ kind }) => kind === 'ended');
    if (closing === undefined || (closing.reason !== 'final' && !isClosed)) {
      this.#violation(`sse:end was written, but the stream ended with '${closing?.reason}'`);
    }
    this.#hasEnded = true;
    if (this.#finalHead === undefined) this.#expectChannelsEnded(closing);
    else if (!hasDropped) this.#expectAllBeforeEnd([...this.#owed.keys()], this.#finalHead);
    const lost = directs.find(({ k, isInside }) => !isInside && !this.#arrivedDirects.has(k));
    if (lost !== undefined && !hasDropped) {
      this.#violation(`direct event ${lost.k} was not written before sse:end`);
    }
  }

  /**
   * All channels of the stream must have ended at the same time, and the stream must have received
   * everything up to then.
   */
  #expectChannelsEnded({ channels, perhaps, sinceVersion, version }: Closing): void {
    this.#expectNoOnGapPending('sse:end');
    const whenEnded = this.#connection.truth.versions
      .slice(sinceVersion, version + 1)
      .find(
        ({ ended }) =>
          channels.every((channel) => ended.has(channel)) &&
          [...channels, ...perhaps].some((channel) => ended.has(channel)),
      );
    if (whenEnded === undefined) {
      this.#violation(`sse:end was written, but ${channels.join()} have not all ended`);
    }
    for (const channel of channels) {
      if (this.#owed.get(channel)?.isForeign === true) {
        this.#violation(`sse:end came before the gap of ${channel} was reported`);
      }
    }
    if (this.#owesCheckpoint) {
      this.#violation('no checkpoint was written between a gap and sse:end');
    }
    this.#expectAllBeforeEnd(channels, whenEnded.head);
  }

  #expectAllBeforeEnd(channels: readonly ChannelName[], head: number): void {
    for (const channel of channels) {
      const owed = this.#owed.get(channel);
      // The start of a pending subscription with `since: 'now'` is unknown.
      if (owed === undefined || (!owed.isActive && typeof owed.record.start !== 'number')) continue;
      const missing = this.#missing(channel, owed, head);
      if (missing !== undefined && this.#verdict(missing) !== 'ends the stream') {
        this.#violation(`${describe(missing)} was not written before sse:end`);
      }
    }
  }

  // The id rule.

  /**
   * An id was written. All events up to this id that the stream follows must have been written,
   * filtered out or reported as lost.
   */
  #onId(offset: number, event?: PublishedEvent): void {
    for (const [channel, owed] of this.#owed) {
      if (!owed.isActive || this.#grace?.record === owed.record) continue;
      if (owed.isForeign && offset > owed.doneUpTo) {
        this.#violation(`the id ${offset} came before the gap of ${channel} was reported`);
      }
      const missing = this.#missing(channel, owed, offset, event);
      if (missing !== undefined) {
        this.#violation(`the id ${offset} came before ${describe(missing)}`);
      }
      this.#advance(channel, owed, offset);
    }
  }

  /** The first event up to the offset that must come and has not come. */
  #missing(
    channel: ChannelName,
    owed: Owed,
    offset: number,
    but?: PublishedEvent,
  ): PublishedEvent | undefined {
    const items = this.#connection.truth.itemsOf(channel);
    if (owed.nextIndex === -1) return undefined;
    const newestEvent = items.findLast(isEvent);
    for (
      let index = owed.nextIndex;
      index < items.length && items[index]!.offset <= offset;
      index++
    ) {
      const event = items[index]!;
      // Nothing is written for an end.
      if (!isEvent(event) || event === but || event.offset <= owed.reportedAtMost) continue;
      if (!owed.hasEvents && event.offset <= owed.uncertainUpTo) continue;
      if (channel === 'n' && event !== newestEvent) continue;
      if (
        this.#verdict(
          event,
          this.#records.filter(
            (record) =>
              !this.#endingRecords.has(record) &&
              (record === owed.origin || event.offset > this.#effectiveOffset(record)),
          ),
        ) === 'is rejected'
      ) {
        continue;
      }
      return event;
    }
    return undefined;
  }

  #advance(channel: ChannelName, owed: Owed, offset: number): void {
    const items = this.#connection.truth.itemsOf(channel);
    owed.doneUpTo = Math.max(owed.doneUpTo, offset);
    while (
      owed.nextIndex !== -1 &&
      owed.nextIndex < items.length &&
      items[owed.nextIndex]!.offset <= owed.doneUpTo
    ) {
      owed.nextIndex++;
    }
  }

  #expectAll(offset: number, description: string, except?: Verdict): void {
    for (const [channel, owed] of this.#owed) {
      if (!owed.isActive || owed.record.headAtStart === undefined) continue;
      const missing = this.#missing(channel, owed, offset);
      if (missing !== undefined && this.#verdict(missing) !== except) {
        this.#violation(`${describe(missing)} was not written before ${description}`);
      }
    }
  }

  #expectEphemeral(before: number): void {
    if (this.#connection.hasDropped || this.#ephemeral === undefined) return;
    const { must } = this.#ephemeral;
    const { byNumber, truth } = this.#connection;
    const owed = byNumber
      .slice(must, before)
      .filter((event) => event.channel === 'x' && event.epoch === truth.epoch);
    const missing = owed.find(
      (event) =>
        this.#verdict(
          event,
          this.#records.filter(
            (record) =>
              !this.#endingRecords.has(record) &&
              !record.isInside &&
              event.n >= record.publishedAtCall,
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

  /** The offset from which the filter of another subscription to the same channel applies. */
  #effectiveOffset(record: SubscriptionRecord): number {
    return this.#connection.isDistant || record.isInside
      ? (record.headAtStart ?? Infinity)
      : record.headAtCall;
  }

  /**
   * The verdict of all filters. An event passes if one filter lets the event pass. A filter that
   * ends the stream is not called again.
   */
  #verdict(event: PublishedEvent, records: readonly SubscriptionRecord[] = this.#records): Verdict {
    const verdicts = new Set(
      records
        .filter((record) => record.options.channels.includes(event.channel))
        .map((record) => verdictOf(record.options.filter, event.n)),
    );
    if (verdicts.has('passes')) return 'passes';
    return verdicts.has('ends the stream') ? 'ends the stream' : 'is rejected';
  }

  #expectNoOnGapPending(description: string): void {
    if (this.#isOnGapPending) this.#violation(`${description} came while onGap was pending`);
  }

  #expectSameId(id: string): void {
    if (id !== this.#lastId) {
      this.#violation(
        `an event without an id changed the last event id from ${this.#lastId} to ${id}`,
      );
    }
  }

  #offsetOf(cursor: string): number {
    const { epoch, head } = this.#connection.truth;
    const offset = Number(cursor.slice(epoch.length + 1));
    if (
      cursor !== `${epoch}.${offset}` ||
      !Number.isInteger(offset) ||
      offset < 0 ||
      offset > head
    ) {
      this.#violation(`${cursor} is not an id of log ${epoch} up to ${head}`);
    }
    return offset;
  }

  #note(...description: unknown[]): void {
    this.#history.push(
      description.map((part) => (typeof part === 'string' ? part : JSON.stringify(part))).join(' '),
    );
  }

  #violation(description: string): never {
    throw new Violation(`${description}\n  ${this.#history.slice(-25).join('\n  ')}`);
  }
}

function isEvent(item: LogItem): item is PublishedEvent {
  return !item.isEnd;
}

/** @param now the start of a subscription with `since: 'now'` */
function startIn(
  channel: ChannelName,
  { start, newestAtCall }: SubscriptionRecord,
  now: number,
): number {
  if (typeof start === 'number') return start;
  if (start === 'now') return now;
  return start === 'newest' ? (newestAtCall.get(channel) ?? 0) : 0;
}

/** The latest start of a channel, if the exact moment of the start is unknown. */
function latestStartIn(
  channel: ChannelName,
  { start, newestAtStart, headAtStart }: SubscriptionRecord,
): number {
  return (start === 'newest' ? newestAtStart?.get(channel) : headAtStart) ?? Infinity;
}

function lostIn(channel: ChannelName, { lost }: Loss): number {
  return lost[channel] ?? 0;
}

function describe({ channel, offset, n }: PublishedEvent): string {
  return `${channel}@${offset} (n = ${n})`;
}
