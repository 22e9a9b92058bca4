/** The shutdown of a registry: ends its streams, a limited number in each turn. */
import { setImmediate as nextTurn } from 'node:timers/promises';
import { drawRetry } from '../common/retry-range.ts';
import type { EventStream } from '../stream/event-stream.ts';

// Range of the reconnection time for the clients of a closed registry, in ms, so that they do not
// all reconnect at once.
const CLOSE_RETRY = { min: 1_000, max: 5_000 };

// Number of streams that end before other work gets its turn.
const MAX_CLOSES_PER_TURN = 250;

/**
 * Ends all streams of a registry.
 * @param listOpen returns the streams that follow channels and have not ended; called until there
 * is none, because a callback at the end of one stream may subscribe another stream
 */
export async function endStreams(listOpen: () => EventStream[]): Promise<void> {
  for (let open = listOpen(); open.length > 0; open = listOpen()) {
    for (const [index, stream] of open.entries()) {
      if (index > 0 && index % MAX_CLOSES_PER_TURN === 0) await nextTurn();
      endStream(stream);
    }
  }
}

function endStream(stream: EventStream): void {
  try {
    // Writes the last events of the pipes.
    stream.follower?.flush(true);
    stream.closeFor('shutdown', { retry: drawRetry(CLOSE_RETRY) });
  } catch (error) {
    // The stream was not open, and a listener for its response head threw.
    stream.onError(error);
  }
}
