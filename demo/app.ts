/** The haiku chat: what is spoken in one tab appears in all. */
import { randomUUID } from 'node:crypto';
import { setInterval as every } from 'node:timers/promises';
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
import { ClientError, haikuOf, type Haiku } from './haiku.ts';
import { pageOf } from './page.ts';
import { MemoryStore, type HaikuStore } from './store.ts';

/** What is published: the events of each channel and their data. */
export interface Schema {
  haiku: { text: Haiku };
}

/** The app, and what has to be closed when it ends. */
export interface Demo {
  app: Express;
  events: SseMiddleware;
  channels: Channels<Schema>;
}

const PUBLIC = fileURLToPath(new URL('public', import.meta.url));

// One route for each file, so that everything else is a 404.
const FILES = { '/app.js': 'app.js', '/syllables.js': 'syllables.js', '/style.css': 'style.css' };

// 300 characters and an author, every one of them escaped as two `\uXXXX`, and some air.
const MAX_BODY = 8_192;

const HEADERS = {
  // Nothing from elsewhere, nothing inline, and no script may make HTML of a string.
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
 * Makes the app and serves nothing yet, so that whoever calls chooses the port.
 * @param broker on several nodes, what connects them; the store is then one that they share, too
 */
export function createDemo(store: HaikuStore = new MemoryStore(), broker?: Broker): Demo {
  const channels = createChannels<Schema>({ broker });
  const events = sse({ channels, retry: { min: 500, max: 1_500 } });
  const app = express();
  app.disable('x-powered-by');
  app.enable('case sensitive routing');
  app.enable('strict routing');
  app.use(secure);
  app.use(events);

  app.get('/', async (_req, res) => {
    // The cursor first: what is spoken meanwhile may come by page and by stream, but not by neither.
    const cursor = await channels.cursor();
    const haikus = await store.last();
    res.set('Cache-Control', 'no-cache').type('html').send(pageOf({ cursor, haikus }));
  });
  for (const [path, file] of Object.entries(FILES)) {
    app.get(path, (_req, res) => res.sendFile(file, { root: PUBLIC, acceptRanges: false }));
  }
  app.get('/listen', channels.listen('haiku'));
  app.get(
    '/time',
    stream(async (stream) => {
      stream.send(now(), 'time');
      await stream.pipe(every(5_000, undefined, { signal: stream.signal }), {
        event: 'time',
        map: now,
      });
    }),
  );
  app.post(
    '/speak',
    requireJson,
    express.json({ limit: MAX_BODY, inflate: false }),
    async (req, res) => {
      const haiku = { id: randomUUID(), ...haikuOf(req.body), at: new Date().toISOString() };
      // Kept first: a page that is made in between gets it by the stream.
      await store.add(haiku);
      await channels.publish('haiku', haiku, { event: 'text' });
      answer(res, 202, 'Received text message.');
    },
  );
  app.use((_req, res) => answer(res, 404, 'There is nothing here.'));
  app.use(answerError);
  return { app, events, channels };
}

function now(): { time: string } {
  return { time: new Date().toISOString() };
}

function secure(_req: Request, res: Response, next: NextFunction): void {
  res.set(HEADERS);
  next();
}

/** In front of the parser, so that a body of another type is not read at all. A form on a foreign page can send no JSON. */
function requireJson(req: Request, _res: Response, next: NextFunction): void {
  if (req.is('application/json') === false) {
    throw new ClientError(415, 'Send JSON, with the header Content-Type: application/json.');
  }
  next();
}

/** Plain text, always: Express would call a string HTML. */
function answer(res: Response, status: number, sentence: string): void {
  res.status(status).type('text/plain').send(sentence);
}

// Four parameters are how Express knows a handler of errors.
function answerError(error: unknown, _req: Request, res: Response, next: NextFunction): void {
  if (res.headersSent) {
    next(error);
  } else if (error instanceof ClientError) {
    answer(res, error.status, error.message);
  } else {
    // The parser's errors have a status; of their messages, which quote the body, nothing goes out.
    const { status } = Object(error) as { status?: unknown };
    if (status === 413) {
      answer(res, 413, 'That is too large; a haiku has up to three lines and 300 characters.');
    } else if (status === 415) answer(res, 415, 'Send JSON in UTF-8, not compressed.');
    else if (status === 400) answer(res, 400, 'That is not JSON; send {"text": "…"}.');
    else failed(error, res);
  }
}

function failed(error: unknown, res: Response): void {
  console.error(error);
  answer(res, 500, 'Something went wrong on our side.');
}
