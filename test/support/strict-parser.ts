/**
 * A parser of the event stream format that follows the standard (WHATWG HTML, 9.2.5 and 9.2.6)
 * sentence by sentence, and is not optimised. It reads bytes in pieces of any size.
 */
import type { Readable } from 'node:stream';

export interface ParsedEvent {
  type: string;
  data: string;
  lastEventId: string;
}

export class StrictParser {
  /** Reads the body of a response, or any other stream that contains only an event stream. */
  static of(stream: Readable): StrictParser {
    const parser = new StrictParser();
    stream.on('data', (chunk: Buffer) => parser.feed(chunk));
    return parser;
  }

  /** Reads the bytes after the head of a response that is not chunked (HTTP/1.0). */
  static behindHead(socket: Readable): StrictParser {
    const parser = new StrictParser();
    let head: string | undefined = '';
    socket.on('data', (chunk: Buffer) => {
      if (head === undefined) {
        parser.feed(chunk);
        return;
      }
      head += chunk.toString('latin1');
      const end = head.indexOf('\r\n\r\n');
      if (end === -1) return;
      parser.feed(Buffer.from(head.slice(end + 4), 'latin1'));
      head = undefined;
    });
    return parser;
  }

  readonly events: ParsedEvent[] = [];
  readonly comments: string[] = [];
  reconnectionTime: number | undefined;
  lastEventId = '';
  // "UTF-8 decode" strips one leading BOM.
  #decoder = new TextDecoder('utf-8');
  #rest = '';
  #data = '';
  #type = '';
  #id = '';

  feed(bytes: Uint8Array): this {
    this.#rest += this.#decoder.decode(bytes, { stream: true });
    for (;;) {
      const end = /\r\n|\n|\r/.exec(this.#rest);
      if (end === null) return this;
      // A CR at the very end may be the first half of a CRLF.
      if (end[0] === '\r' && end.index === this.#rest.length - 1) return this;
      const line = this.#rest.slice(0, end.index);
      this.#rest = this.#rest.slice(end.index + end[0].length);
      this.#line(line);
    }
  }

  #line(line: string): void {
    if (line === '') return this.#dispatch();
    if (line.startsWith(':')) {
      this.comments.push(line.slice(1));
      return;
    }
    const colon = line.indexOf(':');
    if (colon === -1) return this.#field(line, '');
    const value = line.slice(colon + 1);
    this.#field(line.slice(0, colon), value.startsWith(' ') ? value.slice(1) : value);
  }

  #field(name: string, value: string): void {
    if (name === 'event') this.#type = value;
    else if (name === 'data') this.#data += `${value}\n`;
    else if (name === 'id' && !value.includes('\0')) this.#id = value;
    else if (name === 'retry' && /^[0-9]+$/.test(value)) this.reconnectionTime = Number(value);
  }

  #dispatch(): void {
    this.lastEventId = this.#id;
    if (this.#data === '') {
      this.#type = '';
      return;
    }
    this.events.push({
      type: this.#type === '' ? 'message' : this.#type,
      data: this.#data.slice(0, -1),
      lastEventId: this.lastEventId,
    });
    this.#data = '';
    this.#type = '';
  }
}
