/**
 * A parser for parts of the Redis protocol, versions 2 and 3: it finds the end of a reply, and the
 * content of a message.
 */

/** A message of Pub/Sub. */
export interface Message {
  readonly topic: string;
  readonly payload: Buffer;
}

// Types whose value is on the same line; types that are followed by a number of bytes; types that
// are followed by a number of values (a map by pairs).
const LINE = '+-:_#,(';
const BULK = '$=!';
const VALUES: Readonly<Record<string, number>> = { '*': 1, '>': 1, '~': 1, '%': 2, '|': 2 };

/**
 * @returns the end of the value that begins at the offset; `undefined` if it is not complete yet
 */
export function endOfValue(bytes: Buffer, at: number): number | undefined {
  const line = bytes.indexOf('\r\n', at);
  if (line === -1) return undefined;
  const type = String.fromCharCode(bytes[at] as number);
  if (LINE.includes(type)) return line + 2;
  const count = Number(bytes.toString('latin1', at + 1, line));
  if (BULK.includes(type)) {
    const end = count === -1 ? line + 2 : line + 2 + count + 2;
    return end <= bytes.length ? end : undefined;
  }
  const each = VALUES[type];
  if (each === undefined) throw new Error(`no type of the protocol: ${JSON.stringify(type)}`);
  let end: number | undefined = line + 2;
  for (let index = 0; index < count * each && end !== undefined; index++) {
    end = endOfValue(bytes, end);
  }
  // Attributes precede the value to which they belong.
  return type === '|' && end !== undefined ? endOfValue(bytes, end) : end;
}

/** @returns the message, if the value is a message */
export function messageOf(value: Buffer): Message | undefined {
  const type = String.fromCharCode(value[0] as number);
  if ((type !== '*' && type !== '>') || value[1] !== '3'.charCodeAt(0)) return undefined;
  const strings: Buffer[] = [];
  let at = value.indexOf('\r\n') + 2;
  while (at < value.length && value[at] === '$'.charCodeAt(0)) {
    const end = endOfValue(value, at) as number;
    strings.push(value.subarray(value.indexOf('\r\n', at) + 2, end - 2));
    at = end;
  }
  const [kind, topic, payload] = strings;
  const isMessage = strings.length === 3 && ['message', 'smessage'].includes(String(kind));
  return isMessage ? { topic: String(topic), payload: payload as Buffer } : undefined;
}
