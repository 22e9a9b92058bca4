/** Types of `res-sse/client`. Compiled, not executed. */
import { connect, type Connection, type Gap } from '../../src/client/index.ts';
import { holds, type Equal } from './equal.ts';

interface Schema {
  haiku: { text: { text: string; at: Date }; typing: { author: string } };
}

const live = connect<Schema['haiku']>('/listen', {
  on: {
    text(haiku, event) {
      // JSON turns a date into a string.
      holds<Equal<typeof haiku, { text: string; at: string }>>();
      holds<Equal<typeof event.id, string | undefined>>();
    },
    typing: ({ author }) => void author,
  },
  headers: async () => ({ Authorization: 'Bearer token' }),
  credentials: 'include',
  share: 'user 7',
  lastEventId: undefined,
  onGap: (gap) => holds<Equal<typeof gap, Gap>>(),
  onState(state, error) {
    if (state === 'failed') void error?.status;
    // @ts-expect-error -- no such state
    if (state === 'closed') void error;
  },
});
holds<Equal<typeof live, Connection>>();
live.close();

// @ts-expect-error -- no such event
connect<Schema['haiku']>('/listen', { on: { txet: () => {} } });
// @ts-expect-error -- no such option
connect('/listen', { withCredentials: true });

// Without a schema any name is accepted, and the data is unknown.
connect(new URL('http://localhost/listen'), {
  on: { anything: (data) => holds<Equal<typeof data, unknown>>() },
});
