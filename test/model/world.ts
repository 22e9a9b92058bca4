/** Carries out a schedule on the library, with clients that behave as the standard says, and has the contract audited. */
import type { EventStream } from '../../src/index.ts';
import { Application } from './application.ts';
import { checkAtRest, checkDirect } from './at-rest.ts';
import { DistantBroker } from './distant-broker.ts';
import { audit } from './ledger.ts';
import { Link } from './link.ts';
import { randomFrom } from './random.ts';
import { openRegistry, type Registry } from './registry.ts';
import { Scene, type Client } from './scene.ts';
import {
  CLIENTS,
  type Brings,
  type ClientCommand,
  type Command,
  type Crowd,
  type Schedule,
  type ServerCommand,
  type Wrap,
} from './schedule.ts';
import { Violation } from './truth.ts';
import { CALL_BYTES, WRITE_MARK, WorkMeter } from './work.ts';

/** How clients come to a registry. */
export interface Transport {
  /** @param wrap a `write` that stands in front of the response's own */
  connect(
    registry: Registry,
    lastEventId: string,
    eager: boolean,
    opened: (stream: EventStream) => Link,
    wrap?: (link: Link | undefined, passOn: () => boolean) => boolean,
  ): Promise<void> | void;
  /** Lets what is on its way arrive. */
  settle(): Promise<void> | void;
}

// A first event that is larger than one write to the response.
const SNAPSHOT = '~'.repeat(20_000);

// What HTTP adds to a piece of the queue when it is handed to the socket: the length of the chunk and two line ends.
const FRAMING = 16;

// Far more turns than any schedule needs to come to rest.
const PATIENCE = 2_000;

/** What has happened in all schedules together: without gaps and slow readers they would prove little. */
export interface Tally {
  schedules: number;
  streams: number;
  resumed: number;
  gaps: number;
  asked: number;
  slow: number;
  /** What user code has done from inside the library. */
  acts: number;
}

export interface WorldOptions {
  readonly transport: Transport;
  readonly isDistant: boolean;
  /** How much larger padded events are: a kernel buffers more than a fake. */
  readonly scale?: number;
  readonly clock: { now: number };
  readonly tally: Tally;
  /** Where nobody can see what is written, nothing is measured. */
  readonly work?: WorkMeter;
}

export class World {
  readonly #options: WorldOptions;
  readonly #schedule: Schedule;
  readonly #random: () => number;
  readonly #scene: Scene;
  readonly #application: Application;

  constructor(schedule: Schedule, options: WorldOptions) {
    const { clock, scale = 1, work = new WorkMeter() } = options;
    this.#options = options;
    this.#schedule = schedule;
    this.#random = randomFrom(schedule.seed);
    this.#scene = new Scene(CLIENTS, this.#open(), work, clock, scale);
    this.#application = new Application(this.#scene);
  }

  async run(): Promise<void> {
    const { tally } = this.#options;
    const { userCode } = this.#application;
    const { faults, work, links } = this.#scene;
    tally.schedules++;
    userCode.observe(this.#schedule.observers);
    try {
      for (const command of this.#schedule.commands) await this.#carryOut(command);
      await this.#comeToRest();
      await this.#finish();
    } finally {
      userCode.close();
      tally.acts += userCode.acts;
    }
    faults.push(...work.excesses);
    if (faults.length > 0) throw new Violation(faults[0]);
    for (const link of links) this.#audit(link);
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
      byNumber: this.#application.published,
    });
  }

  #open(): Registry {
    const { isDistant, clock, scale = 1 } = this.#options;
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
        for (const channel of command.channels) {
          this.#application.publishTo(channel, command.size, command.named, command.key);
        }
        return;
      }
      case 'burst': {
        for (let event = 0; event < command.events; event++) {
          this.#application.publishTo(command.channel, command.size, false);
        }
        return;
      }
      case 'connect': {
        return this.#connect(command, this.#idOf(command.client, command.brings, command.back));
      }
      case 'turn': {
        for (let turn = 0; turn < command.times; turn++) await this.#turn();
        return;
      }
      case 'gather': {
        return this.#gather(command.streams, command.crowd);
      }
      case 'interrupt': {
        this.#scene.registry.distant?.interrupt();
        return;
      }
      case 'microtasks': {
        return microtasks();
      }
      case 'restart': {
        return this.#restart();
      }
      case 'wait': {
        this.#options.clock.now += command.ms;
        this.#scene.registry.truth.note();
        return;
      }
      case 'clear': {
        this.#scene.registry.channels
          .clear(command.channel)
          .catch((error: unknown) => this.#scene.fault(`clear: ${String(error)}`));
        return;
      }
      case 'follow':
      case 'unfollow':
      case 'send':
      case 'snapshot':
      case 'comment':
      case 'answer':
      case 'end':
      case 'end for good': {
        const { link } = this.#client(command.client);
        if (link?.isOpen === true && (!link.isFinishing || command.do === 'answer')) {
          this.#atServer(link, command);
        }
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
        this.#application.follow(link, command.follow);
        return;
      }
      case 'unfollow': {
        const { following } = link;
        if (following.length > 0) {
          this.#application.unfollow(link, following[command.which % following.length]!);
        }
        return;
      }
      case 'send': {
        this.#application.send(link);
        return;
      }
      case 'snapshot': {
        this.#application.send(link, SNAPSHOT);
        return;
      }
      case 'comment': {
        this.#application.comment(link);
        return;
      }
      case 'answer': {
        link.asks.shift()?.();
        return;
      }
      case 'end': {
        this.#application.close(link);
        return;
      }
      case 'end for good': {
        this.#application.closeForGood(link);
      }
    }
  }

  #byItself(link: Link, command: ClientCommand): void {
    switch (command.do) {
      case 'beat': {
        // As the heartbeat does: never into a blocked stream.
        if (link.stream.bufferedAmount > 0) return;
        this.#scene.work.call('a checkpoint', CALL_BYTES.heartbeat, () => link.stream.onTick());
        if (link.stream.readyState === 1) {
          this.#scene.work.call('a heartbeat', CALL_BYTES.heartbeat, () => link.stream.onIdle());
        }
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

  // What clients do.

  async #connect(command: Command & { do: 'connect' }, lastEventId: string): Promise<void> {
    const client = this.#client(command.client);
    if (client.link?.isOpen === true) this.#drop(client.link);
    client.link = undefined;
    const registry = this.#scene.registry;
    const { eager, follow, wrap } = command;
    const opened = (stream: EventStream): Link => {
      const link = new Link(registry, stream, lastEventId);
      link.isWrapped = wrap !== undefined;
      client.link = link;
      this.#scene.links.push(link);
      void this.#expectReason(link);
      if (this.#schedule.presence) {
        stream.signal.addEventListener('abort', () => this.#application.tellOthers(link));
      }
      this.#application.follow(link, follow);
      return link;
    };
    await this.#options.transport.connect(
      registry,
      lastEventId,
      eager,
      opened,
      wrap && this.#wrapped(client, wrap),
    );
  }

  #wrapped(
    client: { link: Link | undefined },
    wrap: Wrap,
  ): (link: Link | undefined, passOn: () => boolean) => boolean {
    // The first bytes are written before the transport knows the connection.
    return (link, passOn) => this.#application.userCode.write(link ?? client.link, wrap, passOn);
  }

  async #expectReason(link: Link): Promise<void> {
    const reason = await link.stream.closed;
    if (reason === 'error' && !link.mayFail) {
      this.#scene.fault('a stream ended with an error, though nothing of its own throws');
    }
  }

  async #gather(streams: number, crowd: Crowd): Promise<void> {
    const registry = this.#scene.registry;
    if (crowd === 'mixed') this.#scene.work.fanOuts = 2;
    for (let member = 0; member < streams; member++) {
      await this.#options.transport.connect(registry, '', true, (stream) => {
        const link = new Link(registry, stream, '');
        link.isRead = false;
        this.#scene.crowd.push(link);
        this.#scene.work.subscribe(() => this.#application.joinCrowd(link, crowd, member));
        return link;
      });
    }
  }

  #drop(link: Link): void {
    link.wire.drop();
    this.#remember();
  }

  /** Clients keep the last id they got over all their connections. */
  #remember(): void {
    for (const client of this.#scene.clients) {
      if (client.link === undefined) continue;
      const { link } = client;
      const id = link.parser.events.slice(0, link.received).at(-1)?.lastEventId ?? '';
      if (id !== '') client.lastId = id;
    }
  }

  #idOf(number: number, brings: Brings, back: number): string {
    this.#remember();
    const { truth } = this.#scene.registry;
    const { lastId } = this.#client(number);
    const garbage = ['01', '1e0', '', '-1', '+1', '9007199254740993'].map(
      (digits) => `${truth.epoch}.${digits}`,
    );
    const beyond =
      this.#scene.registry.published +
      (this.#scene.registry.distant === undefined ? 1 : 1_000) +
      back;
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

  #client(number: number): Client {
    return this.#scene.clients[number]!;
  }

  // Time.

  async #turn(): Promise<void> {
    const { registry, links, work } = this.#scene;
    registry.distant?.tick();
    this.#application.turnBegins();
    const { acts } = this.#application.userCode;
    const slow = links.filter((link) => link.stream.bufferedAmount > WRITE_MARK);
    const queued = slow.map(({ stream }) => stream.bufferedAmount);
    await this.#options.transport.settle();
    await new Promise<void>((resolve) => void setImmediate(resolve));
    const areActing = this.#schedule.presence || this.#application.userCode.acts > acts;
    for (const [index, link] of slow.entries()) {
      link.wasSlow = true;
      if (
        !areActing &&
        !link.isFinishing &&
        isStill(link) &&
        link.stream.bufferedAmount > queued[index]! + FRAMING
      ) {
        this.#scene.fault('the queue of a reader who does not read grows');
      }
    }
    this.#application.turnEnds();
    work.turn();
  }

  /** The process ends and another begins, with a log of its own. */
  async #restart(): Promise<void> {
    for (const { link } of this.#scene.clients) if (link?.isOpen === true) this.#drop(link);
    for (const link of this.#scene.crowd.splice(0)) link.wire.drop();
    await this.#turn();
    this.#scene.registry = this.#open();
    this.#application.turnBegins();
  }

  /** Everybody reads, every question is answered, and nothing new comes, until nothing moves any more. */
  async #comeToRest(): Promise<void> {
    const scene = this.#scene;
    if (!(await this.#comeToQuiet())) {
      scene.fault(
        `the streams do not come to rest: ${JSON.stringify(scene.registry.channels.stats())}`,
      );
      return;
    }
    if (scene.open.some(({ wire }) => wire.isDirect !== undefined)) await this.#probe();
    await this.#beat();
    checkAtRest(scene);
  }

  /** @returns whether they have come to be quiet */
  async #comeToQuiet(): Promise<boolean> {
    // A crowd is given each frame in slices, and one frame after the other: who waits for its turn looks quiet.
    const enough = this.#scene.crowd.length === 0 ? 3 : 30;
    let quiet = 0;
    for (let turn = 0; quiet < enough; turn++) {
      if (turn > PATIENCE) return false;
      for (const link of this.#scene.open) {
        link.wire.resume();
        for (const answer of link.asks.splice(0)) answer();
      }
      await this.#turn();
      quiet = this.#isQuiet() ? quiet + 1 : 0;
    }
    return true;
  }

  #isQuiet(): boolean {
    const { registry, open } = this.#scene;
    if (registry.distant?.isQuiet === false || registry.channels.stats().behind > 0) return false;
    return open.every(
      (link) =>
        link.wire.isEmpty &&
        link.stream.bufferedAmount === 0 &&
        link.following.every(({ subscription }) => subscription !== undefined),
    );
  }

  /** Publishes what streams that can be are given directly; with the first one a stream may find out that it can be. */
  async #probe(): Promise<void> {
    for (let probe = 0; probe < 2; probe++) {
      this.#application.publishTo('a', 'small', false);
      if (await this.#comeToQuiet()) continue;
      this.#scene.fault('the streams do not come to rest after one event more');
      return;
    }
    checkDirect(this.#scene);
  }

  /** One heartbeat more, and every client knows where the log is, unless the heartbeat has made user code publish something. */
  async #beat(): Promise<void> {
    const { registry } = this.#scene;
    const { userCode } = this.#application;
    for (let acts = -1; acts < userCode.acts;) {
      acts = userCode.acts;
      for (const link of this.#scene.open) link.stream.onTick();
      for (let turn = 0; turn < 3 || registry.distant?.isQuiet === false; turn++) {
        await this.#turn();
      }
      for (
        let turn = 0;
        turn < PATIENCE && !this.#scene.open.every((link) => link.wire.isEmpty);
        turn++
      ) {
        await this.#turn();
      }
    }
  }

  /** Everybody leaves, and nothing may be left. */
  async #finish(): Promise<void> {
    const scene = this.#scene;
    scene.isOver = true;
    const { channels, events } = scene.registry;
    const { open } = scene;
    if (this.#schedule.ending === 'registry') await this.#closeRegistry();
    for (const link of [...open, ...scene.crowd]) link.wire.drop();
    for (let turn = 0; turn < 50 && (turn < 2 || events.streams.size > 0); turn++) {
      await this.#turn();
    }
    // They were whole until now.
    for (const link of open) if (link.stream.dropped === 0) link.received = Infinity;
    const { subscriptions } = channels.stats();
    if (subscriptions > 0 || channels.names().length > 0 || events.streams.size > 0) {
      scene.fault(`when all have left, ${subscriptions} subscriptions are left`);
    }
  }

  async #closeRegistry(): Promise<void> {
    const { registry, links, crowd } = this.#scene;
    const closing = { isDone: false };
    void noteEnd(registry.channels.close(), closing);
    for (let turn = 0; turn < PATIENCE && !closing.isDone; turn++) await this.#turn();
    if (!closing.isDone) this.#scene.fault('the registry does not close');
    const followers = links
      .filter(({ following }) => following.some(({ left }) => !left))
      .concat(crowd);
    const { length } = followers.filter(
      (link) => link.registry === registry && link.stream.readyState === 1,
    );
    if (length > 0) {
      this.#scene.fault(
        `the registry has closed, and ${length} streams that follow its channels have not`,
      );
    }
  }
}

async function noteEnd(promise: Promise<unknown>, note: { isDone: boolean }): Promise<void> {
  await promise;
  note.isDone = true;
}

/**
 * Whether nothing may be added to what is queued for a slow reader, who costs a cursor and not a queue. Events without history have
 * none (rule 8), and a later subscription may say at once that ids step back.
 */
function isStill({ wire, following }: Link): boolean {
  return (
    wire.isPaused && following.length === 1 && !following[0]!.hold.options.channels.includes('x')
  );
}

/** Lets everything happen that this turn of the event loop has already brought about. */
function microtasks(): Promise<void> {
  return new Promise((resolve) => {
    process.nextTick(resolve);
  });
}
