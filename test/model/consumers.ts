/** The consumers of `channels.follow()` in a schedule: fast and slow ones, and those that leave. */
import type { ChannelEvent } from '../../src/log/log-entry.ts';
import type { Gap } from '../../src/index.ts';
import { ConsumerLedger } from './consumer-ledger.ts';
import type { Registry } from './registry.ts';
import type { ConsumeOptions } from './schedule.ts';
import type { Scene } from './scene.ts';
import { sinceOf, startOf } from './starts.ts';
import { Violation, type PublishedEvent } from './truth.ts';
import { HIGH_WATER_MARK } from './work.ts';

// Number of turns after which a remote broker has answered two questions, one after the other.
const MAX_START_TURNS = 30;

/** Counts of what happened to consumers. */
export interface ConsumerCounts {
  /** Number of consumers. */
  consumers: number;
  /** Number of events that they have received. */
  consumed: number;
  /** Number of gaps that were reported to them, or thrown. */
  consumerGaps: number;
  /** Number of times that more was published than the buffer of a slow consumer takes. */
  lagging: number;
  /** Number of consumers that left a loop, or that were stopped from outside. */
  left: number;
  /** Number of consumers whose loop ended by itself: by an error, or the end of all channels. */
  consumedToEnd: number;
}

/** One consumer: a loop over `channels.follow()`. */
class ConsumerRun {
  readonly registry: Registry;
  readonly ledger: ConsumerLedger;
  /** Whether the application has ended the consumer. */
  wasStopped = false;
  /** Whether the loop is over. */
  isOver = false;
  /** Number of times that the consumer took an event and was far behind. */
  lagging = 0;
  readonly #options: ConsumeOptions;
  readonly #abort = new AbortController();
  readonly #events: AsyncIterableIterator<ChannelEvent, undefined>;
  readonly #pendingAnswers: (() => void)[] = [];
  // Number of events that a slow consumer may take, and the function that lets it go on.
  #permits = 0;
  #onPermit: (() => void) | undefined;
  #turns = 0;

  constructor(registry: Registry, options: ConsumeOptions, published: readonly PublishedEvent[]) {
    this.registry = registry;
    this.#options = options;
    const { truth, channels, distant } = registry;
    const since = sinceOf(options, truth);
    const start = startOf(since, truth);
    this.ledger = new ConsumerLedger(
      truth,
      options,
      { start, isUncertain: distant !== undefined },
      published,
    );
    this.#events = channels.follow(options.channels, {
      since,
      signal: this.#abort.signal,
      filter: options.filter === 'none' ? undefined : (event) => this.ledger.onFilter(event),
      onGap: options.onGap === 'none' ? undefined : (gap) => this.#onGap(gap),
    });
  }

  async run(): Promise<void> {
    try {
      await this.#loop();
      this.ledger.onDone(this.wasStopped);
    } catch (error) {
      if (error instanceof Violation) throw error;
      this.ledger.onError(error);
    } finally {
      this.isOver = true;
    }
  }

  async #loop(): Promise<void> {
    const { isSlow, leavesAfter } = this.#options;
    if (isSlow) await this.#permit();
    for await (const event of this.#events) {
      this.ledger.onEvent(event);
      if (this.ledger.received === leavesAfter) {
        this.wasStopped = true;
        break;
      }
      if (isSlow) await this.#permit();
    }
  }

  /** Lets a slow consumer take events, and a slow `onGap` answer. */
  take(count: number): void {
    this.#pendingAnswers.shift()?.();
    this.#permits += count;
    this.#onPermit?.();
  }

  /** Ends the consumer from outside of its loop. */
  stop(how: 'abort' | 'return'): void {
    if (this.isOver) return;
    this.wasStopped = true;
    if (how === 'abort') this.#abort.abort();
    else void this.#events.return?.();
    this.take(1);
  }

  onTurn(): void {
    if (++this.#turns === MAX_START_TURNS) this.ledger.fixStart();
  }

  async #permit(): Promise<void> {
    while (this.#permits === 0) {
      await new Promise<void>((resolve) => {
        this.#onPermit = resolve;
      });
    }
    this.#permits--;
    if (this.ledger.owedBytes > HIGH_WATER_MARK) this.lagging++;
  }

  #onGap(gap: Gap): string | undefined | Promise<string | undefined> {
    this.ledger.onGap(gap);
    const { onGap } = this.#options;
    const { epoch, head } = this.registry.truth;
    const finish = (): string | undefined => {
      const answer = onGap.endsWith('nothing') ? undefined : gap.cursor;
      this.ledger.onAnswer(answer);
      if (onGap === 'throws') throw new Error('onGap throws');
      if (onGap === 'other cursor') return 'elsewhere.3';
      return onGap === 'beyond' ? `${epoch}.${head + 1_000}` : answer;
    };
    if (!onGap.startsWith('slow')) return finish();
    return new Promise((resolve) => {
      this.#pendingAnswers.push(() => resolve(finish()));
    });
  }
}

/** All consumers of a schedule. */
export class Consumers {
  readonly #scene: Scene;
  readonly #published: readonly PublishedEvent[];
  readonly #runs: ConsumerRun[] = [];

  constructor(scene: Scene, published: readonly PublishedEvent[]) {
    this.#scene = scene;
    this.#published = published;
  }

  start(options: ConsumeOptions): void {
    const run = new ConsumerRun(this.#scene.registry, options, this.#published);
    this.#runs.push(run);
    run.run().catch((error: unknown) => this.#scene.reportFault((error as Error).message));
  }

  take(which: number, count: number): void {
    this.#at(which)?.take(count);
  }

  stop(which: number, how: 'abort' | 'return'): void {
    this.#at(which)?.stop(how);
  }

  onTurn(): void {
    for (const run of this.#runs) run.onTurn();
  }

  /** Lets all consumers take all that comes. */
  release(): void {
    for (const run of this.#runs) if (!run.isOver) run.take(Infinity);
  }

  /** Ends all consumers, each in one of the two ways. */
  stopAll(): void {
    for (const [index, run] of this.#runs.entries()) run.stop(index % 2 === 0 ? 'abort' : 'return');
  }

  /** Whether no consumer waits for anything that must come. */
  get isQuiet(): boolean {
    return this.#current.every(({ ledger }) => !ledger.isWaiting);
  }

  /** Checks that all consumers have received everything. */
  expectComplete(): void {
    for (const { ledger } of this.#current) ledger.expectComplete();
  }

  /** The registry closes, and ends the consumers. */
  onClosing(): void {
    for (const run of this.#runs) if (!run.isOver) run.wasStopped = true;
  }

  expectOver(): void {
    if (this.#current.length === 0) return;
    this.#scene.reportFault('a consumer was stopped, but its iteration does not end');
  }

  count(tally: ConsumerCounts): void {
    for (const { ledger, wasStopped, lagging, isOver } of this.#runs) {
      tally.consumers++;
      tally.consumed += ledger.received;
      tally.consumerGaps += ledger.gaps;
      tally.lagging += lagging;
      if (wasStopped) tally.left++;
      else if (isOver) tally.consumedToEnd++;
    }
  }

  /**
   * The consumers of this process whose loop is not over. After a restart, the broker of the old
   * process does not answer any more.
   */
  get #current(): ConsumerRun[] {
    const { registry } = this.#scene;
    return this.#runs.filter((run) => run.registry === registry && !run.isOver);
  }

  #at(which: number): ConsumerRun | undefined {
    const active = this.#runs.filter(({ isOver }) => !isOver);
    return active[which % Math.max(1, active.length)];
  }
}
