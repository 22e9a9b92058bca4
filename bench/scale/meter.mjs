/** Measures CPU time and the longest pause of the event loop. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import process from 'node:process';
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';

/**
 * Measures between `start()` and `stop()`. Pauses are measured in two ways:
 *
 * - `stallMs` is the maximum of `monitorEventLoopDelay` at a resolution of 1 ms.
 * - `turnMs` is the longest time between two `setImmediate` callbacks, each requested by a timer of
 *   1 ms. Without the timer, the callbacks would use a whole CPU.
 */
export class Meter {
  #delay = monitorEventLoopDelay({ resolution: 1 });
  #timer;
  #cpu;
  #startedAt = 0;
  #lastTurnAt = 0;
  #turnMs = 0;

  async start() {
    this.#delay.enable();
    // The monitor takes its first sample after its first timer.
    await sleep(10);
    this.#turnMs = 0;
    this.#startedAt = performance.now();
    this.#lastTurnAt = this.#startedAt;
    this.#timer = setInterval(() => setImmediate(() => this.#onTurn()), 1);
    this.#cpu = process.cpuUsage();
  }

  async stop() {
    const { user, system } = process.cpuUsage(this.#cpu);
    const wallMs = performance.now() - this.#startedAt;
    // A pause at the end is measured in the next turns.
    await sleep(5);
    await nextTurn();
    await nextTurn();
    clearInterval(this.#timer);
    this.#delay.disable();
    return {
      cpuMs: (user + system) / 1e3,
      wallMs,
      stallMs: this.#delay.max / 1e6,
      turnMs: this.#turnMs,
    };
  }

  #onTurn() {
    const now = performance.now();
    this.#turnMs = Math.max(this.#turnMs, now - this.#lastTurnAt);
    this.#lastTurnAt = now;
  }
}
