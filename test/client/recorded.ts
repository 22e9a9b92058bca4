/** A connection whose calls are recorded. */
import { onTestFinished } from 'vitest';
import {
  connect,
  type ConnectOptions,
  type Connection,
  type ConnectionError,
  type ConnectionState,
  type Gap,
} from '../../src/client/index.ts';

export interface Recorded {
  readonly connection: Connection;
  /** The data of the events. */
  readonly received: unknown[];
  readonly ids: (string | undefined)[];
  readonly states: ConnectionState[];
  readonly errors: (ConnectionError | undefined)[];
  readonly gaps: Gap[];
  /** Number of calls of `onEnd`. */
  readonly ends: number;
}

/** Connects until the end of the test, and records what the functions of the options are given. */
export function record(url: string, options: ConnectOptions = {}, names = ['message']): Recorded {
  const received: unknown[] = [];
  const ids: (string | undefined)[] = [];
  const states: ConnectionState[] = [];
  const errors: (ConnectionError | undefined)[] = [];
  const gaps: Gap[] = [];
  let ends = 0;
  const on = Object.fromEntries(
    names.map((name) => [
      name,
      (data: unknown, { id }: { id?: string }) => {
        received.push(data);
        ids.push(id);
      },
    ]),
  );
  const connection = connect(url, {
    on,
    onGap: (gap) => gaps.push(gap),
    onEnd: () => ends++,
    onState: (state, error) => {
      states.push(state);
      errors.push(error);
    },
    ...options,
  });
  onTestFinished(() => connection.close());
  return {
    connection,
    received,
    ids,
    states,
    errors,
    gaps,
    get ends() {
      return ends;
    },
  };
}
