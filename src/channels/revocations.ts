/**
 * Revocations: entries of an internal channel of the log, so that their place among the events is
 * the same on every node.
 *
 * ```text
 * log        event 5     revocation of ann 6     event 7
 * node       receive()   receive(): the streams  receive(): no stream of ann is left
 *                        of ann end
 * ```
 *
 * If a node may have missed entries, it reads the revocations from the log before any stream with
 * an identity receives further events ({@link Revocations.covers}). If revocations may be lost,
 * then `authorize` is called for each of these streams, or the stream ends. Cases of a loss:
 *
 * ```text
 * #offset ─┬─ trimmed       the log does not keep all revocations that came after #offset
 *          ├─ resumedAt     Redis came back older: it may have lost revocations that other
 *          │                nodes have made, and that this node has not received
 *          └─ another log   the broker has lost its data: a new log, without the revocations
 * ```
 */
import { setImmediate as nextTurn } from 'node:timers/promises';
import type { Broker } from '../brokers/broker.ts';
import { deferred, withLimits, type Deferred } from '../common/async.ts';
import type { HistoryLimits } from '../log/log.ts';
import type { LogEntry } from '../log/log-entry.ts';
import { assertCloseOptions, type CloseOptions } from '../stream/close-options.ts';
import type { Revocation, RevocationSource, RevocationTarget } from '../stream/revocation-types.ts';
import type { FollowedChannels } from './followed-channels.ts';

/** The channel of the revocations. No application can use it: its name has a control character. */
export const REVOCATIONS = '\u0000revoked';

// Limits for the revocations that the log keeps, for nodes that were disconnected.
const HISTORY: HistoryLimits = {
  events: 10_000,
  bytes: 8_388_608,
  age: Infinity,
  latest: false,
};

// Bytes of one page, which is applied in one turn of the event loop: about 150 revocations.
const PAGE_BYTES = 8_192;

/** The revocations of one registry on this node. */
export class Revocations implements RevocationSource {
  readonly #broker: Broker;
  readonly #followedChannels: FollowedChannels;
  readonly #targets = new Set<RevocationTarget>();
  #epoch = '';
  // Offset up to which no revocation is missing. Set at each interruption and by each entry.
  #offset = 0;
  // Offset of the newest loss that was reported to the targets.
  #reportedLoss = 0;
  // Whether all revocations that this node may have missed were read.
  #hasReadMissed = false;
  #isReading = false;
  // Resolves when `#hasReadMissed` becomes true.
  #whenCurrent: Deferred<void> = deferred();
  readonly #abort = new AbortController();

  constructor(broker: Broker, followedChannels: FollowedChannels) {
    this.#broker = broker;
    this.#followedChannels = followedChannels;
  }

  async revoke({ identity, options }: Revocation): Promise<void> {
    const data = JSON.stringify([identity, options]);
    const publication = { event: undefined, retry: undefined, key: undefined };
    await this.#broker.append({ ...publication, channel: REVOCATIONS, data, history: HISTORY });
  }

  attach(target: RevocationTarget): void {
    const isFirst = this.#targets.size === 0;
    this.#targets.add(target);
    if (!isFirst) return;
    const signal = this.#abort.signal;
    this.#followedChannels.retain(REVOCATIONS, true, 'consumer');
    const ready =
      this.#followedChannels.whenListening([REVOCATIONS], signal) ??
      this.#broker.position(undefined, signal);
    // A broker in this process answers at once, so that the first stream need not wait.
    if (ready instanceof Promise) void this.#startRemote(ready);
    else this.#startLocal(ready);
  }

  /** The registry is closed. */
  close(): void {
    this.#abort.abort();
  }

  /**
   * Whether this node has all revocations that precede the entries that it receives now, also those
   * of channels without history.
   */
  get isCurrent(): boolean {
    return this.#hasReadMissed && this.#broker.isInDoubt !== true;
  }

  /** Whether this node has all revocations up to the offset. */
  covers(offset: number): boolean {
    return this.#hasReadMissed && offset <= this.#broker.head;
  }

  /**
   * Resolves when {@link covers} may be true for the offset. Another log may have replaced the log
   * meanwhile, so the caller reads the log again. Rejects when the signal is aborted.
   */
  async whenCovering(offset: number, signal: AbortSignal | undefined): Promise<void> {
    if (this.#hasReadMissed) await this.#broker.position({ epoch: this.#epoch, offset }, signal);
    else await withLimits(this.#whenCurrent.promise, { signal });
  }

  /** This node has received an entry of the channel. */
  onReceived(entry: LogEntry): void {
    // An entry that comes while earlier ones are missing is read from the log later.
    if (this.#hasReadMissed) this.#apply(entry);
  }

  /** This node may have missed entries. */
  onInterrupted(): void {
    if (this.#targets.size === 0) return;
    if (this.#hasReadMissed) {
      this.#whenCurrent = deferred();
      this.#hasReadMissed = false;
      this.#offset = Math.max(this.#offset, this.#broker.head);
    }
    if (this.#epoch !== '') void this.#readMissed();
  }

  /**
   * Starts with a remote broker.
   * @param ready resolves when this node receives revocations; rejects if that is impossible
   */
  async #startRemote(ready: Promise<unknown>): Promise<void> {
    try {
      await ready;
      const { epoch, offset } = await this.#broker.position(undefined, this.#abort.signal);
      this.#epoch = epoch;
      this.#offset = offset;
      // Revocations before this moment may concern streams whose requests have come in already.
      for (const target of this.#targets) target.onMissed();
      await this.#readMissed();
    } catch {
      // The registry is closed, or this process only publishes, so that no stream follows channels.
    }
  }

  /** Starts with a broker in this process, from its position. */
  #startLocal({ epoch, offset }: { epoch: string; offset: number }): void {
    this.#epoch = epoch;
    this.#offset = offset;
    this.#hasReadMissed = true;
    this.#whenCurrent.resolve();
  }

  /** Reads the revocations after `#offset`, until this node has all of them. */
  async #readMissed(): Promise<void> {
    if (this.#isReading) return;
    this.#isReading = true;
    try {
      await this.#readPage();
      // A broker may answer at once, again and again, before this node has received something.
      for (; !this.#hasReadMissed; await this.#readPage()) await nextTurn();
    } catch {
      // The registry is closed.
    } finally {
      this.#isReading = false;
    }
  }

  async #readPage(): Promise<void> {
    const { interruptions } = this.#followedChannels;
    const { signal } = this.#abort;
    const page = await this.#broker.read([REVOCATIONS], this.#offset, PAGE_BYTES, signal);
    const { epoch, offset } = page.position;
    const loss = Math.max(page.trimmed[0] ?? 0, page.resumedAt ?? 0);
    if (epoch !== this.#epoch) {
      // The broker has lost its data. The next page is read from the new log.
      this.#epoch = epoch;
      this.#offset = offset;
      this.#reportLoss(loss);
      return;
    }
    const isLoss = loss > Math.max(this.#offset, this.#reportedLoss);
    for (const entry of page.entries) this.#apply(entry);
    if (isLoss) this.#reportLoss(loss);
    if (!page.complete) return;
    this.#offset = Math.max(this.#offset, offset);
    // Since the request of the page, the node may have missed or received further revocations.
    this.#hasReadMissed =
      interruptions === this.#followedChannels.interruptions &&
      this.#followedChannels.newestReceived([REVOCATIONS]) <= this.#offset;
    if (this.#hasReadMissed) this.#whenCurrent.resolve();
  }

  /** Tells the targets that revocations may be lost. @param loss offset of the newest of them */
  #reportLoss(loss: number): void {
    this.#reportedLoss = loss;
    for (const target of this.#targets) target.onMissed();
  }

  #apply(entry: LogEntry): void {
    if (entry.offset <= this.#offset) return;
    this.#offset = entry.offset;
    const revocation = parseRevocation(entry);
    if (revocation === undefined) return;
    for (const target of this.#targets) target.onRevoked(revocation);
  }
}

/** @returns `undefined` for an entry that another program has written */
function parseRevocation(entry: LogEntry): Revocation | undefined {
  const value = entry.json();
  entry.releaseView();
  if (!Array.isArray(value) || typeof value[0] !== 'string') return undefined;
  const [identity, options] = value as [string, CloseOptions];
  try {
    return { identity, options: assertCloseOptions('revoke()', options) };
  } catch {
    return { identity, options: {} };
  }
}
