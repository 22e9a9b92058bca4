/**
 * The application of a schedule: what the application does on commands, and what its filters, its
 * `onGap` and its other callbacks do.
 */
import {
  SseError,
  type CloseReason,
  type EventStream,
  type Gap,
  type SnapshotRequest,
  type Subscription,
} from '../../src/index.ts';
import type { ChannelEvent } from '../../src/log/log-entry.ts';
import type { Direct, SubscriptionRecord } from './ledger.ts';
import type { Following, Link } from './link.ts';
import type { KeyedCall } from './registry.ts';
import type { ChannelName, Crowd, FollowOptions, LastEvent, Size } from './schedule.ts';
import type { Scene } from './scene.ts';
import { newestOf, offsetOf, sinceOf, startOf } from './starts.ts';
import { verdictOf, type PublishedEvent, type Publishing } from './truth.ts';
import { UserCode, type UserActions } from './user-code.ts';
import { CALL_BYTES, HIGH_WATER_MARK } from './work.ts';

const PADDING: Readonly<Record<Size, number>> = { small: 0, middle: 12_000, large: 70_000 };
const KEY_AGE_MS = 300_000;

// Maximum number of pending bytes with which `unsubscribe()` still writes all pending events.
const MAX_PENDING_BYTES = 1_048_576;

// Maximum number of turns that a member of a crowd waits for a published event.
const PENDING_TURNS = 20;

// Options of a subscription that user code makes from inside the library: it starts a little before
// the head.
const SUBSCRIBED_INSIDE = {
  since: 'cursor',
  back: 3,
  resume: false,
  filter: 'none',
  onGap: 'none',
  snapshot: 'none',
  checkpoints: true,
} as const;

// The last event of a channel that user code ends from inside the library.
const LAST_EVENT: LastEvent = { size: 'small', named: true };

const CROWD_CHANNELS: ChannelName[][] = [['a'], ['a', 'b'], ['a', 'x'], ['b', 'c'], ['x']];

export class Application implements UserActions {
  readonly userCode: UserCode = new UserCode(this);
  readonly published: PublishedEvent[] = [];
  readonly #scene: Scene;
  #directs = 0;
  // Bytes that were published in each of the last turns, newest first.
  readonly #publishedBytes = [0];
  // The head and the version of the log at the start of this turn of the event loop.
  #headOfTurn = 0;
  #versionOfTurn = 0;
  // The head of the log before user code published from inside the library, in the same call.
  #headBeforeActs: number | undefined;

  constructor(scene: Scene) {
    this.#scene = scene;
  }

  /** Notes the start of a turn of the event loop. */
  onTurnStart(): void {
    const { truth } = this.#scene.registry;
    this.#headOfTurn = truth.head;
    this.#versionOfTurn = truth.version;
  }

  /** Notes the end of a turn of the event loop. */
  onTurnEnd(): void {
    this.onTurnStart();
    this.#publishedBytes.unshift(0);
    this.#publishedBytes.splice(PENDING_TURNS);
  }

  // Publishing and subscribing.

  publishTo(channel: ChannelName, size: Size, named: boolean, key?: number): void {
    const { channels } = this.#scene.registry;
    const name = this.#keyOf(channel, key);
    const event = this.#knownCall(name)?.event ?? this.#makeEvent(channel, size, named);
    this.#call('publish', name, { channel, event, isEnd: false }, () =>
      named
        ? channels.publish(channel, event.data, { event: 'named', key: name })
        : channels.publish(channel, event.data, { key: name }),
    );
  }

  /** Ends a channel, with a last event or without one. */
  endChannel(channel: ChannelName, last: LastEvent | undefined, key?: number): void {
    const { channels } = this.#scene.registry;
    if (channel === 'x') {
      channels.end(channel).then(
        () => this.#scene.reportFault('a channel without history has ended'),
        (error: unknown) => this.#expectCode(error, 'ERR_SSE_OPTION'),
      );
      return;
    }
    const name = this.#keyOf(channel, key);
    const event =
      last && (this.#knownCall(name)?.event ?? this.#makeEvent(channel, last.size, last.named));
    this.#call('end', name, { channel, event, isEnd: true }, () =>
      last?.named === true
        ? channels.end(channel, event?.data, { event: 'named', key: name })
        : channels.end(channel, event?.data, { key: name }),
    );
    channels
      .state(channel)
      .catch((error: unknown) => this.#scene.reportFault(`state: ${String(error)}`));
  }

  /** With a remote broker the time of the lookup of a key is unknown, so no key is used. */
  #keyOf(channel: ChannelName, key: number | undefined): string | undefined {
    const { distant } = this.#scene.registry;
    return key === undefined || distant !== undefined ? undefined : `${channel} ${key}`;
  }

  /** @returns the call that was made before with the key; `undefined` if none is remembered */
  #knownCall(key: string | undefined): KeyedCall | undefined {
    const known = key === undefined ? undefined : this.#scene.registry.keys.get(key);
    return known !== undefined && known.until > this.#scene.clock.now ? known : undefined;
  }

  #makeEvent(channel: ChannelName, size: Size, named: boolean): PublishedEvent {
    const n = this.published.length;
    const padding = PADDING[size] * this.#scene.scale;
    const data = padding === 0 ? `{"n":${n}}` : `{"n":${n},"padding":"${'~'.repeat(padding)}"}`;
    const event: PublishedEvent = {
      n,
      channel,
      epoch: channel === 'x' ? this.#scene.registry.truth.epoch : '',
      offset: channel === 'x' ? 0 : -1,
      isEnd: false,
      type: named ? 'named' : 'message',
      data,
    };
    this.published.push(event);
    this.#publishedBytes[0]! += data.length;
    return event;
  }

  /** Makes a call of `publish()` or `end()`, and checks the result of the call. */
  #call(
    method: 'publish' | 'end',
    key: string | undefined,
    init: Omit<Publishing, 'knownId' | 'result'>,
    call: () => Promise<{ id: string }>,
  ): void {
    const { publishings, keys } = this.#scene.registry;
    const { channel, event } = init;
    const knownId = this.#knownCall(key)?.id;
    const publishing: Publishing = { ...init, knownId, result: undefined };
    publishings.push(publishing);
    const promise = call();
    // With a broker in this process, the call has reached the log.
    const { result } = publishing;
    if (key !== undefined && result?.isAppended === true) {
      keys.set(key, { event, id: result.id, until: this.#scene.clock.now + KEY_AGE_MS });
    }
    promise.then(
      ({ id }) => {
        const expected = publishing.result?.id;
        return (
          id === expected ||
          this.#scene.reportFault(`${method} ${channel}: the id is ${id}, expected ${expected}`)
        );
      },
      (error: unknown) => {
        this.#scene.refused++;
        const isExpected = publishing.result !== undefined && publishing.result.id === undefined;
        if (isExpected) this.#expectCode(error, 'ERR_SSE_ENDED');
        else this.#scene.reportFault(`${method} ${channel}: ${String(error)}`);
      },
    );
  }

  #expectCode(error: unknown, code: string): void {
    const isExpected =
      error instanceof SseError &&
      error.code === code &&
      (code !== 'ERR_SSE_ENDED' || error.delivery === 'none');
    if (isExpected) return;
    this.#scene.reportFault(`got ${String(error)}, expected an error with the code ${code}`);
  }

  follow(link: Link, options: FollowOptions): void {
    const { stream, registry } = link;
    const { truth } = registry;
    if (stream.readyState === 2) {
      stream.subscribe(options.channels).then(
        ({ recovered, cursor }) =>
          (recovered || cursor !== '') &&
          this.#scene.reportFault('subscribe on an ended stream returned an active subscription'),
        (error: unknown) => this.#scene.reportFault(`subscribe after the end: ${String(error)}`),
      );
      return;
    }
    const since = sinceOf(options, truth);
    const hasId = link.lastEventId !== '' && options.resume;
    const cursor = hasId ? link.lastEventId : since;
    const hasSnapshot = options.snapshot !== 'none' && !options.channels.includes('x');
    const record: SubscriptionRecord = {
      options,
      start: startOf(cursor, truth),
      newestAtCall: newestOf(options, truth),
      newestAtStart: undefined,
      hasSnapshotAtStart: hasSnapshot && !hasId,
      headAtCall: truth.head,
      publishedAtCall: this.published.length,
      versionAtCall: truth.version,
      headAtStart: undefined,
      lossAtCall: truth.now,
      isInside: link.insideDepth > 0,
      isDuringAnswer: link.isAnswering,
      isStartUncertain: false,
    };
    link.isTouched ||= link.following.length > 0;
    const { acts } = this.userCode;
    const isDeferred = link.insideDepth > 0;
    if (!isDeferred) link.versionOfChange = truth.version;
    const following: Following = {
      record,
      subscription: undefined,
      isDeferred,
      hasLeft: false,
      isLeaving: false,
    };
    link.following.push(following);
    if (!isDeferred) link.markLeft();
    if (
      options.filter === 'throws' ||
      options.filter === 'promises' ||
      (hasSnapshot
        ? options.snapshot === 'throws'
        : ['throws', 'other cursor', 'beyond'].includes(options.onGap))
    ) {
      link.mayFail = true;
    }
    const mark = link.mark({
      kind: 'called',
      record,
      live: this.#isLive(link),
      owedFrom: this.#isPendingOfOneTurn ? this.#headOfTurn : 0,
    });
    const { resume, filter, onGap, checkpoints, act } = options;
    const promise = this.#scene.work.subscribe(() =>
      stream.subscribe(options.channels, {
        since,
        resume,
        checkpoints,
        filter:
          filter === 'none' && act === undefined
            ? undefined
            : (event) => this.#filter(link, options, event),
        ...(hasSnapshot
          ? { snapshot: (_, request) => this.#snapshot(link, options, request) }
          : onGap === 'none'
            ? {}
            : { onGap: (_, gap) => this.#onGap(link, options, gap) }),
      }),
    );
    // A broker in this process answers inside the call.
    if (registry.distant === undefined) this.#expectNoContent(link, record, record.versionAtCall);
    if (mark.kind === 'called') mark.live &&= hasWrittenAll(link);
    record.isInside ||= this.userCode.acts > acts;
    // The log may have reached the offset that the client sent.
    record.isStartUncertain = record.start !== startOf(cursor, truth);
    void this.#note(link, following, promise);
  }

  async #note(link: Link, following: Following, promise: Promise<Subscription>): Promise<void> {
    const { record } = following;
    try {
      const subscription = await promise;
      following.subscription = subscription;
      if (link.registry.distant !== undefined) {
        this.#expectNoContent(link, record, link.registry.truth.version);
      }
      record.headAtStart = link.registry.truth.head;
      record.newestAtStart = newestOf(record.options, link.registry.truth);
      if (!link.isOpen || link.stream.readyState !== 1) return;
      link.mark({ kind: 'started', record, recovered: subscription.recovered });
    } catch (error) {
      this.#scene.reportFault(`subscribe: ${String(error)}`);
    }
  }

  /**
   * A request whose id has nothing but ends behind it is answered 204, and no other request is.
   * @param until the last version of the log that the answer may be based on
   */
  #expectNoContent(
    link: Link,
    { options, versionAtCall }: SubscriptionRecord,
    until: number,
  ): void {
    const { stream, registry, following, lastEventId } = link;
    const { truth } = registry;
    const { channels } = options;
    if (following.length > 1 || this.#scene.isOver) return;
    const offset = options.resume ? offsetOf(lastEventId, truth) : undefined;
    const isOver = new Set(
      truth.versions
        .slice(versionAtCall, until + 1)
        .map(
          (_, index) =>
            offset !== undefined &&
            truth.hasOnlyEndsBehind(channels, offset, versionAtCall + index),
        ),
    );
    if (stream.res.statusCode === 204) {
      this.#scene.noContent++;
      if (isOver.has(true)) return;
      this.#scene.reportFault(`204, but more than ends follow ${lastEventId}`);
    } else if (link.isOpen && !link.isTouched && !isOver.has(false)) {
      this.#scene.reportFault(`no 204, but only ends follow ${lastEventId}`);
    }
  }

  #filter(link: Link, options: FollowOptions, event: ChannelEvent): boolean {
    const { filter, channels } = options;
    const n = Number.parseInt(event.data.slice(5), 10);
    const known = this.published[n];
    const id = known?.channel === 'x' ? '' : `${known?.epoch}.${known?.offset}`;
    if (
      known === undefined ||
      event.channel !== known.channel ||
      event.id !== id ||
      event.event !== known.type ||
      (event.json() as { n: number }).n !== n
    ) {
      this.#scene.reportFault(
        `a filter got ${event.id} of ${event.channel} as ${event.data.slice(0, 20)}`,
      );
    }
    if (!channels.includes(event.channel as ChannelName)) {
      this.#scene.reportFault(`a filter of ${channels.join()} got an event of ${event.channel}`);
    }
    this.userCode.filter(link, options);
    const verdict = verdictOf(filter, n);
    if (verdict !== 'ends the stream') return verdict === 'passes';
    if (filter === 'throws') throw new Error('the filter throws');
    return Promise.resolve(true) as unknown as boolean;
  }

  /** Notes that the library has called `onGap` or a `snapshot`. */
  #noteQuestion(
    link: Link,
    options: FollowOptions,
    { channels, cursor }: Gap,
    isStart: boolean,
  ): void {
    const { truth, distant } = link.registry;
    const isOver =
      link.stream.readyState === 2 ||
      link.following.some(({ record, hasLeft }) => hasLeft && record.options === options);
    if (isOver) {
      this.#scene.reportFault('onGap was called after the end of its subscription or its stream');
    }
    if (!link.isOpen) return;
    link.mark({
      kind: 'asked',
      by: options,
      isStart,
      channels,
      cursor,
      loss: distant === undefined && this.#headBeforeActs === undefined ? truth.now : undefined,
      least: this.#headBeforeActs ?? truth.head,
      head: truth.head,
    });
    this.send(link);
  }

  /** Notes the answer of `onGap` or of a `snapshot`. */
  #noteAnswer(link: Link, { channels }: Gap, cursor: string | undefined): void {
    this.send(link);
    link.mark({ kind: 'answered', channels, cursor });
    link.isAnswering = true;
    process.nextTick(() => {
      link.isAnswering = false;
    });
  }

  #snapshot(
    link: Link,
    options: FollowOptions,
    request: SnapshotRequest,
  ): undefined | Promise<undefined> {
    const { snapshot } = options;
    const { reason, lastEventId, channels, cursor } = request;
    const isStart = reason === 'start';
    if (isStart && lastEventId !== '') {
      this.#scene.reportFault(`a snapshot at the start got the id ${lastEventId}`);
    }
    this.#noteQuestion(link, options, request, isStart);
    if (!link.isOpen) return undefined;
    const publish = (): void => {
      this.#noteHead();
      this.publishTo(channels[0] as ChannelName, 'small', false);
    };
    if (snapshot === 'throws') throw new Error('the snapshot throws');
    if (snapshot === 'publishes' || snapshot === 'slow publishes') publish();
    if (snapshot === 'unsubscribes') this.unsubscribe(link, options);
    const finish = (): undefined => {
      if (snapshot === 'slow publishes' && !this.isOver(link)) publish();
      this.#noteAnswer(link, request, cursor);
    };
    if (snapshot !== 'slow' && snapshot !== 'slow publishes') return finish();
    return new Promise((resolve) => {
      link.pendingAnswers.push(() => resolve(finish()));
    });
  }

  #onGap(
    link: Link,
    options: FollowOptions,
    gap: Gap,
  ): string | undefined | Promise<string | undefined> {
    const { truth } = link.registry;
    const { channels, cursor } = gap;
    const { onGap } = options;
    this.#noteQuestion(link, options, gap, false);
    if (!link.isOpen) return undefined;
    if (onGap === 'ends the channel') {
      this.#noteHead();
      this.endChannel(channels[0] as ChannelName, undefined);
    }
    if (onGap === 'throws') throw new Error('onGap throws');
    if (onGap === 'other cursor') return 'elsewhere.3';
    if (onGap === 'beyond') {
      link.mustFail = 'onGap returned a cursor beyond the head';
      return `${truth.epoch}.${truth.head + 1_000}`;
    }
    const answer = onGap === 'cursor' || onGap === 'slow cursor' ? cursor : undefined;
    const finish = (): string | undefined => {
      this.#noteAnswer(link, gap, answer);
      return answer;
    };
    if (onGap === 'cursor' || onGap === 'nothing' || onGap === 'ends the channel') return finish();
    return new Promise((resolve) => {
      link.pendingAnswers.push(() => resolve(finish()));
    });
  }

  unfollow(link: Link, following: Following): void {
    if (following.hasLeft) return;
    const { record, subscription } = following;
    // The application can end a subscription only after `subscribe()` resolved.
    if (subscription === undefined) return;
    following.hasLeft = true;
    // If the answer of its `onGap` is not used yet, it will not be used.
    if (record.options.onGap === 'beyond') link.mustFail = undefined;
    const isInside = link.insideDepth > 0;
    if (isInside) link.mark({ kind: 'leaving', record });
    link.versionOfChange = link.registry.truth.version;
    const [live, head, n] = [
      this.#isLive(link) && this.#pendingBytes <= MAX_PENDING_BYTES,
      this.#receivedOffset,
      this.published.length,
    ];
    following.isLeaving = !isInside;
    this.#scene.work.call('unsubscribe', CALL_BYTES.unsubscribe, () => subscription.unsubscribe());
    following.isLeaving = false;
    // The stream had ended before, or a filter ended the stream during the call.
    if (link.stream.readyState === 2) return;
    // From inside a delivery the call takes effect after the events of the delivery have been
    // written, before the next microtask.
    if (isInside) {
      link.pendingLeft.push({ kind: 'left', record, live: false, head, n });
      queueMicrotask(() => link.markLeft());
    } else link.mark({ kind: 'left', record, live: live && hasWrittenAll(link), head, n });
  }

  // Calls on a stream, on a command or from inside the library.

  send(link: Link, padding = ''): void {
    if (link.stream.readyState !== 1 || link.isFinishing) return;
    const isInside = link.insideDepth > 0;
    const direct: Direct = {
      k: this.#directs++,
      live: !isInside && this.#isLive(link),
      head: this.#receivedOffset,
      isInside,
    };
    link.directs.push(direct);
    const pendingBytes = this.#pendingBytes;
    const most = this.#followsEphemeral(link) ? CALL_BYTES.sendBesideEphemeral : CALL_BYTES.send;
    this.#scene.work.call('send', most, () => link.stream.send(`${direct.k} ${padding}`, 'direct'));
    // The pending events of the turn made the stream slow.
    if (this.#scene.registry.channels.stats().behind > 0) direct.live = false;
    // The stream had more pending than one flush writes. It would have read the rest from the log,
    // but user code ended it meanwhile.
    if (link.stream.readyState !== 1 && pendingBytes > HIGH_WATER_MARK) direct.live = false;
  }

  comment(link: Link): void {
    link.isTouched = true;
    const most = this.#followsEphemeral(link) ? CALL_BYTES.sendBesideEphemeral : CALL_BYTES.send;
    this.#scene.work.call('comment', most, () => link.stream.comment('a comment'));
  }

  close(link: Link): void {
    if (link.stream.readyState === 2) return;
    link.isTouched = true;
    const before = {
      live: link.insideDepth === 0 && this.#isLive(link) && this.#pendingBytes <= HIGH_WATER_MARK,
      head: this.#receivedOffset,
    };
    const { acts } = this.userCode;
    this.#scene.work.call('close', CALL_BYTES.close, () => link.stream.close());
    // User code may have ended the stream earlier, during the events that were written first.
    const live = before.live && hasWrittenAll(link) && this.userCode.acts === acts;
    link.mark({ kind: 'ended', live, head: before.head });
  }

  closeForGood(link: Link): void {
    if (link.stream.readyState !== 1) return;
    link.isFinishing = true;
    link.mark({ kind: 'finishing', head: this.#receivedOffset });
    link.stream.close({ final: true });
  }

  publish(): void {
    this.#noteHead();
    this.publishTo('a', 'small', false);
  }

  endFollowed({ following }: Link): void {
    const channel = following
      .filter(({ hasLeft }) => !hasLeft)
      .flatMap(({ record }) => record.options.channels)
      .find((name) => name !== 'x');
    if (channel === undefined) return;
    this.#noteHead();
    const hasLast = this.userCode.acts % 2 === 0;
    this.endChannel(channel, hasLast ? LAST_EVENT : undefined);
  }

  /** Notes the head of the log before user code publishes from inside the library. */
  #noteHead(): void {
    if (this.#headBeforeActs !== undefined) return;
    this.#headBeforeActs = this.#scene.registry.truth.head;
    queueMicrotask(() => {
      this.#headBeforeActs = undefined;
    });
  }

  subscribe(link: Link): void {
    this.follow(link, { ...SUBSCRIBED_INSIDE, channels: ['b', 'c'], act: undefined });
  }

  unsubscribe(link: Link, options: FollowOptions): void {
    const following = link.following.find(({ record }) => record.options === options);
    if (following !== undefined) this.unfollow(link, following);
  }

  sendToOthers(link: Link): void {
    for (const { link: other } of this.#scene.clients) {
      if (other !== undefined && other !== link && other.registry === this.#scene.registry) {
        this.send(other);
      }
    }
  }

  /** Notes the end of a stream. Called at once when the stream ends. */
  noteEnd(stream: EventStream, reason: CloseReason): void {
    const link = this.linkOf(stream);
    if (link === undefined) return;
    const { truth, distant } = link.registry;
    link.closing = {
      reason,
      channels: link.following
        .filter((each) => !each.hasLeft && !isStarting(each))
        .flatMap(({ record }) => record.options.channels),
      perhaps: link.following
        .filter((each) => each.isLeaving || (!each.hasLeft && isStarting(each)))
        .flatMap(({ record }) => record.options.channels),
      // A broker in this process answers in the turn in which the log is read.
      sinceVersion: Math.max(link.versionOfChange, distant === undefined ? this.#versionOfTurn : 0),
      version: truth.version,
    };
  }

  linkOf(stream: EventStream): Link | undefined {
    return (
      this.#scene.links.find((link) => link.stream === stream) ??
      this.#scene.crowd.find((link) => link.stream === stream)
    );
  }

  isOver(link: Link): boolean {
    return this.#scene.isOver || link.registry !== this.#scene.registry || link.isFinishing;
  }

  #followsEphemeral({ following }: Link): boolean {
    return following.some(
      ({ record, hasLeft }) => !hasLeft && record.options.channels.includes('x'),
    );
  }

  /**
   * Whether all pending events were published in this turn. In a crowd the streams wait for their
   * slice, and events that user code publishes from inside the fan-out wait for the next round.
   */
  get #isPendingOfOneTurn(): boolean {
    return this.#scene.crowd.length === 0 && this.userCode.acts === 0;
  }

  /** Maximum number of bytes that may be pending for a stream. */
  get #pendingBytes(): number {
    const turns = this.#isPendingOfOneTurn ? 2 : this.#publishedBytes.length;
    return this.#publishedBytes.slice(0, turns).reduce((sum, bytes) => sum + bytes, 0);
  }

  /**
   * Whether the stream is live and its reader is not slow. If so, the order of the calls is the
   * order of the written bytes.
   */
  #isLive({ stream }: Link): boolean {
    return (
      stream.readyState === 1 &&
      this.#scene.registry.channels.stats().behind === 0 &&
      stream.bufferedAmount <= HIGH_WATER_MARK
    );
  }

  /** All events up to this offset have arrived at this node. */
  get #receivedOffset(): number {
    const { distant, truth } = this.#scene.registry;
    return distant?.receivedOffset ?? truth.head;
  }

  /**
   * Announces the end of a stream to the others, as a chat does, in the same turn and call in which
   * the library detects the end.
   */
  announceEnd(closed: Link): void {
    if (this.#scene.isOver || closed.registry !== this.#scene.registry) return;
    this.#noteHead();
    this.publishTo('a', 'small', true);
    this.sendToOthers(closed);
  }

  joinCrowd(link: Link, crowd: Crowd, member: number): void {
    const { stream } = link;
    const channels: ChannelName[] =
      crowd === 'mixed' ? CROWD_CHANNELS[member % CROWD_CHANNELS.length]! : ['a'];
    link.crowdChannels = channels;
    const follow = {
      ...SUBSCRIBED_INSIDE,
      channels,
      act: { kind: 'comments' as const, at: member % 3 },
    };
    const filter = (event: ChannelEvent): boolean => this.#filter(link, follow, event);
    stream
      .subscribe(channels, {
        since: crowd === 'returning' ? 'start' : 'now',
        checkpoints: false,
        filter: crowd === 'mixed' && member % 4 === 0 ? filter : undefined,
      })
      .catch((error: unknown) => this.#scene.reportFault(`subscribe: ${String(error)}`));
  }
}

/**
 * Whether the stream wrote all pending events of the turn: no filter ended the stream before, and
 * the events did not make its reader slow.
 */
function hasWrittenAll({ mayFail, stream }: Link): boolean {
  return !mayFail && stream.bufferedAmount <= HIGH_WATER_MARK;
}

/** Whether a call from inside a delivery may have no effect, because the stream ends before it. */
function isStarting({ isDeferred, subscription }: Following): boolean {
  return isDeferred && subscription === undefined;
}
