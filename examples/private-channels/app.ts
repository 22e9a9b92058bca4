/**
 * Channels with restricted access: a channel for each user, and rooms with members. A user who logs
 * out or leaves a room receives no further events.
 *
 *     npx tsx private-channels/server.ts
 *     curl -c ada -H 'Content-Type: application/json' -d '{"user":"ada"}' localhost:3000/login
 *     curl -b ada -N -H 'Accept: text/event-stream' localhost:3000/rooms/engine/events
 *     curl -b ada -H 'Content-Type: application/json' -d '{"text":"hello"}' localhost:3000/rooms/engine/messages
 *     curl -b ada -X POST localhost:3000/logout
 *
 * The members of `engine` are ada and charles. Another user, such as grace, gets 403 there, and a
 * client that is not logged in gets 401.
 */
import { randomBytes } from 'node:crypto';
import express, { type NextFunction, type Request, type Response } from 'express';
import session from 'express-session';
import { createChannels, sse, type EventStream } from 'res-sse';
import type { Example } from '../serve.ts';

declare module 'express-session' {
  interface SessionData {
    user: string;
  }
}

interface Schema {
  [user: `user:${string}`]: { notice: { text: string } };
  [room: `room:${string}`]: { message: { from: string; text: string } };
}

export function createExample(): Example {
  const members = new Map([['engine', new Set(['ada', 'charles'])]]);
  const channels = createChannels<Schema>();
  // The session is checked again when the client reconnects. With a maximum lifetime of the stream,
  // an expired session, or a logout on another node, takes effect after that time at the latest.
  const events = sse({ channels, maxLifetime: 15 * 60_000 });
  const app = express();
  app.use(
    session({
      secret: randomBytes(32).toString('hex'),
      resave: false,
      saveUninitialized: false,
      cookie: { sameSite: 'lax' },
    }),
  );
  app.use(events, express.json());

  app.post('/login', (req, res, next) => {
    const { user } = req.body as { user: string };
    // A real application checks a password here. The user gets a new session, because an attacker
    // may know the id of the old one (session fixation).
    req.session.regenerate((error) => {
      if (error) return next(error);
      req.session.user = user;
      res.sendStatus(204);
    });
  });
  app.use(requireUser);

  app.post('/logout', (req, res, next) => {
    const { sessionID } = req;
    // The session is destroyed before the streams end. In the other order, a client could reconnect
    // in between with the old session.
    req.session.destroy((error) => {
      if (error) return next(error);
      events.closeWhere((stream) => requestOf(stream).sessionID === sessionID, { final: true });
      res.sendStatus(204);
    });
  });

  app.get(
    '/events',
    channels.listen((req) => `user:${userOf(req)}`),
  );
  app.post('/users/:user/notices', async (req, res) => {
    await channels.publish(
      `user:${req.params.user}`,
      { text: `${userOf(req)} waves at you` },
      { event: 'notice' },
    );
    res.sendStatus(202);
  });

  app.get(
    '/rooms/:room/events',
    channels.listen((req: Request<{ room: string }>) => {
      const { room } = req.params;
      return mayRead(req, room) ? `room:${room}` : null;
    }),
  );
  app.post('/rooms/:room/messages', async (req, res) => {
    const { room } = req.params;
    const { text } = req.body as { text: string };
    const isMember = mayRead(req, room);
    if (isMember) {
      await channels.publish(`room:${room}`, { from: userOf(req), text }, { event: 'message' });
    }
    res.sendStatus(isMember ? 202 : 403);
  });
  app.post('/rooms/:room/leave', (req, res) => {
    const { room } = req.params;
    const user = userOf(req);
    members.get(room)?.delete(user);
    // The streams of the user in this room, in all tabs and sessions.
    events.closeWhere(
      (stream) => requestOf(stream).params['room'] === room && userOf(requestOf(stream)) === user,
      { final: true },
    );
    res.sendStatus(204);
  });

  function mayRead(req: Request<{ room: string }>, room: string): boolean {
    return members.get(room)?.has(userOf(req)) ?? false;
  }

  return { app, events, close: () => channels.close() };
}

/** Refuses requests without a user. All routes behind this middleware have a user. */
function requireUser(req: Request, res: Response, next: NextFunction): void {
  if (req.session.user === undefined) res.sendStatus(401);
  else next();
}

function userOf(req: Pick<Request, 'session'>): string {
  return req.session.user as string;
}

/** @returns the request as an object of Express, with the properties that middleware has added */
function requestOf(stream: EventStream): Request {
  return stream.req as Request;
}
