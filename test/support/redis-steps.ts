/** A connection to Redis that calls a test before, during and after each of its steps. */
import type { RedisConnection } from '../../src/brokers/redis/redis-connection.ts';

/**
 * Before a step, while its answer is pending, or after the answer has come but is not returned yet.
 */
export type Phase = 'before' | 'during' | 'after';

type Subscriber = Awaited<ReturnType<RedisConnection['subscriber']>>;

/** Wraps the connection of a node: each command and each operation of a subscriber is a step. */
export class Steps {
  /** The names of the steps so far. */
  readonly made: string[] = [];
  #onStep: (index: number, phase: Phase) => void | Promise<void> = () => {};

  /** Calls the function at every step from here on. The first of these steps has the index 0. */
  watch(onStep: (index: number, phase: Phase) => void | Promise<void>): void {
    this.made.length = 0;
    this.#onStep = onStep;
  }

  connection(inner: RedisConnection): RedisConnection {
    return {
      ...inner,
      // The name has the number of keys: the log, and one key for each channel.
      send: (key, args, signal) =>
        this.#step(`send ${args[2]}`, () => inner.send(key, args, signal)),
      subscriber: async () =>
        this.#wrapped(await this.#step('subscriber', () => inner.subscriber())),
    };
  }

  async #step<T>(name: string, action: () => Promise<T>): Promise<T> {
    const index = this.made.push(name) - 1;
    await this.#onStep(index, 'before');
    const answer = action();
    // If `onStep` throws, the answer is not awaited.
    answer.catch(() => {});
    await this.#onStep(index, 'during');
    const result = await answer;
    await this.#onStep(index, 'after');
    return result;
  }

  #wrapped(inner: Subscriber): Subscriber {
    return {
      on: (event, listener) => inner.on(event, listener),
      destroy: () => inner.destroy(),
      connect: () => this.#step('connect', () => inner.connect()),
      subscribe: (topics, listener) =>
        this.#step('subscribe', () => inner.subscribe(topics, listener)),
      unsubscribe: (topics, listener) => inner.unsubscribe(topics, listener),
      sSubscribe: (topics, listener) =>
        this.#step('subscribe', () => inner.sSubscribe(topics, listener)),
      sUnsubscribe: (topics, listener) => inner.sUnsubscribe(topics, listener),
    };
  }
}
