/**
 * What a node hears of the log, and how it gets whole again. While it is whole, all that comes on the line is in order and
 * nothing is missing. After a hole, a broken line, a probe that is not heard or another log it reads from Redis what it has
 * missed, once for all streams, and is whole again when it has also heard itself on the line.
 *
 * | state      | entered when                                         | left when
 * | ---------- | ---------------------------------------------------- | ------------------------------------------
 * | connecting | the node is made                                     | an attempt to heal ends well: open
 * | open       | an attempt to heal ends well                         | a hole, a broken line, a deaf probe, another log: broken
 * | broken     | something may have been missed (`#break`)            | an attempt to heal ends well: open
 * | closed     | `close()`                                            | never
 *
 * `run()` makes one attempt to heal after the other until one ends with the state `'open'`, waits until that is over, and
 * begins again. An attempt either opens or throws: whatever ends it (its line breaks, Redis refuses or does not answer, the
 * watchdog, `close()`) aborts `#attempt`, and so each wait within it.
 *
 *     attempt:  connect ─ subscribe ─┬─ look (nonce) ─ look … look ─┬─ take what came early ─ open
 *                                    └──── too much came early ◀────┘
 */
import { randomBytes } from 'node:crypto';
import { setMaxListeners } from 'node:events';
import { setImmediate as nextTurn, setTimeout as delay } from 'node:timers/promises';
import { debug, diagnostics } from '../../common/diagnostics.ts';
import type { BrokerState } from '../broker.ts';
import { isReply, SubscriberConnection, type RedisConnection } from './redis-connection.ts';
import { EarlyMessages, type LogMessage } from './early-messages.ts';
import { parseArrival, parseHeader, type SequenceHeader } from './message-format.ts';
import { ChannelInterest, type InterestEntry } from './channel-interest.ts';
import { withLimits } from '../../common/async.ts';
import { SequenceTracker, type SequenceTrackerHost } from './sequence-tracker.ts';
import {
  MAX_ANSWER_BYTES,
  type ChannelSnapshot,
  type LogSnapshot,
  type ChannelQuery,
  type LogClient,
  type Topics,
} from './log-client.ts';

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
  /** A channel that was used within this time keeps its place in memory, and what does not fit is not tried again. @defaultValue `10_000` */
  readonly inUse?: number | undefined;
  /** Time without a connection after which somebody is warned. @defaultValue `5_000` */
  readonly unreachable?: number | undefined;
}

/** What the ear asks and tells. */
export interface LogSubscriptionHost extends Omit<SequenceTrackerHost, 'expects'> {
  /** Offset of the newest event of the channel that is known here. */
  newest(channel: string): number | undefined;
  /** The state of a channel that is listened to from now on. */
  learn(channel: string, answer: ChannelSnapshot): void;
  /**
   * What the log says after something may have been missed; the answers are for these channels.
   * @param head the place up to which the log is read
   * @returns how many events were
   */
  mend(channels: readonly string[], look: LogSnapshot, head: number): number;
  /** A channel is not listened to any more. */
  forget(channel: string): void;
  /** An event of a channel without history. */
  passed(channel: string, body: string): void;
  /** It is whole, or has heard of more. */
  progressed(): void;
  /** Something may be missing. */
  interrupted(): void;
  /** The state has not been `'open'` for so long. */
  unreachable(ms: number): void;
  report(error: unknown): void;
}

// Channels in one question, and in one command that subscribes.
const CHANNELS_PER_QUESTION = 1_000;

// So many questions are on their way at a time while a node heals.
const QUESTIONS_AT_A_TIME = 4;

// Bytes of events in the answer to one of them: together no more than one answer may have, because they share a connection and a time.
const ANSWER_BYTES = MAX_ANSWER_BYTES / QUESTIONS_AT_A_TIME;

// Early messages that are taken in one turn of the event loop.
const EARLY_PER_TURN = 500;

export class LogSubscription {
  readonly listened: ChannelInterest = new ChannelInterest();
  readonly spine: SequenceTracker;
  state: BrokerState = 'connecting';
  readonly #connection: RedisConnection;
  readonly #store: LogClient;
  readonly #timing: Timing;
  readonly #host: LogSubscriptionHost;
  readonly #end = new AbortController();
  // Who waits to hear a probe.
  readonly #nonces = new Map<string, (header: SequenceHeader) => void>();
  #topics: Topics | undefined;
  #line: SubscriberConnection | undefined;
  // The attempt to heal that is under way.
  #attempt: AbortController | undefined;
  // What has come since the place that the attempt reads up to.
  #early: EarlyMessages | undefined;
  #heardAt = 0;
  #isProbing = false;
  #isSubscribing = false;
  #isChecking = false;
  #mustCheck = false;
  #wake: (() => void) | undefined;
  #timer: NodeJS.Timeout | undefined;
  // Since when the state is not 'open'.
  #brokenAt = performance.now();
  // Ticks since an attempt has last got any further.
  #idleTicks = 0;

  constructor(
    connection: RedisConnection,
    store: LogClient,
    timing: Timing,
    host: LogSubscriptionHost,
  ) {
    // As many wait as there are readers, and none of them leaks.
    setMaxListeners(0, this.#end.signal);
    this.#connection = connection;
    this.#store = store;
    this.#timing = timing;
    this.#host = host;
    this.spine = new SequenceTracker({
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
    this.#timer = setInterval(() => this.#tick(), this.#tickMs).unref();
    let failures = 0;
    while (!this.#isClosed) {
      try {
        await this.#heal();
        const since = performance.now();
        await this.#untilBroken();
        failures = performance.now() - since > this.#timing.wait.max ? 0 : failures + 1;
      } catch (error) {
        failures++;
        if (this.#isClosed) break;
        // Where Redis itself has said no, the line is well.
        if (!isReply(error)) this.#hangUp();
        this.#host.report(error);
      }
      // The first time at once.
      if (failures > 1) await this.pause(failures - 1);
      this.#idleTicks = 0;
    }
  }

  close(): void {
    this.state = 'closed';
    this.#end.abort(new Error('the broker is closed'));
    this.#attempt?.abort(this.#end.signal.reason);
    clearInterval(this.#timer);
    this.#hangUp();
    this.listened.close();
    this.#wake?.();
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

  get #isClosed(): boolean {
    return this.#end.signal.aborted;
  }

  get #tickMs(): number {
    return Math.min(this.#timing.probe, this.#timing.linger) / 4;
  }

  /** Resolves when the state is not `'open'`, at once if it is not now. */
  async #untilBroken(): Promise<void> {
    while (this.isOpen) {
      await new Promise<void>((resolve) => {
        this.#wake = resolve;
      });
    }
  }

  /** One attempt: ends with the state `'open'`, or rejects. */
  async #heal(): Promise<void> {
    const began = performance.now();
    const attempt = new AbortController();
    this.#attempt = attempt;
    try {
      const line = await this.#connected(attempt.signal);
      const listenings = this.listened.all();
      await this.#subscribe(
        line,
        listenings.filter(({ isSubscribed }) => !isSubscribed),
        attempt.signal,
      );
      const events = await this.#readAll(line, listenings, attempt.signal);
      // From here on nothing is awaited, so nothing else can come before the node is open.
      for (const listening of listenings) {
        // Meanwhile nobody may have wanted it any more.
        if (this.listened.get(listening.channel) === listening) this.listened.settle(listening);
        else if (this.listened.get(listening.channel) === undefined) {
          this.#host.forget(listening.channel);
        }
      }
      attempt.signal.throwIfAborted();
      this.#open();
      const ms = performance.now() - began;
      const { epoch } = this.spine;
      debug(
        'heal %s: %d channels, %d events, %d ms',
        epoch,
        listenings.length,
        events,
        Math.round(ms),
      );
      if (diagnostics.heal.hasSubscribers) {
        diagnostics.heal.publish({ epoch, channels: listenings.length, entries: events, ms });
      }
    } finally {
      this.#attempt = undefined;
      this.#early = undefined;
      // Nothing of it goes on alone.
      attempt.abort(new Error('the attempt is over'));
    }
  }

  #open(): void {
    this.state = 'open';
    this.#heardAt = performance.now();
    this.#early = undefined;
    this.#host.progressed();
    void this.#subscribeMore();
  }

  /** A step of the attempt, which the end of the attempt ends. */
  async #step<T>(step: Promise<T>, signal: AbortSignal): Promise<T> {
    const result = await withLimits(step, { signal });
    this.#idleTicks = 0;
    return result;
  }

  async #connected(signal: AbortSignal): Promise<SubscriberConnection> {
    if (this.#line !== undefined) return this.#line;
    const { timeout } = this.#timing;
    const topics = await withLimits(this.#store.topics(signal, true), {
      signal,
      timeoutMs: timeout,
    });
    const line = new SubscriberConnection(this.#connection, timeout, (text, topic) =>
      this.#hear(topic, text),
    );
    this.#topics = topics;
    this.#line = line;
    this.listened.reset();
    line.broken.addEventListener(
      'abort',
      () => {
        if (this.#line !== line) return;
        this.#hangUp();
        if (this.isOpen) this.#break(line.broken.reason);
        else this.#attempt?.abort(line.broken.reason);
      },
      { once: true },
    );
    try {
      await this.#step(line.connect(), signal);
      await this.#step(line.subscribe([topics.spine]), signal);
    } catch (error) {
      // The next attempt must not take it for one that listens.
      if (this.#line === line) this.#hangUp();
      throw error;
    }
    return line;
  }

  #hangUp(): void {
    const line = this.#line;
    this.#line = undefined;
    line?.close();
  }

  #break(error: unknown): void {
    this.state = 'broken';
    this.#brokenAt = performance.now();
    this.#idleTicks = 0;
    this.#host.report(error);
    this.#host.interrupted();
    this.#wake?.();
  }

  async #subscribe(
    line: SubscriberConnection,
    listenings: readonly InterestEntry[],
    signal: AbortSignal,
  ): Promise<void> {
    const topics = this.#topics as Topics;
    for (let index = 0; index < listenings.length; index += CHANNELS_PER_QUESTION) {
      const some = listenings.slice(index, index + CHANNELS_PER_QUESTION);
      await this.#step(line.subscribe(some.map(({ channel }) => topics.topic(channel))), signal);
      for (const listening of some) listening.isSubscribed = true;
      // Those that nobody wants any more would stay subscribed to.
      const gone = some.filter(({ channel }) => this.listened.get(channel) === undefined);
      if (gone.length > 0) line.unsubscribe(gone.map(({ channel }) => topics.topic(channel)));
    }
  }

  /**
   * Reads what these channels hold beyond what is known here, and then takes what came on the line meanwhile. Where that was
   * too much to keep, the channels in which something happened are read once more, and so on: each round is shorter.
   * @returns how many events were read
   */
  async #readAll(
    line: SubscriberConnection,
    listenings: readonly InterestEntry[],
    signal: AbortSignal,
  ): Promise<number> {
    let events = 0;
    let toRead: readonly string[] | EarlyMessages = listenings.map(({ channel }) => channel);
    for (;;) {
      const { early, read } = await this.#readUp(line, toRead, signal);
      events += read;
      await this.#takeEarly(early, signal);
      if (early.changed === undefined) return events;
      debug('heal: %d channels and more once more', early.changed.size);
      toRead = early;
    }
  }

  /**
   * Reads up to where the log stands now.
   * @param toRead the channels, or the messages of the round before, which name them: they go on naming channels until this round
   * knows its place in the log, so they are asked for them only then
   */
  async #readUp(
    line: SubscriberConnection,
    toRead: readonly string[] | EarlyMessages,
    signal: AbortSignal,
  ): Promise<{ early: EarlyMessages; read: number }> {
    const questions = (
      channels: readonly string[],
      index: number,
      till: number | undefined,
    ): ChannelQuery[] =>
      channels
        .slice(index, index + CHANNELS_PER_QUESTION)
        .map((channel) => ({ channel, after: this.#host.newest(channel), till }));
    const nonce = randomBytes(9).toString('base64url');
    // Heard on the line, it shows where in what comes there the answer belongs, and that the line carries.
    const heard = this.#heard(nonce, line, (header) => {
      // What came before is in the answer.
      this.#early = new EarlyMessages(header.epoch, header.head, (channel) =>
        this.spine.expects(channel),
      );
    });
    const known = toRead instanceof EarlyMessages ? [] : toRead;
    const [first] = await this.#step(
      Promise.all([this.#store.look(questions(known, 0, undefined), nonce), heard]),
      signal,
    );
    const { epoch, head } = first;
    const early = this.#early as EarlyMessages;
    if (toRead instanceof EarlyMessages && toRead.problem !== undefined) {
      throw new Error(toRead.problem);
    }
    // What the rounds before have read is of another log.
    if (toRead instanceof EarlyMessages && toRead.epoch !== epoch) {
      throw new Error('the log was lost while it was read');
    }
    const channels = toRead instanceof EarlyMessages ? [...(toRead.changed ?? [])] : toRead;
    let read = this.#host.mend(channels.slice(0, first.answers.length), first, head);
    for (
      let next = first.answers.length;
      next < channels.length;
      next += QUESTIONS_AT_A_TIME * CHANNELS_PER_QUESTION
    ) {
      // Several at a time: while a round lasts, what is published adds to the next one.
      const starts = Array.from(
        { length: QUESTIONS_AT_A_TIME },
        (_, index) => next + index * CHANNELS_PER_QUESTION,
      );
      const asked = starts.filter((start) => start < channels.length);
      const looks = await this.#step(
        Promise.all(
          asked.map((start) =>
            this.#store.look(questions(channels, start, head), '', ANSWER_BYTES),
          ),
        ),
        signal,
      );
      for (const [index, look] of looks.entries()) {
        if (look.epoch !== epoch) throw new Error('the log was lost while it was read');
        const start = asked[index] as number;
        read += this.#host.mend(channels.slice(start, start + CHANNELS_PER_QUESTION), look, head);
      }
    }
    if (early.changed === undefined) this.spine.begin(epoch, head);
    return { early, read };
  }

  /** Takes what has come since, as long as it is all there. */
  async #takeEarly(early: EarlyMessages, signal: AbortSignal): Promise<void> {
    for (;;) {
      for (let count = 0; count < EARLY_PER_TURN && early.changed === undefined; count++) {
        const heard = early.take();
        if (heard === undefined) return;
        const problem = this.#take(heard);
        if (problem !== undefined) throw new Error(problem);
      }
      if (early.problem !== undefined) throw new Error(early.problem);
      if (early.changed !== undefined) return;
      await this.#step(nextTurn(), signal);
    }
  }

  /** Subscribes to what has been asked for since. */
  async #subscribeMore(): Promise<void> {
    if (this.#isSubscribing || !this.isOpen || !this.listened.hasUnknown) return;
    this.#isSubscribing = true;
    const line = this.#line as SubscriberConnection;
    const isSame = (): boolean => this.isOpen && this.#line === line;
    let refusals = 0;
    try {
      while (isSame() && this.listened.hasUnknown) {
        try {
          await this.#learnSome(line, isSame);
          refusals = 0;
        } catch (error) {
          // Where Redis itself has said no, the others are still heard.
          if (!isReply(error)) throw error;
          this.#host.report(error);
          await this.pause(++refusals);
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
    if (this.isOpen) void this.#subscribeMore();
  }

  async #learnSome(line: SubscriberConnection, isSame: () => boolean): Promise<void> {
    const some = this.listened.unknown(CHANNELS_PER_QUESTION);
    await this.#subscribe(
      line,
      some.filter(({ isSubscribed }) => !isSubscribed),
      line.broken,
    );
    const questions = some.map(({ channel }) => ({ channel, after: undefined }));
    const { epoch, answers } = await withLimits(this.#store.look(questions), {
      signal: line.broken,
    });
    if (!isSame()) return;
    if (epoch !== this.spine.epoch) {
      this.mistrust(`the log is another: ${epoch} instead of ${this.spine.epoch}`);
      return;
    }
    for (const [index, listening] of some.entries()) {
      // Healing may have been faster, or nobody wants it any more.
      if (listening.isKnown || this.listened.get(listening.channel) !== listening) continue;
      this.#host.learn(listening.channel, answers[index] as ChannelSnapshot);
      this.listened.settle(listening);
    }
  }

  #hear(topic: string, text: string): void {
    this.#heardAt = performance.now();
    const heard = this.#read(topic, text);
    if (heard === undefined) return;
    if (!this.isOpen) {
      this.#early?.add(heard);
      return;
    }
    const problem = this.#take(heard);
    if (problem !== undefined) this.#break(new Error(problem));
    else if ('header' in heard) this.#host.progressed();
  }

  #read(topic: string, text: string): LogMessage | undefined {
    const topics = this.#topics as Topics;
    if (topic !== topics.spine) {
      const channel = topics.channelOf(topic);
      const arrival = parseArrival(text);
      if (arrival === undefined) {
        this.#host.report(new Error(`an event of ${channel} that cannot be read`));
      } else if (arrival.stamp === undefined) this.#host.passed(channel, arrival.body);
      else return { channel, arrival };
      return undefined;
    }
    const header = parseHeader(text);
    if (header === undefined) return { problem: 'a header that cannot be read' };
    this.#nonces.get(header.nonce)?.(header);
    return { header };
  }

  /** @returns what is wrong with it */
  #take(heard: LogMessage): string | undefined {
    if ('problem' in heard) return heard.problem;
    if ('arrival' in heard) {
      const problem = this.spine.arrive(heard.channel, heard.arrival);
      if (problem !== undefined) this.#host.report(new Error(problem));
      return undefined;
    }
    if (heard.header.epoch === this.spine.epoch) return this.spine.hear(heard.header);
    void this.#checkLog(heard.header.epoch);
    return undefined;
  }

  /** A header of another log has come: either ours was lost, or somebody else uses the same names. */
  async #checkLog(other: string): Promise<void> {
    this.#mustCheck = true;
    if (this.#isChecking) return;
    this.#isChecking = true;
    try {
      for (let times = 1; this.#mustCheck && !this.#isClosed; times++) {
        this.#mustCheck = false;
        const { epoch } = await this.#store.look([]);
        if (epoch === this.spine.epoch) {
          this.#host.report(
            new Error(
              `a message of another log, ${other}, was passed over; does another registry use this prefix?`,
            ),
          );
        } else {
          this.mistrust(`the log is another: ${epoch} instead of ${this.spine.epoch}`);
          return;
        }
        // One look in a while, however many come.
        await this.pause(times);
      }
    } catch (error) {
      // The next probe shows it.
      if (!this.#isClosed) this.#host.report(error);
    } finally {
      this.#isChecking = false;
    }
  }

  /** Resolves when the probe is heard. */
  async #heard(
    nonce: string,
    line: SubscriberConnection,
    onHeard?: (header: SequenceHeader) => void,
  ): Promise<void> {
    const heard = new Promise<void>((resolve) => {
      this.#nonces.set(nonce, (header) => {
        onHeard?.(header);
        resolve();
      });
    });
    try {
      await withLimits(heard, {
        signal: line.broken,
        timeoutMs: this.#timing.timeout,
        createTimeoutError: deaf,
      });
    } finally {
      this.#nonces.delete(nonce);
    }
  }

  #tick(): void {
    const now = performance.now();
    const expired = this.listened.expire(now - this.#timing.linger);
    for (const { channel } of expired) this.#host.forget(channel);
    const topics = expired.flatMap(({ channel, isSubscribed }) => {
      return isSubscribed && this.#topics !== undefined ? [this.#topics.topic(channel)] : [];
    });
    if (topics.length > 0) this.#line?.unsubscribe(topics);
    if (!this.isOpen) this.#watch();
    else if (!this.#isProbing && now - this.#heardAt >= this.#timing.probe) void this.#probe();
  }

  /**
   * Each step of an attempt and each pause between two has its time, so a state other than `'open'` in which nothing goes on
   * is a mistake of ours. It is told, and begun anew. Ticks are counted, not ms: the process may have been stopped.
   */
  #watch(): void {
    const { timeout, wait, unreachable = 5_000 } = this.#timing;
    if (performance.now() - this.#brokenAt >= unreachable) this.#host.unreachable(unreachable);
    if (++this.#idleTicks <= Math.ceil((2 * timeout + wait.max) / this.#tickMs) + 2) return;
    this.#idleTicks = 0;
    const error = new Error(`the node was '${this.state}' and nothing went on; it connects anew`);
    this.#host.report(error);
    this.#hangUp();
    this.#attempt?.abort(error);
    this.#wake?.();
  }

  /** Whether what is said on the spine comes here: a line may be up and deaf, or have lost the last that was said. */
  async #probe(): Promise<void> {
    const line = this.#line as SubscriberConnection;
    this.#isProbing = true;
    const nonce = randomBytes(9).toString('base64url');
    const [looked, heard] = await Promise.allSettled([
      this.#store.look([], nonce),
      this.#heard(nonce, line),
    ]);
    this.#isProbing = false;
    if (this.#line !== line || !this.isOpen || heard.status === 'fulfilled') return;
    if (looked.status === 'rejected' && isReply(looked.reason)) {
      // Redis has said no, so there was nothing to hear.
      this.#host.report(looked.reason);
      this.#heardAt = performance.now();
      return;
    }
    this.#hangUp();
    this.#break(looked.status === 'rejected' ? looked.reason : heard.reason);
  }
}

function deaf(): Error {
  return new Error('the connection to Redis is up, but nothing comes');
}
