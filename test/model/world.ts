/** Carries out a schedule on the library, with clients that behave as the standard says, and has the contract audited. */
import type { EventStream, Gap, Subscription } from '../../src/index.ts';
import type { ChannelEvent } from '../../src/log-entry.ts';
import { DistantBroker } from './distant-broker.ts';
import { audit, type Direct, type Hold } from './ledger.ts';
import { Link, type Following } from './link.ts';
import { randomFrom } from './random.ts';
import { openRegistry, type Registry } from './registry.ts';
import {
  CLIENTS,
  type Brings,
  type ClientCommand,
  type ServerCommand,
  type ChannelName,
  type Command,
  type FollowOptions,
  type Schedule,
  type Size,
} from './schedule.ts';
import { type Truth, Violation, verdictOf, type PublishedEvent } from './truth.ts';

/** How clients come to a registry. */
export interface Transport {
  connect(registry: Registry, lastEventId: string, eager: boolean, opened: (stream: EventStream) => Link): Promise<void> | void;
  /** Lets what is on its way arrive. */
  settle(): Promise<void> | void;
}

const PADDING: Readonly<Record<Size, number>> = { small: 0, middle: 12_000, large: 70_000 };
const KEY_MEMORY = 300_000;

// Bytes queued beyond which a stream leaves the live ones when its turn comes (rule 4).
const WRITE_MARK = 65_536;

// Far more turns than any schedule needs to come to rest.
const PATIENCE = 500;

/** What has happened in all schedules together: without gaps and slow readers they would prove little. */
export interface Tally {
  schedules: number;
  streams: number;
  resumed: number;
  gaps: number;
  asked: number;
  slow: number;
}

export interface WorldOptions {
  readonly transport: Transport;
  readonly isDistant: boolean;
  /** How much larger padded events are: a kernel buffers more than a fake. */
  readonly scale?: number;
  readonly clock: { now: number };
  readonly tally: Tally;
}

export class World {
  readonly faults: string[] = [];
  readonly #options: WorldOptions;
  readonly #schedule: Schedule;
  readonly #random: () => number;
  readonly #clients: { link: Link | undefined; lastId: string }[] = Array.from({ length: CLIENTS }, () => ({
    link: undefined,
    lastId: '',
  }));
  readonly #links: Link[] = [];
  readonly #published: PublishedEvent[] = [];
  readonly #crowd: Link[] = [];
  #registry: Registry;
  #directs = 0;
  // Where the log was when this turn of the event loop began. In a crowd some are owed what earlier turns have published, too.
  #headOfTurn = 0;
  #isOver = false;

  constructor(schedule: Schedule, options: WorldOptions) {
    this.#options = options;
    this.#schedule = schedule;
    this.#random = randomFrom(schedule.seed);
    this.#registry = this.#open();
  }

  async run(): Promise<void> {
    this.#options.tally.schedules++;
    for (const command of this.#schedule.commands) await this.#carryOut(command);
    await this.#comeToRest();
    await this.#finish();
    if (this.faults.length > 0) throw new Violation(this.faults[0]);
    for (const link of this.#links) this.#audit(link);
  }

  #audit(link: Link): void {
    const { registry, stream } = link;
    const { tally } = this.#options;
    tally.streams++;
    for (const { type } of link.parser.events) if (type === 'sse:gap') tally.gaps++;
    for (const { what } of link.marks) if (what === 'asked') tally.asked++;
    if (registry.truth.epoch === link.brought.split('.')[0]) tally.resumed++;
    if (link.wasSlow) tally.slow++;
    audit({
      truth: registry.truth,
      isDistant: this.#options.isDistant,
      marks: link.marks.filter(({ at }) => at !== undefined),
      items: link.parser.events,
      directs: link.directs,
      received: link.received,
      isWhole: link.received === Infinity,
      hasDropped: stream.dropped > 0,
      byNumber: this.#published,
    });
  }

  #open(): Registry {
    const { isDistant, clock, scale = 1 } = this.#options;
    this.#headOfTurn = 0;
    return openRegistry(
      this.#schedule.bounds,
      scale,
      clock,
      isDistant ? (log) => new DistantBroker(this.#random, log) : undefined,
    );
  }

  async #carryOut(command: Command): Promise<void> {
    switch (command.do) {
      case 'publish': {
        for (const channel of command.channels) this.#publish(channel, command.size, command.named, command.key);
        return;
      }
      case 'connect': {
        return this.#connect(
          command.client,
          this.#idOf(command.client, command.brings, command.back),
          command.eager,
          command.follow,
        );
      }
      case 'turn': {
        for (let turn = 0; turn < command.times; turn++) await this.#turn();
        return;
      }
      case 'gather': {
        return this.#gather(command.streams);
      }
      case 'microtasks': {
        return microtasks();
      }
      case 'restart': {
        return this.#restart();
      }
      case 'wait': {
        this.#options.clock.now += command.ms;
        this.#registry.truth.note();
        return;
      }
      case 'clear': {
        this.#registry.channels.clear(command.channel).catch((error: unknown) => this.#fault(`clear: ${String(error)}`));
        return;
      }
      case 'follow':
      case 'unfollow':
      case 'send':
      case 'answer':
      case 'end': {
        const { link } = this.#client(command.client);
        if (link?.isOpen === true) this.#atServer(link, command);
        return;
      }
      case 'pause':
      case 'go on':
      case 'sip':
      case 'drop':
      case 'beat': {
        const { link } = this.#client(command.client);
        // What comes from the network or from a timer never comes in the middle of what the application does.
        await microtasks();
        if (link?.isOpen === true) this.#byItself(link, command);
        await microtasks();
      }
    }
  }

  #atServer(link: Link, command: ServerCommand): void {
    switch (command.do) {
      case 'follow': {
        this.#follow(link, command.follow);
        return;
      }
      case 'unfollow': {
        const { following } = link;
        if (following.length > 0) this.#unfollow(link, following[command.which % following.length]!);
        return;
      }
      case 'send': {
        this.#send(link);
        return;
      }
      case 'answer': {
        link.asks.shift()?.();
        return;
      }
      case 'end': {
        if (link.stream.readyState === 2) return;
        const before = { live: this.#isLive(link), head: this.#arrived };
        link.stream.close();
        link.mark({ what: 'ended', live: before.live && hasTakenAll(link), head: before.head });
        return;
      }
    }
  }

  #byItself(link: Link, command: ClientCommand): void {
    switch (command.do) {
      case 'beat': {
        // As the heartbeat does: never into a blocked stream.
        if (link.stream.bufferedAmount > 0) return;
        link.stream.due();
        link.stream.silent();
        return;
      }
      case 'pause': {
        link.wire.pause();
        return;
      }
      case 'go on': {
        link.wire.resume();
        return;
      }
      case 'sip': {
        link.wire.sip(command.writes);
        return;
      }
      case 'drop': {
        this.#drop(link);
      }
    }
  }

  // What the application does.

  #publish(channel: ChannelName, size: Size, named: boolean, key?: number): void {
    const { channels, truth, keys, distant } = this.#registry;
    // Elsewhere nobody knows at which moment a key is looked up.
    const name = key === undefined || distant !== undefined ? undefined : `${channel} ${key}`;
    const known = name === undefined ? undefined : keys.get(name);
    const isKnown = known !== undefined && known.until > this.#options.clock.now;
    const n = this.#published.length;
    const padding = PADDING[size] * (this.#options.scale ?? 1);
    const data = padding === 0 ? `{"n":${n}}` : `{"n":${n},"padding":"${'~'.repeat(padding)}"}`;
    const event: PublishedEvent = isKnown
      ? known.event
      : {
          n,
          channel,
          epoch: truth.epoch,
          offset: channel === 'x' ? 0 : ++this.#registry.published,
          type: named ? 'named' : 'message',
          data,
        };
    if (!isKnown) {
      this.#published.push(event);
      if (channel !== 'x') truth.of(channel).push(event);
      if (name !== undefined) keys.set(name, { event, until: this.#options.clock.now + KEY_MEMORY });
    }
    const id = channel === 'x' ? '' : `${event.epoch}.${event.offset}`;
    const published = named
      ? channels.publish(channel, data, { event: 'named', key: name })
      : channels.publish(channel, data, { key: name });
    published.then(
      (answer) => answer.id === id || this.#fault(`${channel}: the id ${answer.id}, expected ${id}`),
      (error: unknown) => this.#fault(`publish: ${String(error)}`),
    );
  }

  #follow(link: Link, options: FollowOptions): void {
    const { stream, registry } = link;
    const { truth } = registry;
    if (stream.readyState === 2) {
      stream.subscribe(options.channels).then(
        ({ recovered, cursor }) => (recovered || cursor !== '') && this.#fault('a stream that has ended follows something'),
        (error: unknown) => this.#fault(`subscribe after the end: ${String(error)}`),
      );
      return;
    }
    const since = this.#sinceOf(options);
    const words = link.brought !== '' && options.resume ? link.brought : since;
    const hold: Hold = {
      options,
      start: startOf(words, truth),
      headAtCall: truth.head,
      numberAtCall: this.#published.length,
      headAtStart: undefined,
      lossAtCall: truth.now,
    };
    const following: Following = { hold, subscription: undefined, left: false };
    link.following.push(following);
    if (
      options.filter === 'throws' ||
      options.filter === 'promises' ||
      options.onGap === 'throws' ||
      options.onGap === 'other cursor'
    ) {
      link.mayFail = true;
    }
    const mark = link.mark({
      what: 'called',
      hold,
      live: this.#isLive(link),
      owedFrom: this.#crowd.length === 0 ? this.#headOfTurn : 0,
    });
    const { resume, filter, onGap, checkpoints } = options;
    const subscribing = stream.subscribe(options.channels, {
      since,
      resume,
      checkpoints,
      filter: filter === 'none' ? undefined : (event) => this.#filter(options, event),
      onGap: onGap === 'none' ? undefined : (_, gap) => this.#onGap(link, options, gap),
    });
    if (mark.what === 'called') mark.live &&= hasTakenAll(link);
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
      this.#fault(`subscribe: ${String(error)}`);
    }
  }

  #sinceOf({ since, back }: FollowOptions): string {
    const { epoch, head } = this.#registry.truth;
    if (since === 'cursor') return `${epoch}.${Math.max(0, head - back)}`;
    return since === 'garbage' ? 'a cursor of ours it is not' : since;
  }

  #filter({ filter, channels }: FollowOptions, event: ChannelEvent): boolean {
    const n = Number.parseInt(event.data.slice(5), 10);
    const known = this.#published[n];
    const id = known?.channel === 'x' ? '' : `${known?.epoch}.${known?.offset}`;
    if (
      known === undefined ||
      event.channel !== known.channel ||
      event.id !== id ||
      event.event !== known.type ||
      (event.json() as { n: number }).n !== n
    ) {
      this.#fault(`a filter was shown ${event.id} of ${event.channel} as ${event.data.slice(0, 20)}`);
    }
    if (!channels.includes(event.channel as ChannelName)) {
      this.#fault(`a filter of ${channels.join()} was shown an event of ${event.channel}`);
    }
    const verdict = verdictOf(filter, n);
    if (verdict !== 'ends the stream') return verdict === 'passes';
    if (filter === 'throws') throw new Error('a filter that throws');
    return Promise.resolve(true) as unknown as boolean;
  }

  #onGap(link: Link, options: FollowOptions, { channels, cursor }: Gap): string | undefined | Promise<string | undefined> {
    const { truth, distant } = link.registry;
    const { onGap } = options;
    const isOver = link.stream.readyState === 2 || link.following.some(({ hold, left }) => left && hold.options === options);
    if (isOver) this.#fault('an onGap was called after its subscription or its stream had ended');
    if (!link.isOpen) return undefined;
    link.mark({
      what: 'asked',
      by: options,
      channels,
      cursor,
      loss: distant === undefined ? truth.now : undefined,
      head: truth.head,
    });
    this.#send(link);
    if (onGap === 'throws') throw new Error('an onGap that throws');
    if (onGap === 'other cursor') return 'elsewhere.3';
    const answer = onGap === 'cursor' || onGap === 'slow cursor' ? cursor : undefined;
    const give = (): string | undefined => {
      this.#send(link);
      link.mark({ what: 'answered', channels, cursor: answer });
      return answer;
    };
    if (onGap === 'cursor' || onGap === 'nothing') return give();
    return new Promise((resolve) => {
      link.asks.push(() => resolve(give()));
    });
  }

  #unfollow(link: Link, following: Following): void {
    if (following.left) return;
    // Whoever has not got the subscription yet can end it only then.
    if (following.subscription === undefined) return;
    following.left = true;
    const [live, head, n] = [this.#isLive(link), this.#arrived, this.#published.length];
    following.subscription.unsubscribe();
    // It had ended, or a filter has ended it just now.
    if (link.stream.readyState === 2) return;
    link.mark({ what: 'left', hold: following.hold, live: live && hasTakenAll(link), head, n });
  }

  #send(link: Link): void {
    if (link.stream.readyState !== 1) return;
    const direct: Direct = { k: this.#directs++, live: this.#isLive(link), head: this.#arrived };
    link.directs.push(direct);
    link.stream.send(String(direct.k), 'direct');
    // What the turn owed has made it a slow one.
    if (this.#registry.channels.stats().behind > 0) direct.live = false;
  }

  /** Whether the stream is live and its reader not slow, so that the order of the calls is the order on the wire. */
  #isLive({ stream }: Link): boolean {
    return stream.readyState === 1 && this.#registry.channels.stats().behind === 0 && stream.bufferedAmount <= WRITE_MARK;
  }

  /** The offset up to which everything has come to this node. */
  get #arrived(): number {
    const { distant, truth } = this.#registry;
    return distant?.arrived ?? truth.head;
  }

  async #gather(streams: number): Promise<void> {
    const registry = this.#registry;
    for (let member = 0; member < streams; member++) {
      await this.#options.transport.connect(registry, '', true, (stream) => {
        const link = new Link(registry, stream, '');
        link.isRead = false;
        this.#crowd.push(link);
        stream.subscribe('a', { checkpoints: false }).catch((error: unknown) => this.#fault(`subscribe: ${String(error)}`));
        return link;
      });
    }
  }

  // What clients do.

  async #connect(number: number, lastEventId: string, eager: boolean, options: FollowOptions): Promise<void> {
    const client = this.#client(number);
    if (client.link?.isOpen === true) this.#drop(client.link);
    client.link = undefined;
    const registry = this.#registry;
    await this.#options.transport.connect(registry, lastEventId, eager, (stream) => {
      const link = new Link(registry, stream, lastEventId);
      client.link = link;
      this.#links.push(link);
      void this.#expectReason(link);
      if (this.#schedule.presence) stream.signal.addEventListener('abort', () => this.#tellOthers(link));
      this.#follow(link, options);
      return link;
    });
  }

  async #expectReason(link: Link): Promise<void> {
    const reason = await link.stream.closed;
    if (reason === 'error' && !link.mayFail) this.#fault('a stream ended with an error, though nothing of its own throws');
  }

  /** As a chat does when somebody leaves, in the very turn and call in which the library finds out. */
  #tellOthers(gone: Link): void {
    if (this.#isOver || gone.registry !== this.#registry) return;
    this.#publish('a', 'small', true);
    for (const { link } of this.#clients) {
      if (link !== undefined && link !== gone && link.registry === this.#registry) this.#send(link);
    }
  }

  #drop(link: Link): void {
    link.wire.drop();
    this.#remember();
  }

  /** Clients keep the last id they got over all their connections. */
  #remember(): void {
    for (const client of this.#clients) {
      if (client.link === undefined) continue;
      const { link } = client;
      const id = link.parser.events.slice(0, link.received).at(-1)?.lastEventId ?? '';
      if (id !== '') client.lastId = id;
    }
  }

  #idOf(number: number, brings: Brings, back: number): string {
    this.#remember();
    const { truth } = this.#registry;
    const { lastId } = this.#client(number);
    const garbage = ['01', '1e0', '', '-1', '+1', '9007199254740993'].map((digits) => `${truth.epoch}.${digits}`);
    const beyond = this.#registry.published + (this.#registry.distant === undefined ? 1 : 1_000) + back;
    const ids: Readonly<Record<Brings, string>> = {
      last: lastId,
      nothing: '',
      garbage: garbage[back % garbage.length]!,
      'other log': `elsewhere.${back}`,
      beyond: `${truth.epoch}.${beyond}`,
      older: `${truth.epoch}.${Math.max(0, truth.head - back)}`,
    };
    return ids[brings];
  }

  #client(number: number): { link: Link | undefined; lastId: string } {
    return this.#clients[number]!;
  }

  // Time.

  async #turn(): Promise<void> {
    this.#registry.distant?.tick();
    this.#headOfTurn = this.#registry.truth.head;
    const slow = this.#links.filter((link) => link.stream.bufferedAmount > WRITE_MARK);
    const queued = slow.map(({ stream }) => stream.bufferedAmount);
    await this.#options.transport.settle();
    await new Promise<void>((resolve) => void setImmediate(resolve));
    for (const [index, link] of slow.entries()) {
      link.wasSlow = true;
      // A slow reader costs a cursor, not a queue. Events without history have none (rule 8), and a later subscription may say at
      // once that ids step back.
      const isLogged = link.following.length === 1 && !link.following[0]!.hold.options.channels.includes('x');
      const isStill = link.wire.isPaused && isLogged && !this.#schedule.presence;
      if (isStill && link.stream.bufferedAmount > queued[index]!) this.#fault('the queue of a reader who does not read grows');
    }
    this.#headOfTurn = this.#registry.truth.head;
  }

  /** The process ends and another begins, with a log of its own. */
  async #restart(): Promise<void> {
    for (const { link } of this.#clients) if (link?.isOpen === true) this.#drop(link);
    for (const link of this.#crowd.splice(0)) link.wire.drop();
    await this.#turn();
    this.#registry = this.#open();
  }

  /** Everybody reads, every question is answered, and nothing new comes, until nothing moves any more. */
  async #comeToRest(): Promise<void> {
    const open = (): Link[] => this.#links.filter((link) => link.isOpen);
    // A crowd is given each frame in slices, and one frame after the other: who waits for its turn looks quiet.
    const enough = this.#crowd.length === 0 ? 3 : 30;
    let quiet = 0;
    for (let turn = 0; quiet < enough; turn++) {
      if (turn > PATIENCE) {
        this.#fault(`the streams do not come to rest: ${JSON.stringify(this.#registry.channels.stats())}`);
        return;
      }
      for (const link of open()) {
        link.wire.resume();
        for (const answer of link.asks.splice(0)) answer();
      }
      await this.#turn();
      const { channels, distant } = this.#registry;
      const isQuiet =
        distant?.isQuiet !== false &&
        channels.stats().behind === 0 &&
        open().every(
          (link) =>
            link.wire.isEmpty &&
            link.stream.bufferedAmount === 0 &&
            link.following.every(({ subscription }) => subscription !== undefined),
        );
      quiet = isQuiet ? quiet + 1 : 0;
    }
    // One heartbeat more, and every client knows where the log is.
    for (const link of open()) link.stream.due();
    for (let turn = 0; turn < 3 || this.#registry.distant?.isQuiet === false; turn++) await this.#turn();
    while (!open().every((link) => link.wire.isEmpty)) await this.#turn();
    for (const link of open()) this.#expectAtHead(link);
    this.#expectStats(open());
  }

  #expectAtHead({ stream, parser, following, registry }: Link): void {
    if (stream.readyState !== 1) return;
    const held = following.filter(({ left }) => !left).map(({ hold }) => hold.options);
    const followed = new Set(held.flatMap(({ channels }) => channels).filter((channel) => channel !== 'x'));
    if (followed.size === 0 || !held.some(({ checkpoints }) => checkpoints)) return;
    const { truth, distant } = registry;
    const newest = Math.max(0, ...[...followed].map((channel) => truth.of(channel).at(-1)?.offset ?? 0));
    // Elsewhere, what nobody here listens to is not known here.
    const offset = Number(parser.lastEventId.slice(truth.epoch.length + 1));
    if (distant === undefined ? offset !== truth.head : offset < newest) {
      this.#fault(`at rest a client knows ${parser.lastEventId}, the head is ${truth.head}`);
    }
  }

  #expectStats(open: Link[]): void {
    const { channels } = this.#registry;
    let subscriptions = this.#crowd.filter(({ isOpen, registry }) => isOpen && registry === this.#registry).length;
    for (const { stream, following } of open) {
      if (stream.readyState === 1) {
        subscriptions += new Set(following.filter(({ left }) => !left).flatMap(({ hold }) => hold.options.channels)).size;
      }
    }
    const stats = channels.stats();
    if (stats.subscriptions !== subscriptions) {
      this.#fault(`${stats.subscriptions} subscriptions are counted, there are ${subscriptions}`);
    }
    if (stats.behind !== 0) this.#fault(`at rest ${stats.behind} streams are behind`);
  }

  /** Everybody leaves, and nothing may be left. */
  async #finish(): Promise<void> {
    this.#isOver = true;
    const { channels, events } = this.#registry;
    const open = this.#links.filter((link) => link.isOpen);
    for (const link of [...open, ...this.#crowd]) link.wire.drop();
    for (let turn = 0; turn < 50 && (turn < 2 || events.streams.size > 0); turn++) await this.#turn();
    // They were whole until now.
    for (const link of open) if (link.stream.dropped === 0) link.received = Infinity;
    const { subscriptions } = channels.stats();
    if (subscriptions > 0 || channels.names().length > 0 || events.streams.size > 0) {
      this.#fault(`when all have left, ${subscriptions} subscriptions are left`);
    }
  }

  #fault(what: string): void {
    this.faults.push(what);
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
  return words === `${epoch}.${offset}` && Number.isInteger(offset) && offset >= 0 && offset <= head ? offset : 'foreign';
}

/** Lets everything happen that this turn of the event loop has already brought about. */
function microtasks(): Promise<void> {
  return new Promise((resolve) => {
    process.nextTick(resolve);
  });
}
