/** Waits for conditions. Tests never wait for a fixed time. */
import { setTimeout as delay } from 'node:timers/promises';

/**
 * Resolves as soon as the condition is true. If the condition does not become true in time, rejects
 * with an error that names it.
 */
export async function until(
  what: string,
  condition: () => boolean | Promise<boolean>,
  ms = 10_000,
): Promise<void> {
  const deadline = Date.now() + ms;
  while (!(await condition())) {
    if (Date.now() > deadline) throw new Error(`timed out after ${ms} ms waiting for ${what}`);
    await delay(5);
  }
}

/** Waits for the promise. After the time, rejects with an error that contains `what`. */
export async function within<T>(what: string, promise: PromiseLike<T>, ms = 10_000): Promise<T> {
  let timer: NodeJS.Timeout | undefined;
  try {
    return await Promise.race([
      promise,
      new Promise<never>((_, reject) => {
        timer = setTimeout(
          () => reject(new Error(`timed out after ${ms} ms waiting for ${what}`)),
          ms,
        );
      }),
    ]);
  } finally {
    clearTimeout(timer);
  }
}
