/** What the processes of the soak agree on. */

export const PREFIX = 'soak';

/** Small enough that all bounds are reached within minutes. */
export const LIMITS = {
  history: { events: 500, bytes: 4_194_304 },
  // About seven seconds, so that gaps are told to readers that are slow or away.
  historyFor: (name) => (name === BULK ? { events: 20 } : undefined),
  maxHistory: 16_777_216,
  maxChannels: 2_100,
};

/** Channels that are always there. */
export const STEADY = ['a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'];

/** Channels in which little happens. There are many, so that a node that heals has much to ask. */
export const ROOMS = Array.from({ length: 2_000 }, (unused, at) => `room-${at}`);

/** Much data, for readers that are slow. */
export const BULK = 'bulk';

// Channels that come and go: each is published to for twice this time, and then by nobody.
const TEMPORARY_MS = 7_000;

/** @returns the two channels that are published to at the moment, among those that come and go */
export function temporaryChannels() {
  const now = Math.floor(performance.now() / TEMPORARY_MS);
  return [`temporary-${now}`, `temporary-${now - 1}`];
}
