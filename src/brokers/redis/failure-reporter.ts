/**
 * Reports failures to the application: in diagnostics, in a warning, and as the cause of errors.
 */
import { diagnostics } from '../../common/diagnostics.ts';
import { emitWarning } from '../../common/emit-warning.ts';
import { SseError } from '../../common/errors.ts';

/** The failures of one broker. */
export class FailureReporter {
  readonly #broker: object;
  readonly #address: string;
  readonly #isOpen: () => boolean;
  // The last reason why Redis was unreachable; undefined while Redis can be reached.
  #lastFailure: unknown;
  #hasWarned = false;

  /**
   * @param broker named in the diagnostics messages
   * @param address where Redis is, for messages
   * @param isOpen whether the node is open
   */
  constructor(broker: object, address: string, isOpen: () => boolean) {
    this.#broker = broker;
    this.#address = address;
    this.#isOpen = isOpen;
  }

  /** Publishes an error on the diagnostics channel `res-sse:error`. */
  report(error: unknown): void {
    // While the node is not open, the last error is the reason why Redis cannot be reached.
    if (!this.#isOpen()) {
      this.#lastFailure = error instanceof SseError ? (error.cause ?? error) : error;
    }
    if (diagnostics.error.hasSubscribers) {
      diagnostics.error.publish({ broker: this.#broker, error });
    }
  }

  /** Forgets the last failure, because Redis can be reached again. */
  clear(): void {
    this.#lastFailure = undefined;
  }

  /** Emits a warning, once, that Redis cannot be reached. @param ms time without a connection */
  warnUnreachable(ms: number): void {
    if (this.#hasWarned) return;
    this.#hasWarned = true;
    const reason = this.#lastFailure instanceof Error ? `: ${this.#lastFailure.message}` : '';
    emitWarning(
      'RES_SSE_BROKER_UNREACHABLE',
      `Redis at ${this.#address} has not been reached for ${ms / 1_000} s${reason}`,
      'Streams stay open and wait; publishes reject. ' +
        'Check the address given to redisBroker(), and whether Redis is running.',
    );
  }

  /**
   * Makes the error of a call that Redis has not answered. Its cause is the last failure.
   * @param problem continues the sentence "Redis at <address> …"
   * @param delivery of a publish: whether the event may have been published
   */
  unansweredError(problem: string, delivery?: 'none' | 'unknown'): SseError {
    return new SseError('ERR_SSE_BROKER', `Redis at ${this.#address} ${problem}`, {
      ...(this.#lastFailure === undefined ? {} : { cause: this.#lastFailure }),
      ...(delivery === undefined ? {} : { delivery }),
    });
  }
}
