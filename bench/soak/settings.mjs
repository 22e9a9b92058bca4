/** The settings that all processes of the soak share. */

export const PREFIX = 'soak';

/** Limits that are small enough to be reached within minutes. */
export const LIMITS = {
  history: { events: 500, bytes: 4_194_304 },
  // About seven seconds of events, so that slow and disconnected clients receive gaps.
  historyFor: (name) => (name === BULK ? { events: 20 } : undefined),
  maxHistory: 16_777_216,
  maxChannels: 2_100,
};

/** Channels with regular events. */
export const STEADY = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'];

/** Channels with few events. There are many, so that the recovery of a node is expensive. */
export const ROOMS = Array.from({ length: 2_000 }, (unused, at) => `room-${at}`);

/** The channel with large events, for slow clients. */
export const BULK = 'bulk';

// Half of the time in ms for which a temporary channel gets events.
const TEMPORARY_MS = 7_000;

/** @returns the two temporary channels that get events now */
export function temporaryChannels() {
  const now = Math.floor(performance.now() / TEMPORARY_MS);
  return [`temporary-${now}`, `temporary-${now - 1}`];
}
