/** The HTTP/2 session of a response. Over HTTP/1 there is none, and nothing here has an effect. */
import type { Http2ServerResponse, Http2Session } from 'node:http2';

// Once a response is closed, its stream does not name the session any more.
const sessionKey = Symbol('res-sse.session');

interface TaggedResponse {
  [sessionKey]?: Http2Session | undefined;
}

/** Remembers the session of an open stream, so that it can be closed when the stream has ended. */
export function rememberSession(res: object): void {
  if ('stream' in res) (res as TaggedResponse)[sessionKey] = currentSession(res);
}

/** Closes the session: it accepts no new streams, and ends with its last one. */
export function closeSession(res: object): void {
  ((res as TaggedResponse)[sessionKey] ?? currentSession(res))?.close();
}

/** The session that carries the response now. The mocks of some adapters have none. */
function currentSession(res: object): Http2Session | undefined {
  return (res as Partial<Http2ServerResponse>).stream?.session;
}
