/**
 * Declarations that code fragments in the pages assume: the app around a fragment, and functions of
 * the reader. Types only.
 */
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

// Properties that other middleware adds to a request.
declare module 'node:http' {
  interface IncomingMessage {
    user?: User | undefined;
    auth?: { sub?: string; exp?: number };
    sessionID?: string;
    session?: {
      user?: string;
      destroy(done: (error: unknown) => void): void;
      regenerate(done: (error: unknown) => void): void;
    };
  }
}

declare global {
  // Names that earlier blocks of a page define or import.
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

  // Names of the application of the reader.
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
  function mayRead(...args: unknown[]): boolean;
  function renderPage(data: object): Promise<string>;
  function retryLater(...args: unknown[]): void;
  function rows(): Promise<Iterable<object>>;
  function show(...args: unknown[]): void;

  const llm: {
    complete(prompt: string, options: { signal: AbortSignal }): AsyncIterable<string>;
  };

  // The global scope of a service worker.
  interface Window {
    addEventListener(
      type: 'fetch',
      listener: (event: { request: Request; respondWith(answer: unknown): void }) => void,
    ): void;
  }

  // Globals of jest.
  function afterEach(after: () => unknown): void;
  function test(name: string, body: () => unknown): void;
  function expect(value: unknown): Record<string, (expected?: unknown) => void>;
}
