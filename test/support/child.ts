/** Programs that a test starts: never left behind, and what they said is there when they fail. */
import { spawn, type ChildProcess } from 'node:child_process';
import { once } from 'node:events';
import { within } from './wait.ts';

export interface Child extends AsyncDisposable {
  readonly process: ChildProcess;
  readonly pid: number;
  /** Everything that it has printed, of both streams. */
  readonly output: string;
  readonly isRunning: boolean;
  /** Resolves when it has ended, in whatever way. */
  readonly ended: Promise<void>;
  /** Sends a signal and waits for the end. */
  stop(signal?: NodeJS.Signals, ms?: number): Promise<void>;
}

/** Starts a program that is killed when it is disposed of, or when the process of the tests ends, even by a SIGKILL. */
export function start(
  command: string,
  args: readonly string[],
  env: Record<string, string> = {},
): Child {
  // The kernel sees to it where it can.
  const words =
    process.platform === 'linux'
      ? ['setpriv', '--pdeathsig', 'KILL', command, ...args]
      : [command, ...args];
  const child = spawn(words[0] as string, words.slice(1), {
    env: { ...process.env, ...env },
    stdio: ['ignore', 'pipe', 'pipe', 'ipc'],
  });
  let output = '';
  for (const stream of [child.stdout, child.stderr]) {
    stream?.on('data', (chunk: Buffer) => (output += chunk.toString()));
  }
  const ended = (async () => {
    try {
      await once(child, 'close');
    } catch (error) {
      output += String(error);
    }
  })();
  const isRunning = () =>
    child.pid !== undefined && child.exitCode === null && child.signalCode === null;

  async function stop(signal: NodeJS.Signals = 'SIGTERM', ms = 10_000): Promise<void> {
    if (isRunning()) child.kill(signal);
    await within(`the end of ${command}`, ended, ms);
  }

  return {
    process: child,
    get pid() {
      return child.pid as number;
    },
    get output() {
      return output;
    },
    get isRunning() {
      return isRunning();
    },
    ended,
    stop,
    // Works on a process that is stopped, too.
    [Symbol.asyncDispose]: () => stop('SIGKILL'),
  };
}
