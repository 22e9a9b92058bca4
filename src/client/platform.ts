/**
 * The globals of browsers, workers and Node that the client uses. Declared here, so that the types
 * of the package need neither the types of the DOM nor those of Node. Only `fetch`, streams, `URL`
 * and timers exist everywhere.
 */

/** An object with events, for example `window` and `document`. */
interface EventSender {
  addEventListener?(
    type: string,
    listener: (event: { readonly persisted?: boolean }) => void,
    options: { signal: AbortSignal },
  ): void;
}

/** Web Locks: https://w3c.github.io/web-locks/ */
interface LockManager {
  request(
    name: string,
    options: { signal?: AbortSignal; steal?: boolean },
    callback: () => Promise<void>,
  ): Promise<void>;
}

/** A channel to the other tabs and workers of the origin. */
export interface TabChannel {
  onmessage: ((message: { readonly data: unknown }) => void) | null;
  postMessage(message: unknown): void;
  close(): void;
}

interface Platform extends EventSender {
  readonly BroadcastChannel?: new (name: string) => TabChannel;
  readonly document?: EventSender & { readonly baseURI?: string };
  readonly location?: { readonly href: string };
  readonly navigator?: { readonly onLine?: boolean; readonly locks?: LockManager };
  readonly sessionStorage?: {
    getItem(key: string): string | null;
    setItem(key: string, value: string): void;
  };
}

export const platform: Platform = globalThis as unknown as Platform;
