/** The HTTP/2 session of a response. Over HTTP/1 there is none, and nothing here has an effect. */
import type { Http2ServerResponse, Http2Session } from 'node:http2';

// After a response is closed, its stream has no reference to the session any more.
const sessionKey = Symbol('res-sse.session');

interface ResponseWithSession {
  [sessionKey]?: Http2Session | undefined;
}

/** Remembers the session of an open stream, so that it can be closed when the stream has ended. */
export function rememberSession(res: object): void {
  if ('stream' in res) (res as ResponseWithSession)[sessionKey] = currentSession(res);
}

/** Closes the session: it accepts no new streams, and ends with its last one. */
export function closeSession(res: object): void {
  ((res as ResponseWithSession)[sessionKey] ?? currentSession(res))?.close();
}

/** The session of the response. The mock responses of some adapters have no session. */
function currentSession(res: object): Http2Session | undefined {
  return (res as Partial<Http2ServerResponse>).stream?.session;
}
