/** A connection to Redis whose steps a test counts, and at any of which it breaks the line. */
import type { RedisConnection } from '../../src/brokers/redis/redis-connection.ts';

/** Before a step is made, while its answer is on its way, or when it has come and nobody has been told. */
export type Phase = 'before' | 'during' | 'after';

type Subscriber = Awaited<ReturnType<RedisConnection['subscriber']>>;

/** Everything that a node asks of Redis goes through here, and each of it is a step. */
export class Steps {
  /** The steps that were made, by name. */
  readonly made: string[] = [];
  #onStep: (index: number, phase: Phase) => void | Promise<void> = () => {};

  /** Calls the function at every step from here on, which are counted from 0 again. */
  watch(onStep: (index: number, phase: Phase) => void | Promise<void>): void {
    this.made.length = 0;
    this.#onStep = onStep;
  }

  connection(inner: RedisConnection): RedisConnection {
    return {
      ...inner,
      // The number of keys tells what is asked: the log, and one for each channel.
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
    // Where the wait for what is on its way is given up, nobody looks at it any more.
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
