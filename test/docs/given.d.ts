/** What fragments of code in the pages take for given: the app around them, and what is the reader's own. Types only. */
import type { Express, Request as ExpressRequest } from 'express';
import type { Channels, SseMiddleware } from 'res-sse';

interface User {
  id: string;
  name: string;
  tenant: string;
}

interface Haiku {
  text: string;
  author?: string;
}

// What middleware in front leaves on a request.
declare module 'node:http' {
  interface IncomingMessage {
    user?: User | undefined;
    auth?: { sub?: string; exp?: number };
    sessionID?: string;
    session?: { user?: string; destroy(done: (error: unknown) => void): void };
  }
}

declare global {
  // What blocks further up on a page have made or imported.
  const express: typeof import('express');
  const session: typeof import('express-session');
  const createChannels: typeof import('res-sse').createChannels;
  const sse: typeof import('res-sse').sse;
  const stream: typeof import('res-sse').stream;
  const app: Express;
  const channels: Channels;
  const events: SseMiddleware;
  const server: import('node:http').Server;
  const source: EventSource;
  const randomUUID: () => string;
  const SseError: typeof import('res-sse').SseError;

  // The reader's own.
  const haiku: Haiku;
  const secret: string & Uint8Array;
  const users: {
    remove(id: string): Promise<void>;
    mayRead(id: string | undefined): Promise<boolean>;
  };
  const token: string;
  const logger: Record<'debug' | 'info' | 'warn' | 'error', (...details: unknown[]) => void>;
  function authenticate(req: ExpressRequest): Promise<User | undefined>;
  function canRead(user: User | undefined, room: string | undefined): boolean;
  function mayRead(...what: unknown[]): boolean;
  function renderPage(data: object): Promise<string>;
  function retryLater(...what: unknown[]): void;
  function rows(): Promise<Iterable<object>>;
  function show(...what: unknown[]): void;

  const llm: {
    complete(prompt: string, options: { signal: AbortSignal }): AsyncIterable<string>;
  };

  // A service worker's.
  interface Window {
    addEventListener(
      type: 'fetch',
      listener: (event: { request: Request; respondWith(answer: unknown): void }) => void,
    ): void;
  }

  // jest's, which has them without an import.
  function afterEach(after: () => unknown): void;
  function test(name: string, body: () => unknown): void;
  function expect(value: unknown): Record<string, (expected?: unknown) => void>;
}
