/**
 * Runs a schedule against the library, with clients that behave as the HTML standard says, and
 * checks each connection against the contract (`ledger.ts`).
 */
import { subscribe, unsubscribe } from 'node:diagnostics_channel';
import type { CloseReason, EventStream } from '../../src/index.ts';
import { Application } from './application.ts';
import { checkAtRest, checkDirect } from './at-rest.ts';
import { Consumers, type ConsumerCounts } from './consumers.ts';
import { DistantBroker } from './distant-broker.ts';
import { audit } from './ledger.ts';
import { Link } from './link.ts';
import { randomFrom } from './random.ts';
import { openRegistry, type Registry } from './registry.ts';
import { Scene, type Client } from './scene.ts';
import {
  CLIENT_COUNT,
  type Brings,
  type ClientCommand,
  type Command,
  type Crowd,
  type Schedule,
  type ServerCommand,
  type Wrap,
} from './schedule.ts';
import { Violation } from './truth.ts';
import { CALL_BYTES, HIGH_WATER_MARK, WorkMeter } from './work.ts';

/** Connects clients to a registry. */
export interface Transport {
  /**
   * Connects a client.
   * @param eager whether the client reads each write at once
   * @param opened called with the stream of the client
   * @param wrap wraps `res.write`, as middleware does
   */
  connect(
    registry: Registry,
    lastEventId: string,
    eager: boolean,
    opened: (stream: EventStream) => Link,
    wrap?: (link: Link | undefined, passOn: () => boolean) => boolean,
  ): Promise<void> | void;
  /** Delivers bytes that are in transit. */
  settle(): Promise<void> | void;
}

// Padding of an event that is larger than one write to the response.
const SNAPSHOT = '~'.repeat(20_000);

// Bytes that chunked transfer coding adds to a piece of the queue: the chunk size and two line
// ends.
const FRAMING_BYTES = 16;

// Maximum number of turns until all work must be done. Schedules need far fewer turns.
const MAX_TURNS = 2_000;

/** Counts over all schedules. A run without gaps and slow readers would prove little. */
export interface Tally extends ConsumerCounts {
  schedules: number;
  streams: number;
  resumed: number;
  gaps: number;
  asked: number;
  /** Number of calls of a `snapshot` at the start of a subscription. */
  snapshots: number;
  /** Number of subscriptions with `since: { last }`. */
  newest: number;
  slow: number;
  /** Number of acts of user code from inside the library. */
  acts: number;
  /** Number of streams whose channels ended. */
  ended: number;
  /** Number of requests that were answered 204. */
  noContent: number;
  /** Number of calls that were rejected because the channel had ended. */
  refused: number;
}

export interface WorldOptions {
  readonly transport: Transport;
  readonly isDistant: boolean;
  /** Factor for the size of padded events. A kernel buffers more than a fake response. */
  readonly scale?: number;
  readonly clock: { now: number };
  readonly tally: Tally;
  /** The meter of written bytes. Absent for sockets, where single writes cannot be observed. */
  readonly work?: WorkMeter;
}

/**
 * One run of a schedule: carries out the commands, lets all work finish, and checks every
 * connection.
 */
export class World {
  readonly #options: WorldOptions;
  readonly #schedule: Schedule;
  readonly #random: () => number;
  readonly #scene: Scene;
  readonly #application: Application;
  readonly #consumers: Consumers;

  constructor(schedule: Schedule, options: WorldOptions) {
    const { clock, scale = 1, work = new WorkMeter() } = options;
    this.#options = options;
    this.#schedule = schedule;
    this.#random = randomFrom(schedule.seed);
    this.#scene = new Scene(CLIENT_COUNT, this.#open(), work, clock, scale);
    this.#application = new Application(this.#scene);
    this.#consumers = new Consumers(this.#scene, this.#application.published);
  }

  async run(): Promise<void> {
    const { tally } = this.#options;
    const { userCode } = this.#application;
    const { faults, work, links } = this.#scene;
    tally.schedules++;
    userCode.observe(this.#schedule.observers);
    const onClose = (message: unknown): void => {
      const { stream, reason } = message as { stream: EventStream; reason: CloseReason };
      this.#application.noteEnd(stream, reason);
    };
    subscribe('res-sse:close', onClose);
    try {
      for (const command of this.#schedule.commands) await this.#carryOut(command);
      await this.#waitUntilIdle();
      await this.#finish();
    } finally {
      userCode.close();
      unsubscribe('res-sse:close', onClose);
      tally.noContent += this.#scene.noContent;
      tally.refused += this.#scene.refused;
      tally.acts += userCode.acts;
      this.#consumers.count(tally);
    }
    faults.push(...work.violations);
    if (faults.length > 0) throw new Violation(faults[0]);
    for (const link of links) this.#audit(link);
  }

  #audit(link: Link): void {
    const { registry, stream } = link;
    const { tally } = this.#options;
    tally.streams++;
    for (const { type } of link.parser.events) if (type === 'sse:gap') tally.gaps++;
    for (const mark of link.marks) {
      if (mark.kind === 'asked') tally[mark.isStart ? 'snapshots' : 'asked']++;
      if (mark.kind === 'called' && mark.record.start === 'newest') tally.newest++;
    }
    if (registry.truth.epoch === link.lastEventId.split('.')[0]) tally.resumed++;
    if (link.wasSlow) tally.slow++;
    if (link.closing?.reason === 'final' && !link.isFinishing) tally.ended++;
    audit({
      truth: registry.truth,
      isDistant: this.#options.isDistant,
      marks: link.marks.filter(({ at }) => at !== undefined),
      items: link.parser.events,
      directs: link.directs,
      receivedCount: link.receivedCount,
      isComplete: link.receivedCount === Infinity,
      hasDropped: stream.dropped > 0,
      byNumber: this.#application.published,
      closing: link.closing,
      wasDropped: link.wasDropped,
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
      case 'end channel': {
        this.#application.endChannel(command.channel, command.last, command.key);
        return;
      }
      case 'burst': {
        for (let event = 0; event < command.events; event++) {
          this.#application.publishTo(command.channel, command.size, false);
        }
        return;
      }
      case 'consume': {
        this.#consumers.start(command.consume);
        for (let event = 0; event < command.publishes; event++) {
          this.#application.publishTo(command.consume.channels[0]!, 'small', false);
        }
        return;
      }
      case 'take': {
        this.#consumers.take(command.which, command.count);
        return;
      }
      case 'stop': {
        this.#consumers.stop(command.which, command.how);
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
        return this.#openCrowd(command.streams, command.crowd);
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
        this.#noteTime();
        return;
      }
      case 'clear': {
        this.#scene.registry.channels
          .clear(command.channel)
          .catch((error: unknown) => this.#scene.reportFault(`clear: ${String(error)}`));
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
        // Network events and timers never run in the middle of application code.
        await microtasks();
        if (link?.isOpen === true) this.#byItself(link, command);
        await microtasks();
      }
    }
  }

  /** The clock has moved. Either the state of the channels or their events are read first. */
  #noteTime(): void {
    const { truth } = this.#scene.registry;
    if (truth.version % 2 === 0) truth.update();
    else {
      this.#scene.registry
        .expectStates()
        .catch((error: unknown) => this.#scene.reportFault(String(error)));
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
        link.pendingAnswers.shift()?.();
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
        // Like the stream monitor, write no heartbeat into a blocked stream.
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

  // Actions of clients.

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
        stream.signal.addEventListener('abort', () => this.#application.announceEnd(link));
      }
      this.#application.follow(link, follow);
      return link;
    };
    await this.#options.transport.connect(
      registry,
      lastEventId,
      eager,
      opened,
      wrap && this.#wrapperFor(client, wrap),
    );
  }

  #wrapperFor(
    client: { link: Link | undefined },
    wrap: Wrap,
  ): (link: Link | undefined, passOn: () => boolean) => boolean {
    // The first bytes are written before the transport has the link.
    return (link, passOn) => this.#application.userCode.write(link ?? client.link, wrap, passOn);
  }

  async #expectReason(link: Link): Promise<void> {
    const reason = await link.stream.closed;
    if (reason === 'error' && !link.mayFail) {
      this.#scene.reportFault('a stream ended with an error, but none of its callbacks throws');
    }
    if (reason === 'server' && !link.marks.some(({ kind }) => kind === 'ended')) {
      this.#scene.reportFault(
        "a stream ended with 'server', but the application has not closed it",
      );
    }
  }

  async #openCrowd(streams: number, crowd: Crowd): Promise<void> {
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
    link.wasDropped = true;
    link.wire.drop();
    this.#remember();
  }

  /** Updates the last event id of each client. A client keeps this id across connections. */
  #remember(): void {
    for (const client of this.#scene.clients) {
      if (client.link === undefined) continue;
      const { link } = client;
      const id = link.parser.events.slice(0, link.receivedCount).at(-1)?.lastEventId ?? '';
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
    const beyond = truth.head + (this.#scene.registry.distant === undefined ? 1 : 1_000) + back;
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

  // Turns of the event loop, and the end of a schedule.

  async #turn(): Promise<void> {
    const { registry, links, work } = this.#scene;
    registry.distant?.tick();
    this.#application.onTurnStart();
    const { acts } = this.#application.userCode;
    const slow = links.filter((link) => link.stream.bufferedAmount > HIGH_WATER_MARK);
    const before = slow.map(({ stream: { bufferedAmount, bytesFlushed } }) => ({
      bufferedAmount,
      bytesFlushed,
    }));
    await this.#options.transport.settle();
    await new Promise<void>((resolve) => void setImmediate(resolve));
    const hasActs = this.#schedule.presence || this.#application.userCode.acts > acts;
    for (const [index, link] of slow.entries()) {
      const { bufferedAmount, bytesFlushed } = before[index]!;
      link.wasSlow = true;
      if (
        !hasActs &&
        !link.isFinishing &&
        mustNotGrow(link) &&
        // A kernel takes bytes for some time after its reader has stopped to read.
        link.stream.bytesFlushed === bytesFlushed &&
        link.stream.bufferedAmount > bufferedAmount + FRAMING_BYTES
      ) {
        this.#scene.reportFault('the queue of a paused reader grows');
      }
    }
    this.#application.onTurnEnd();
    this.#consumers.onTurn();
    work.onTurnEnd();
  }

  /** Simulates a restart of the process: a new registry with a new log. */
  async #restart(): Promise<void> {
    for (const { link } of this.#scene.clients) if (link?.isOpen === true) this.#drop(link);
    for (const link of this.#scene.crowd.splice(0)) link.wire.drop();
    this.#consumers.stopAll();
    await this.#turn();
    this.#scene.registry = this.#open();
    this.#application.onTurnStart();
  }

  /**
   * Lets all work finish: all clients read, every `onGap` answers, and no new command runs. Then
   * checks the final state.
   */
  async #waitUntilIdle(): Promise<void> {
    const scene = this.#scene;
    if (!(await this.#waitUntilQuiet())) {
      scene.reportFault(
        `the streams do not become idle: ${JSON.stringify(scene.registry.channels.stats())}`,
      );
      return;
    }
    if (scene.open.some(({ wire }) => wire.isDirect !== undefined)) await this.#probeDirectWrites();
    await this.#runHeartbeat();
    checkAtRest(scene);
    this.#consumers.expectComplete();
  }

  /**
   * Runs turns until nothing is pending for several turns.
   * @returns false if this takes too many turns
   */
  async #waitUntilQuiet(): Promise<boolean> {
    // A crowd receives each frame in slices, and one frame after the other. A stream that waits for
    // its slice looks quiet.
    const requiredTurns = this.#scene.crowd.length === 0 ? 3 : 30;
    let quietTurns = 0;
    for (let turn = 0; quietTurns < requiredTurns; turn++) {
      if (turn > MAX_TURNS) return false;
      for (const link of this.#scene.open) {
        link.wire.resume();
        for (const answer of link.pendingAnswers.splice(0)) answer();
      }
      this.#consumers.release();
      await this.#turn();
      quietTurns = this.#isQuiet() ? quietTurns + 1 : 0;
    }
    return true;
  }

  #isQuiet(): boolean {
    const { registry, open } = this.#scene;
    if (registry.distant?.isQuiet === false || registry.channels.stats().behind > 0) return false;
    if (!this.#consumers.isQuiet) return false;
    return open.every(
      (link) =>
        link.wire.isEmpty &&
        link.stream.bufferedAmount === 0 &&
        link.following.every(({ subscription }) => subscription !== undefined),
    );
  }

  /**
   * Publishes two events to check which streams write directly to the socket. A stream may detect
   * with the first event that it can write directly.
   */
  async #probeDirectWrites(): Promise<void> {
    for (let probe = 0; probe < 2; probe++) {
      this.#application.publishTo('a', 'small', false);
      if (await this.#waitUntilQuiet()) continue;
      this.#scene.reportFault('the streams do not become idle after one more event');
      return;
    }
    checkDirect(this.#scene);
  }

  /**
   * Runs a last heartbeat. After the heartbeat every client knows the head of the log. If user code
   * publishes during the heartbeat, another heartbeat follows.
   */
  async #runHeartbeat(): Promise<void> {
    const { userCode } = this.#application;
    for (let acts = -1; acts < userCode.acts;) {
      acts = userCode.acts;
      for (const link of this.#scene.open) link.stream.onTick();
      if (await this.#waitUntilQuiet()) continue;
      this.#scene.reportFault('the streams do not become idle after a heartbeat');
      return;
    }
  }

  /** Disconnects all clients, and checks that no stream and no subscription remains. */
  async #finish(): Promise<void> {
    const scene = this.#scene;
    scene.isOver = true;
    const { channels, events } = scene.registry;
    const { open } = scene;
    if (this.#schedule.ending === 'registry') await this.#closeRegistry();
    this.#consumers.stopAll();
    for (const link of [...open, ...scene.crowd]) link.wire.drop();
    for (let turn = 0; turn < 50 && (turn < 2 || events.streams.size > 0); turn++) {
      await this.#turn();
    }
    this.#consumers.expectOver();
    // These clients received everything up to the disconnect.
    for (const link of open) if (link.stream.dropped === 0) link.receivedCount = Infinity;
    const { subscriptions } = channels.stats();
    if (subscriptions > 0 || channels.names().length > 0 || events.streams.size > 0) {
      scene.reportFault(`${subscriptions} subscriptions remain after all clients have left`);
    }
  }

  async #closeRegistry(): Promise<void> {
    const { registry, links, crowd } = this.#scene;
    const closing = { isDone: false };
    this.#consumers.onClosing();
    void noteEnd(registry.channels.close(), closing);
    for (let turn = 0; turn < MAX_TURNS && !closing.isDone; turn++) await this.#turn();
    if (!closing.isDone) this.#scene.reportFault('channels.close() does not resolve');
    this.#consumers.expectOver();
    const followers = links
      .filter(({ following }) => following.some(({ hasLeft }) => !hasLeft))
      .concat(crowd);
    const { length } = followers.filter(
      (link) => link.registry === registry && link.stream.readyState === 1,
    );
    if (length > 0) {
      this.#scene.reportFault(
        `the registry is closed, but ${length} streams of its channels are open`,
      );
    }
  }
}

async function noteEnd(promise: Promise<unknown>, note: { isDone: boolean }): Promise<void> {
  await promise;
  note.isDone = true;
}

/**
 * Whether the queue of a slow reader must not grow: the stream then keeps a cursor and reads the
 * log later. Events without history have no cursor and are queued. With several subscriptions a
 * checkpoint that steps back may be queued.
 */
function mustNotGrow({ wire, following }: Link): boolean {
  return (
    wire.isPaused && following.length === 1 && !following[0]!.record.options.channels.includes('x')
  );
}

/** Runs all microtasks and `process.nextTick` callbacks that are pending in this turn. */
function microtasks(): Promise<void> {
  return new Promise((resolve) => {
    process.nextTick(resolve);
  });
}
