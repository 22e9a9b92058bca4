/**
 * What a node hears of the log, and how it gets whole again. While it is whole, all that comes on the line is in order and
 * nothing is missing. After a hole, a broken line, a probe that is not heard or another log it reads from Redis what it has
 * missed, once for all streams, and is whole again when it has also heard itself on the line.
 */
import { randomBytes } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { setTimeout as delay } from 'node:timers/promises';
import { debug, diagnostics } from '../../diagnostics.ts';
import type { BrokerState } from '../broker.ts';
import { Line, type Connection } from './client.ts';
import { parseArrival, parseHeader, type Arrival, type Header } from './format.ts';
import { Listened, type Listening } from './listened.ts';
import { Spine, type SpineHost } from './spine.ts';
import type { Answer, Look, Store, Topics } from './store.ts';

/** Times in ms. */
export interface Timing {
  /** How long Redis has to answer. */
  readonly timeout: number;
  /** Silence on the spine after which a probe is sent. */
  readonly probe: number;
  /** How long a channel is listened to after its last stream has left: clients come back. */
  readonly linger: number;
  /** Waits between attempts, doubled each time. */
  readonly wait: { readonly min: number; readonly max: number };
}

/** What the ear asks and tells. */
export interface EarHost extends Omit<SpineHost, 'expects'> {
  /** Offset of the newest event of the channel that is known here. */
  newest(channel: string): number | undefined;
  /** The state of a channel that is listened to from now on. */
  learn(channel: string, answer: Answer): void;
  /** What the log says after something may have been missed; the answers are for these channels. @returns how many events were */
  mend(channels: readonly string[], look: Look): number;
  /** A channel is not listened to any more. */
  forget(channel: string): void;
  /** An event of a channel without history. */
  passed(channel: string, body: string): void;
  /** It is whole, or has heard of more. */
  progressed(): void;
  /** Something may be missing. */
  interrupted(): void;
  report(error: unknown): void;
}

// So many messages that come while a node heals; after more it begins again.
const MOST_EARLY = 10_000;

// So many channels in one question.
const SOME = 1_000;

type Heard = { readonly header: Header } | { readonly channel: string; readonly arrival: Arrival } | { readonly problem: string };

export class Ear {
  readonly listened: Listened = new Listened();
  readonly spine: Spine;
  state: BrokerState = 'connecting';
  readonly #connection: Connection;
  readonly #store: Store;
  readonly #timing: Timing;
  readonly #host: EarHost;
  readonly #end = new AbortController();
  // Who waits to hear a probe.
  readonly #nonces = new Map<string, () => void>();
  #topics: Topics | undefined;
  #line: Line | undefined;
  // What has come since the log was read, until that is taken in.
  #early: Heard[] = [];
  #heardAt = 0;
  #isProbing = false;
  #isSubscribing = false;
  #wake: () => void = () => {};
  #timer: NodeJS.Timeout | undefined;

  constructor(connection: Connection, store: Store, timing: Timing, host: EarHost) {
    // As many wait as there are readers, and none of them leaks.
    setMaxListeners(0, this.#end.signal);
    this.#connection = connection;
    this.#store = store;
    this.#timing = timing;
    this.#host = host;
    this.spine = new Spine({
      expects: (channel) => this.listened.get(channel)?.isSubscribed === true,
      appended: (entry, stamp) => host.appended(entry, stamp),
      cleared: (channel, trimmed) => host.cleared(channel, trimmed),
    });
  }

  get isOpen(): boolean {
    return this.state === 'open';
  }

  /** Listens until it is closed. */
  async run(): Promise<void> {
    this.#timer = setInterval(() => this.#tick(), Math.min(this.#timing.probe, this.#timing.linger) / 4).unref();
    let failures = 0;
    while (!this.#end.signal.aborted) {
      const broken = new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
      try {
        await this.#heal();
        const since = performance.now();
        await broken;
        failures = performance.now() - since > this.#timing.wait.max ? 0 : failures + 1;
      } catch (error) {
        failures++;
        this.#hangUp();
        if (this.state === 'open') this.#break(error);
        else if (!this.#end.signal.aborted) this.#host.report(error);
      }
      // The first time at once.
      if (failures > 1) await this.pause(failures - 1);
    }
  }

  close(): void {
    this.state = 'closed';
    this.#end.abort();
    clearInterval(this.#timer);
    this.#hangUp();
    this.listened.close();
    this.#wake();
  }

  /** Waits, the longer the more often it was in vain; not beyond the end. */
  async pause(failures: number): Promise<void> {
    const { min, max } = this.#timing.wait;
    const ms = Math.min(max, min * 2 ** (failures - 1)) * (0.5 + Math.random() / 2);
    await delay(ms, undefined, { signal: this.#end.signal, ref: false }).catch(() => {});
  }

  /** From here on events of the channel come: at once where nothing is returned. */
  listen(channel: string): Promise<void> | undefined {
    const listening = this.listened.want(channel);
    if (listening.isKnown) return undefined;
    // With others that are asked for now.
    queueMicrotask(() => void this.#subscribeMore());
    return listening.known;
  }

  /** What was heard is not all: the node heals. */
  mistrust(reason: string): void {
    if (this.isOpen) this.#break(new Error(reason));
  }

  async #heal(): Promise<void> {
    const began = performance.now();
    this.#early = [];
    const line = await this.#connected();
    await this.#subscribe(line, () => this.listened.unsubscribed());
    const listenings = this.listened.all().filter(({ isSubscribed }) => isSubscribed);
    const channels = listenings.map(({ channel }) => channel);
    const questions = channels.map((channel) => ({ channel, after: this.#host.newest(channel) }));
    const nonce = randomBytes(9).toString('base64url');
    // Heard on the line, it shows where in what comes there the answer belongs, and that the line carries.
    const [first] = await Promise.all([this.#store.look(questions.slice(0, SOME), nonce), this.#heard(nonce, line)]);
    const answers = [...first.answers];
    for (let index = SOME; index < questions.length; index += SOME) {
      const some = questions.slice(index, index + SOME);
      const next = await this.#store.look(some.map(({ channel, after }) => ({ channel, after, till: first.head })));
      if (next.epoch !== first.epoch) throw new Error('the log was lost while it was read');
      answers.push(...next.answers);
    }
    // Since then it may have broken again.
    if (this.#line !== line || this.#end.signal.aborted) return;
    const entries = this.#host.mend(channels, { ...first, answers });
    this.spine.begin(first.epoch, first.head);
    for (const listening of listenings) {
      // Meanwhile nobody may have wanted it any more.
      if (this.listened.get(listening.channel) === listening) this.listened.settle(listening);
      else this.#host.forget(listening.channel);
    }
    this.#open();
    const ms = performance.now() - began;
    debug('heal %s: %d channels, %d events, %d ms', first.epoch, channels.length, entries, Math.round(ms));
    if (diagnostics.heal.hasSubscribers) diagnostics.heal.publish({ epoch: first.epoch, channels: channels.length, entries, ms });
  }

  #open(): void {
    this.state = 'open';
    this.#heardAt = performance.now();
    const early = this.#early;
    this.#early = [];
    for (const heard of early) if (this.isOpen) this.#take(heard);
    if (!this.isOpen) return;
    this.#host.progressed();
    void this.#subscribeMore();
  }

  async #connected(): Promise<Line> {
    if (this.#line !== undefined) return this.#line;
    const line = new Line(this.#connection, this.#timing.timeout, (text, topic) => this.#hear(topic, text));
    this.#line = line;
    this.listened.reset();
    await line.connect();
    this.#topics = await this.#store.topics(undefined, true);
    await line.subscribe([this.#topics.spine]);
    line.broken.catch((error: unknown) => {
      if (this.#line !== line) return;
      this.#hangUp();
      if (this.isOpen) this.#break(error);
    });
    return line;
  }

  #hangUp(): void {
    this.#line?.close();
    this.#line = undefined;
  }

  #break(error: unknown): void {
    this.state = 'broken';
    this.#early = [];
    this.#host.report(error);
    this.#host.interrupted();
    this.#wake();
  }

  /** Subscribes until there are none left, some at a time. */
  async #subscribe(line: Line, next: () => Listening[]): Promise<void> {
    for (let some = next().slice(0, SOME); some.length > 0; some = next().slice(0, SOME)) {
      await line.subscribe(some.map(({ channel }) => (this.#topics as Topics).topic(channel)));
      for (const listening of some) listening.isSubscribed = true;
    }
  }

  /** Subscribes to what has been asked for since. */
  async #subscribeMore(): Promise<void> {
    if (this.#isSubscribing || !this.isOpen) return;
    this.#isSubscribing = true;
    const line = this.#line as Line;
    const isSame = (): boolean => this.isOpen && this.#line === line;
    try {
      for (let some = this.listened.unknown(); some.length > 0 && isSame(); some = this.listened.unknown()) {
        const asked = some.slice(0, SOME);
        await this.#subscribe(line, () => asked.filter(({ isSubscribed }) => !isSubscribed));
        const { epoch, answers } = await this.#store.look(asked.map(({ channel }) => ({ channel, after: undefined })));
        if (!isSame()) break;
        if (epoch !== this.spine.epoch) {
          this.mistrust(`the log is another: ${epoch} instead of ${this.spine.epoch}`);
          break;
        }
        for (const [index, listening] of asked.entries()) {
          // Healing may have been faster, or nobody wants it any more.
          if (listening.isKnown || this.listened.get(listening.channel) !== listening) continue;
          this.#host.learn(listening.channel, answers[index] as Answer);
          this.listened.settle(listening);
        }
      }
    } catch (error) {
      if (isSame()) {
        this.#hangUp();
        this.#break(error);
      }
    } finally {
      this.#isSubscribing = false;
    }
    // Asked for while it was stuck on a line that is no more.
    if (this.isOpen && this.listened.unknown().length > 0) void this.#subscribeMore();
  }

  #hear(topic: string, text: string): void {
    this.#heardAt = performance.now();
    const heard = this.#read(topic, text);
    if (heard === undefined) return;
    if (this.isOpen) {
      this.#take(heard);
    } else if (this.#early.push(heard) > MOST_EARLY) {
      this.#host.report(new Error('more comes than can be taken in while the node heals'));
      this.#hangUp();
    }
  }

  #read(topic: string, text: string): Heard | undefined {
    if (topic !== this.#topics?.spine) {
      const channel = (this.#topics as Topics).channelOf(topic);
      const arrival = parseArrival(text);
      if (arrival === undefined) this.#host.report(new Error(`an event of ${channel} that cannot be read`));
      else if (arrival.stamp === undefined) this.#host.passed(channel, arrival.body);
      else return { channel, arrival };
      return undefined;
    }
    const header = parseHeader(text);
    if (header === undefined) return { problem: 'a header that cannot be read' };
    const hear = this.#nonces.get(header.nonce);
    if (hear !== undefined) {
      hear();
      // What came before is in the answer; if the node heals.
      this.#early = [];
    }
    return { header };
  }

  #take(heard: Heard): void {
    if ('arrival' in heard) {
      const problem = this.spine.arrive(heard.channel, heard.arrival);
      if (problem !== undefined) this.#host.report(new Error(problem));
      return;
    }
    const problem = 'problem' in heard ? heard.problem : this.spine.hear(heard.header);
    if (problem === undefined) this.#host.progressed();
    else this.#break(new Error(problem));
  }

  /** Resolves when the probe is heard. */
  async #heard(nonce: string, line: Line): Promise<void> {
    let timer: NodeJS.Timeout | undefined;
    const isDeaf = new Promise<never>((_, reject) => {
      timer = setTimeout(() => reject(new Error('the connection to Redis is up, but nothing comes')), this.#timing.timeout);
    });
    const heard = new Promise<void>((resolve) => {
      this.#nonces.set(nonce, resolve);
    });
    try {
      await Promise.race([heard, isDeaf, line.broken]);
    } finally {
      clearTimeout(timer);
      this.#nonces.delete(nonce);
    }
  }

  #tick(): void {
    const now = performance.now();
    const expired = this.listened.expire(now - this.#timing.linger);
    for (const { channel } of expired) this.#host.forget(channel);
    const topics = expired
      .filter(({ isSubscribed }) => isSubscribed)
      .map(({ channel }) => (this.#topics as Topics).topic(channel));
    if (topics.length > 0) this.#line?.unsubscribe(topics);
    if (this.isOpen && !this.#isProbing && now - this.#heardAt >= this.#timing.probe) void this.#probe();
  }

  /** Whether what is said on the spine comes here: a line may be up and deaf, or have lost the last that was said. */
  async #probe(): Promise<void> {
    const line = this.#line as Line;
    this.#isProbing = true;
    try {
      const nonce = randomBytes(9).toString('base64url');
      await Promise.all([this.#store.look([], nonce), this.#heard(nonce, line)]);
    } catch (error) {
      if (this.#line === line && this.isOpen) {
        this.#hangUp();
        this.#break(error);
      }
    } finally {
      this.#isProbing = false;
    }
  }
}
