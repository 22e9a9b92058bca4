/** The client of `compare.mjs`. It opens streams when it is told to, and reads and drops all bytes. */
import { connect } from 'node:net';
import process from 'node:process';

const REQUEST = 'GET / HTTP/1.1\r\nHost: localhost\r\nAccept: text/event-stream\r\n\r\n';

/** Time in ms for which a stream that does not stay is open. */
const OPEN_MS = 10;

// Answers when all streams have opened, or, if they do not stay, when all are disconnected.
process.on('message', ({ port, connects, stay }) => {
  let pending = connects;
  const onDone = () => {
    pending--;
    if (pending === 0) process.send('done');
  };
  for (let index = 0; index < connects; index++) {
    const socket = connect(port, '127.0.0.1', () => socket.write(REQUEST));
    socket.on('error', (error) => {
      throw error;
    });
    socket.once('data', () => {
      if (stay) onDone();
      else setTimeout(() => socket.destroy(), OPEN_MS);
    });
    socket.resume();
    if (!stay) socket.on('close', onDone);
  }
});
