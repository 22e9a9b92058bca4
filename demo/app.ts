/** The app of the haiku chat: a haiku that is sent from one browser tab appears in all tabs. */
import { randomUUID } from 'node:crypto';
import { createRequire } from 'node:module';
import { setInterval } from 'node:timers/promises';
import { fileURLToPath } from 'node:url';
import express, { type Express, type NextFunction, type Request, type Response } from 'express';
import {
  createChannels,
  sse,
  stream,
  type Broker,
  type Channels,
  type SseMiddleware,
} from 'res-sse';
import { readDocuments } from './documents.ts';
import { ClientError, parseHaiku, type Haiku } from './haiku.ts';
import { renderPage } from './page.ts';
import { MemoryStore, type HaikuStore } from './store.ts';

/** The channels, their events and the data of each event. */
export interface Schema {
  haiku: { text: Haiku };
}

/** The app, and the objects that have to be closed when it ends. */
export interface Demo {
  app: Express;
  events: SseMiddleware;
  channels: Channels<Schema>;
}

const PUBLIC_DIRECTORY = fileURLToPath(new URL('public', import.meta.url));

// Each file has a route of its own, so that no other file can be requested.
const FILES = { '/app.js': 'app.js', '/syllables.js': 'syllables.js', '/style.css': 'style.css' };

// The page uses the published file of the client, without a bundler.
const CLIENT = createRequire(import.meta.url).resolve('res-sse/client');

const DOCUMENTS = readDocuments();

// Time in ms of silence after which a heartbeat is sent. The page notices a dead connection after
// two of them.
const HEARTBEAT_MS = 5_000;

// The key of a request that may be repeated.
const KEY = /^[\w-]{1,64}$/;

// Enough for 300 characters and an author, each character escaped as two `\uXXXX`.
const MAX_BODY_BYTES = 8_192;

// Time in ms between two events of `/time`.
const TIME_INTERVAL_MS = 5_000;

const SECURITY_HEADERS = {
  // Resources of this origin only, no inline scripts, and no HTML that a script makes of strings.
  'Content-Security-Policy': [
    "default-src 'none'",
    "script-src 'self'",
    "style-src 'self'",
    "connect-src 'self'",
    'img-src data:',
    "base-uri 'none'",
    "form-action 'none'",
    "frame-ancestors 'none'",
    "require-trusted-types-for 'script'",
    "trusted-types 'none'",
  ].join('; '),
  'Cross-Origin-Opener-Policy': 'same-origin',
  'Cross-Origin-Resource-Policy': 'same-origin',
  'Referrer-Policy': 'no-referrer',
  'X-Content-Type-Options': 'nosniff',
};

/**
 * Creates the app. The caller chooses the port and starts the server.
 * @param store keeps the latest haiku. @defaultValue in memory
 * @param broker connects several nodes, which then have to share the store, too. @defaultValue in
 * memory, for one node
 */
export function createDemo(store: HaikuStore = new MemoryStore(), broker?: Broker): Demo {
  const channels = createChannels<Schema>({ broker });
  const events = sse({ channels, heartbeat: HEARTBEAT_MS, retry: { min: 500, max: 1_500 } });
  const app = express();
  app.disable('x-powered-by');
  app.enable('case sensitive routing');
  app.enable('strict routing');
  app.use(setSecurityHeaders);
  app.use(events);

  app.get('/', async (_req, res) => {
    // The cursor is read first. A haiku that is published between the two reads is then both in the
    // page and in the stream. In the other order it could be in neither.
    const cursor = await channels.cursor();
    const haikus = await store.last();
    res.set('Cache-Control', 'no-cache').type('html').send(renderPage({ cursor, haikus }));
  });
  for (const [path, file] of Object.entries(FILES)) {
    app.get(path, (_req, res) =>
      res.sendFile(file, { root: PUBLIC_DIRECTORY, acceptRanges: false }),
    );
  }
  app.get('/client.js', (_req, res) => res.sendFile(CLIENT, { acceptRanges: false }));
  for (const [name, page] of DOCUMENTS) {
    const paths = name === 'README.md' ? ['/docs/', `/docs/${name}`] : `/docs/${name}`;
    app.get(paths, (_req, res) => void res.type('html').send(page));
  }
  app.get('/listen', channels.listen('haiku'));
  app.get(
    '/time',
    stream(async (stream) => {
      stream.send(currentTime(), 'time');
      const ticks = setInterval(TIME_INTERVAL_MS, undefined, { signal: stream.signal });
      await stream.pipe(ticks, { event: 'time', map: currentTime });
    }),
  );
  app.post(
    '/speak',
    requireJson,
    express.json({ limit: MAX_BODY_BYTES, inflate: false }),
    async (req, res) => {
      const given = req.get('Idempotency-Key') ?? '';
      // A request that is sent again has the key of the first, so that its haiku is spoken once.
      const id = KEY.test(given) ? given : randomUUID();
      const haiku = { id, ...parseHaiku(req.body), at: new Date().toISOString() };
      // The haiku is stored before it is published. In the other order, a page that is rendered in
      // between would miss it: its cursor would be after the event, and its list without the haiku.
      await store.add(haiku);
      await channels.publish('haiku', haiku, { event: 'text', key: id });
      sendText(res, 202, 'Received text message.');
    },
  );
  app.use((_req, res) => sendText(res, 404, 'There is nothing here.'));
  app.use(sendError);
  return { app, events, channels };
}

/** @returns the data of an event of `/time` */
function currentTime(): { time: string } {
  return { time: new Date().toISOString() };
}

/** Sets the security headers of every response. */
function setSecurityHeaders(_req: Request, res: Response, next: NextFunction): void {
  res.set(SECURITY_HEADERS);
  next();
}

/**
 * Refuses bodies that are not JSON. A form on a page of another origin can send requests, but not
 * with this type. The function is in front of the parser, so that other bodies are not read.
 */
function requireJson(req: Request, _res: Response, next: NextFunction): void {
  if (req.is('application/json') === false) {
    throw new ClientError(415, 'Send JSON, with the header Content-Type: application/json.');
  }
  next();
}

/** Sends plain text. The default type of Express for a string would be HTML. */
function sendText(res: Response, status: number, sentence: string): void {
  res.status(status).type('text/plain').send(sentence);
}

// Express recognises an error handler by its four parameters.
function sendError(error: unknown, _req: Request, res: Response, next: NextFunction): void {
  if (res.headersSent) {
    next(error);
    return;
  }
  // Errors of the parser have a status. Their messages quote the body, so they are not sent.
  const { status } = Object(error) as { status?: unknown };
  if (error instanceof ClientError) sendText(res, error.status, error.message);
  else if (status === 413) {
    sendText(res, 413, 'That is too large; a haiku has up to three lines and 300 characters.');
  } else if (status === 415) sendText(res, 415, 'Send JSON in UTF-8, not compressed.');
  else if (status === 400) sendText(res, 400, 'That is not JSON; send {"text": "…"}.');
  else {
    console.error(error);
    sendText(res, 500, 'Something went wrong on our side.');
  }
}
