/** CPU time and the longest pause of the event loop between two moments. */
import { monitorEventLoopDelay } from 'node:perf_hooks';
import process from 'node:process';
import { setImmediate as nextTurn, setTimeout as sleep } from 'node:timers/promises';

/**
 * Two views of the same pauses. `stallMs` is by `monitorEventLoopDelay` at 1 ms. `turnMs` is the longest time between two
 * `setImmediate` callbacks, where a timer of 1 ms asks for each: a chain without the timer would use a whole CPU by itself.
 */
export class Meter {
  #delay = monitorEventLoopDelay({ resolution: 1 });
  #timer;
  #cpu;
  #begun = 0;
  #seen = 0;
  #turnMs = 0;

  async start() {
    this.#delay.enable();
    // Its first sample is the one after its first timer.
    await sleep(10);
    this.#turnMs = 0;
    this.#begun = performance.now();
    this.#seen = this.#begun;
    this.#timer = setInterval(() => setImmediate(() => this.#turn()), 1);
    this.#cpu = process.cpuUsage();
  }

  async stop() {
    const { user, system } = process.cpuUsage(this.#cpu);
    const wallMs = performance.now() - this.#begun;
    // A pause at the very end shows in the next turns.
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

  #turn() {
    const now = performance.now();
    this.#turnMs = Math.max(this.#turnMs, now - this.#seen);
    this.#seen = now;
  }
}
