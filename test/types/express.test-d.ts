/** Types for users of Express. Compiled, not executed. */
import express, { type Request, type RequestHandler, type Response } from 'express';
import { createServer, type IncomingMessage, type ServerResponse } from 'node:http';
import { createServer as createHttp2Server } from 'node:http2';
import { createChannels, sse, stream, type EventStream } from '../../src/index.ts';
import { holds, type Equal } from './equal.ts';

declare global {
  // Extends the request as passport and other packages do.
  namespace Express {
    interface Request {
      role?: 'admin' | 'guest';
    }
  }
}

const app = express();
const channels = createChannels();
app.use(sse());
app.use(sse({ channels, heartbeat: undefined }));
app.use(
  sse({ channels, identity: (req) => req.role, authorize: ({ req }) => req.role !== 'guest' }),
);
const middleware = sse({ channels });
const roles = [...middleware.streams].map(({ req }) => req.role);
holds<Equal<typeof roles, ('admin' | 'guest' | undefined)[]>>();
middleware.closeWhere(({ req }) => req.role === 'guest');
app.get('/clock', sse({ heartbeat: 5_000 }), (_req, res) => void res.sse?.send(1));

// `res.sse` is defined only for requests that accept a stream.
app.get('/raw', (_req, res) => {
  holds<Equal<typeof res.sse, EventStream | undefined>>();
  // @ts-expect-error -- it may be undefined
  res.sse.send('hello');
  res.sse?.send('hello', { event: 'greeting', id: 1n, retry: 0 });
  // @ts-expect-error -- an event is a string
  res.sse?.send('hello', { event: 1 });
});

// The example of sse() in its JSDoc.
app.get('/example', (_req, res) => {
  const stream = res.sse;
  if (stream === undefined) {
    res.sendStatus(406);
    return;
  }
  const timer = setInterval(() => stream.send(new Date()), 1_000);
  void stream.closed.then(() => clearInterval(timer));
});

// `stream()` passes the request and the response of Express.
app.get(
  '/jobs/:job',
  stream((stream, req, res) => {
    holds<Equal<typeof stream, EventStream>>();
    holds<Equal<typeof req, Request<Record<string, string>>>>();
    holds<Equal<typeof res, Response>>();
    const job: string | undefined = req.params['job'];
    stream.send({ job, role: req.role, ip: req.ip, agent: req.get('user-agent') });
    // @ts-expect-error -- no such property
    void req.nonsense;
  }),
);
app.post(
  '/jobs/:job',
  express.json(),
  stream(async function* (stream, req) {
    yield [req.params['job'], req.body, stream.lastEventId];
  }),
);
express.Router().get(
  '/jobs/:job',
  stream((_stream, req) => {
    holds<Equal<typeof req, Request<Record<string, string>>>>();
  }),
);

// The parameters of a route are inferred if they are known.
app.route('/jobs/:job').get(
  stream((_stream, req) => {
    holds<Equal<typeof req.params, { job: string }>>();
  }),
);
export const typed: RequestHandler<{ job: string }> = stream((_stream, req) => {
  holds<Equal<typeof req.params, { job: string }>>();
});
app.get(
  '/jobs/:job',
  stream((_stream, req: Request<{ job: string }>) => {
    holds<Equal<typeof req.params, { job: string }>>();
  }),
);

// Other handlers of the route keep their inferred parameters.
app.get(
  '/rooms/:room',
  (req, _res, next) => {
    holds<Equal<typeof req.params, { room: string }>>();
    next();
  },
  channels.listen('lobby'),
);

// `listen()` derives names from the request of Express.
app.get('/rooms', channels.listen('lobby'));
app.get('/rooms', channels.listen(['lobby', 'hall']));
app.get(
  '/rooms/:room',
  channels.listen(
    (req) => {
      holds<Equal<typeof req, Request<Record<string, string>>>>();
      return req.role === 'admin' ? [`room:${req.params['room']}`] : null;
    },
    (req) => ({ filter: (event) => event.channel !== req.query['not'] }),
  ),
);
app.get(
  '/rooms/:room',
  channels.listen(async (req) => req.params['room'] ?? null),
);
// @ts-expect-error -- a channel has a name
channels.listen(() => 7);

// The same handlers on servers without a framework.
const events = sse();
const hello = stream((stream) => void stream.send('hello'));
const bare = stream((_stream, req: IncomingMessage, res: ServerResponse) => {
  holds<Equal<typeof req, IncomingMessage>>();
  holds<Equal<typeof res, ServerResponse>>();
});
app.get('/bare', bare);
createServer((req, res) => events(req, res, () => hello(req, res, () => bare(req, res, () => {}))));
createHttp2Server((req, res) =>
  events(req, res, () => channels.listen('lobby')(req, res, () => {})),
);
