/** The application of a schedule: what it does in commands, and what its filters, its `onGap` and its other user code do. */
import type { EventStream, Gap, Subscription } from '../../src/index.ts';
import type { ChannelEvent } from '../../src/log/log-entry.ts';
import type { Direct, Hold } from './ledger.ts';
import type { Following, Link } from './link.ts';
import type { ChannelName, Crowd, FollowOptions, Size } from './schedule.ts';
import type { Scene } from './scene.ts';
import { type Truth, verdictOf, type PublishedEvent } from './truth.ts';
import { UserCode, type Hands } from './user-code.ts';
import { CALL_BYTES, WRITE_MARK } from './work.ts';

const PADDING: Readonly<Record<Size, number>> = { small: 0, middle: 12_000, large: 70_000 };
const KEY_MEMORY = 300_000;

// Bytes that may be pending for a stream which is still given all of them when it unsubscribes.
const MAX_PENDING = 1_048_576;

// A member of a crowd may wait so many turns for what has been published.
const PENDING_TURNS = 20;

// How user code that subscribes from inside does it: from a little before the head.
const SUBSCRIBED_INSIDE = {
  since: 'cursor',
  back: 3,
  resume: false,
  filter: 'none',
  onGap: 'none',
  checkpoints: true,
} as const;

const CROWD_CHANNELS: ChannelName[][] = [['a'], ['a', 'b'], ['a', 'x'], ['b', 'c'], ['x']];

export class Application implements Hands {
  readonly userCode: UserCode = new UserCode(this);
  readonly published: PublishedEvent[] = [];
  readonly #scene: Scene;
  #directs = 0;
  // Bytes that each of the last turns has published, newest first.
  readonly #publishedBytes = [0];
  // Where the log was when this turn of the event loop began.
  #headOfTurn = 0;
  // Where the log was before user code has published from inside the library, in the same call.
  #headBeforeActs: number | undefined;

  constructor(scene: Scene) {
    this.#scene = scene;
  }

  /** A turn of the event loop begins. */
  turnBegins(): void {
    this.#headOfTurn = this.#scene.registry.truth.head;
  }

  /** It is over. */
  turnEnds(): void {
    this.#headOfTurn = this.#scene.registry.truth.head;
    this.#publishedBytes.unshift(0);
    this.#publishedBytes.splice(PENDING_TURNS);
  }

  // What it publishes and follows.

  publishTo(channel: ChannelName, size: Size, named: boolean, key?: number): void {
    const { channels, truth, keys, distant } = this.#scene.registry;
    // Elsewhere nobody knows at which moment a key is looked up.
    const name = key === undefined || distant !== undefined ? undefined : `${channel} ${key}`;
    const known = name === undefined ? undefined : keys.get(name);
    const isKnown = known !== undefined && known.until > this.#scene.clock.now;
    const n = this.published.length;
    const padding = PADDING[size] * this.#scene.scale;
    const data = padding === 0 ? `{"n":${n}}` : `{"n":${n},"padding":"${'~'.repeat(padding)}"}`;
    const event: PublishedEvent = isKnown
      ? known.event
      : {
          n,
          channel,
          epoch: truth.epoch,
          offset: channel === 'x' ? 0 : ++this.#scene.registry.published,
          type: named ? 'named' : 'message',
          data,
        };
    if (!isKnown) {
      this.published.push(event);
      this.#publishedBytes[0]! += data.length;
      if (channel !== 'x') truth.of(channel).push(event);
      if (name !== undefined) keys.set(name, { event, until: this.#scene.clock.now + KEY_MEMORY });
    }
    const id = channel === 'x' ? '' : `${event.epoch}.${event.offset}`;
    const published = named
      ? channels.publish(channel, data, { event: 'named', key: name })
      : channels.publish(channel, data, { key: name });
    published.then(
      (answer) =>
        answer.id === id || this.#scene.fault(`${channel}: the id ${answer.id}, expected ${id}`),
      (error: unknown) => this.#scene.fault(`publish: ${String(error)}`),
    );
  }

  follow(link: Link, options: FollowOptions): void {
    const { stream, registry } = link;
    const { truth } = registry;
    if (stream.readyState === 2) {
      stream.subscribe(options.channels).then(
        ({ recovered, cursor }) =>
          (recovered || cursor !== '') &&
          this.#scene.fault('a stream that has ended follows something'),
        (error: unknown) => this.#scene.fault(`subscribe after the end: ${String(error)}`),
      );
      return;
    }
    const since = this.#sinceOf(options);
    const words = link.brought !== '' && options.resume ? link.brought : since;
    const hold: Hold = {
      options,
      start: startOf(words, truth),
      headAtCall: truth.head,
      numberAtCall: this.published.length,
      headAtStart: undefined,
      lossAtCall: truth.now,
      isInside: link.inside > 0,
      isStartUnsure: false,
    };
    const { acts } = this.userCode;
    const following: Following = { hold, subscription: undefined, left: false };
    link.following.push(following);
    if (
      options.filter === 'throws' ||
      options.filter === 'promises' ||
      options.onGap === 'throws' ||
      options.onGap === 'other cursor' ||
      options.onGap === 'beyond'
    ) {
      link.mayFail = true;
    }
    const mark = link.mark({
      what: 'called',
      hold,
      live: this.#isLive(link),
      owedFrom: this.#isOfOneTurn ? this.#headOfTurn : 0,
    });
    const { resume, filter, onGap, checkpoints, act } = options;
    const subscribing = this.#scene.work.subscribe(() =>
      stream.subscribe(options.channels, {
        since,
        resume,
        checkpoints,
        filter:
          filter === 'none' && act === undefined
            ? undefined
            : (event) => this.#filter(link, options, event),
        onGap: onGap === 'none' ? undefined : (_, gap) => this.#onGap(link, options, gap),
      }),
    );
    if (mark.what === 'called') mark.live &&= hasTakenAll(link);
    hold.isInside ||= this.userCode.acts > acts;
    // The log may have come to where the client says that it was.
    hold.isStartUnsure = hold.start !== startOf(words, truth);
    void this.#note(link, following, subscribing);
  }

  async #note(link: Link, following: Following, subscribing: Promise<Subscription>): Promise<void> {
    const { hold } = following;
    try {
      const subscription = await subscribing;
      following.subscription = subscription;
      hold.headAtStart = link.registry.truth.head;
      if (!link.isOpen || link.stream.readyState !== 1) return;
      link.mark({ what: 'started', hold, recovered: subscription.recovered });
    } catch (error) {
      this.#scene.fault(`subscribe: ${String(error)}`);
    }
  }

  #sinceOf({ since, back }: FollowOptions): string {
    const { epoch, head } = this.#scene.registry.truth;
    if (since === 'cursor') return `${epoch}.${Math.max(0, head - back)}`;
    return since === 'garbage' ? 'a cursor of ours it is not' : since;
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
      this.#scene.fault(
        `a filter was shown ${event.id} of ${event.channel} as ${event.data.slice(0, 20)}`,
      );
    }
    if (!channels.includes(event.channel as ChannelName)) {
      this.#scene.fault(`a filter of ${channels.join()} was shown an event of ${event.channel}`);
    }
    this.userCode.filter(link, options);
    const verdict = verdictOf(filter, n);
    if (verdict !== 'ends the stream') return verdict === 'passes';
    if (filter === 'throws') throw new Error('a filter that throws');
    return Promise.resolve(true) as unknown as boolean;
  }

  #onGap(
    link: Link,
    options: FollowOptions,
    { channels, cursor }: Gap,
  ): string | undefined | Promise<string | undefined> {
    const { truth, distant } = link.registry;
    const { onGap } = options;
    const isOver =
      link.stream.readyState === 2 ||
      link.following.some(({ hold, left }) => left && hold.options === options);
    if (isOver) {
      this.#scene.fault('an onGap was called after its subscription or its stream had ended');
    }
    if (!link.isOpen) return undefined;
    link.mark({
      what: 'asked',
      by: options,
      channels,
      cursor,
      loss: distant === undefined && this.#headBeforeActs === undefined ? truth.now : undefined,
      least: this.#headBeforeActs ?? truth.head,
      head: truth.head,
    });
    this.send(link);
    if (onGap === 'throws') throw new Error('an onGap that throws');
    if (onGap === 'other cursor') return 'elsewhere.3';
    if (onGap === 'beyond') {
      link.mustFail = 'onGap has answered with a cursor beyond the head';
      return `${truth.epoch}.${truth.head + 1_000}`;
    }
    const answer = onGap === 'cursor' || onGap === 'slow cursor' ? cursor : undefined;
    const give = (): string | undefined => {
      this.send(link);
      link.mark({ what: 'answered', channels, cursor: answer });
      return answer;
    };
    if (onGap === 'cursor' || onGap === 'nothing') return give();
    return new Promise((resolve) => {
      link.asks.push(() => resolve(give()));
    });
  }

  unfollow(link: Link, following: Following): void {
    if (following.left) return;
    const { hold, subscription } = following;
    // Whoever has not got the subscription yet can end it only then.
    if (subscription === undefined) return;
    following.left = true;
    const isInside = link.inside > 0;
    if (isInside) link.mark({ what: 'leaving', hold });
    const [live, head, n] = [
      this.#isLive(link) && this.#pendingBytes <= MAX_PENDING,
      this.#arrived,
      this.published.length,
    ];
    this.#scene.work.call('unsubscribe', CALL_BYTES.unsubscribe, () => subscription.unsubscribe());
    // It had ended, or a filter has ended it just now.
    if (link.stream.readyState === 2) return;
    // From inside it takes effect when the events that are being given have been written, which is before the next microtask.
    if (isInside) {
      queueMicrotask(() => void link.mark({ what: 'left', hold, live: false, head, n }));
    } else link.mark({ what: 'left', hold, live: live && hasTakenAll(link), head, n });
  }

  // What the application does to a stream, in a command or from inside the library.

  send(link: Link, padding = ''): void {
    if (link.stream.readyState !== 1 || link.isFinishing) return;
    const isInside = link.inside > 0;
    const direct: Direct = {
      k: this.#directs++,
      live: !isInside && this.#isLive(link),
      head: this.#arrived,
      isInside,
    };
    link.directs.push(direct);
    const most = this.#followsLiveOnly(link) ? CALL_BYTES.sendBesideLiveOnly : CALL_BYTES.send;
    this.#scene.work.call('send', most, () => link.stream.send(`${direct.k} ${padding}`, 'direct'));
    // What the turn owed has made it a slow one.
    if (this.#scene.registry.channels.stats().behind > 0) direct.live = false;
  }

  comment(link: Link): void {
    const most = this.#followsLiveOnly(link) ? CALL_BYTES.sendBesideLiveOnly : CALL_BYTES.send;
    this.#scene.work.call('comment', most, () => link.stream.comment('a comment'));
  }

  close(link: Link): void {
    if (link.stream.readyState === 2) return;
    const before = {
      live: link.inside === 0 && this.#isLive(link) && this.#pendingBytes <= WRITE_MARK,
      head: this.#arrived,
    };
    const { acts } = this.userCode;
    this.#scene.work.call('close', CALL_BYTES.close, () => link.stream.close());
    // User code may have ended it before, in the middle of what it was given.
    const live = before.live && hasTakenAll(link) && this.userCode.acts === acts;
    link.mark({ what: 'ended', live, head: before.head });
  }

  closeForGood(link: Link): void {
    if (link.stream.readyState !== 1) return;
    link.isFinishing = true;
    link.mark({ what: 'finishing', head: this.#arrived });
    link.stream.close({ final: true });
  }

  publish(): void {
    this.#noteHead();
    this.publishTo('a', 'small', false);
  }

  /** From inside the library something is published, in the middle of whatever it does. */
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
    const following = link.following.find(({ hold }) => hold.options === options);
    if (following !== undefined) this.unfollow(link, following);
  }

  sendToOthers(link: Link): void {
    for (const { link: other } of this.#scene.clients) {
      if (other !== undefined && other !== link && other.registry === this.#scene.registry) {
        this.send(other);
      }
    }
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

  #followsLiveOnly({ following }: Link): boolean {
    return following.some(({ hold, left }) => !left && hold.options.channels.includes('x'));
  }

  /**
   * Whether what is pending was published in this turn. In a crowd streams wait for their turn, and what user code publishes from
   * inside the fan-out waits for the next one.
   */
  get #isOfOneTurn(): boolean {
    return this.#scene.crowd.length === 0 && this.userCode.acts === 0;
  }

  /** Bytes that may be pending for a stream. */
  get #pendingBytes(): number {
    const turns = this.#isOfOneTurn ? 2 : this.#publishedBytes.length;
    return this.#publishedBytes.slice(0, turns).reduce((sum, bytes) => sum + bytes, 0);
  }

  /** Whether the stream is live and its reader not slow, so that the order of the calls is the order on the wire. */
  #isLive({ stream }: Link): boolean {
    return (
      stream.readyState === 1 &&
      this.#scene.registry.channels.stats().behind === 0 &&
      stream.bufferedAmount <= WRITE_MARK
    );
  }

  /** The offset up to which everything has come to this node. */
  get #arrived(): number {
    const { distant, truth } = this.#scene.registry;
    return distant?.arrived ?? truth.head;
  }

  /** As a chat does when somebody leaves, in the very turn and call in which the library finds out. */
  tellOthers(gone: Link): void {
    if (this.#scene.isOver || gone.registry !== this.#scene.registry) return;
    this.#noteHead();
    this.publishTo('a', 'small', true);
    this.sendToOthers(gone);
  }

  joinCrowd(link: Link, crowd: Crowd, member: number): void {
    const { stream } = link;
    const channels: ChannelName[] =
      crowd === 'mixed' ? CROWD_CHANNELS[member % CROWD_CHANNELS.length]! : ['a'];
    link.followed = channels.length;
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
      .catch((error: unknown) => this.#scene.fault(`subscribe: ${String(error)}`));
  }
}

/** Whether the stream was given what the turn owed it: no filter has ended it before, and nothing of that has made its reader slow. */
function hasTakenAll({ mayFail, stream }: Link): boolean {
  return !mayFail && stream.bufferedAmount <= WRITE_MARK;
}

/** Where a subscription begins by rule 2, read from the text alone. */
function startOf(words: string, { epoch, head }: Truth): Hold['start'] {
  if (words === 'now') return 'now';
  if (words === 'start') return 'whole';
  const offset = Number(words.slice(epoch.length + 1));
  return words === `${epoch}.${offset}` && Number.isInteger(offset) && offset >= 0 && offset <= head
    ? offset
    : 'foreign';
}
