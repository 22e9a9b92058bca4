/**
 * The newest text that a group of streams has received, to which the next block of the group may
 * refer.
 *
 * ```text
 * text of the group     ──────────────┬────────────┬───────────────┐
 *                                     │ dictionary │ current text  │
 *                                     └────────────┴───────────────┘
 * position              0             dictionaryStart  start       end
 * ```
 *
 * A stream is *inside* if it has received all text of the group since `dictionaryStart`, and
 * nothing else in between. Only then it can decode a block that was made with the dictionary. A
 * stream that has joined, or has written anything of its own, is outside until it has received as
 * much text of the group as a dictionary has. Until then its blocks refer to nothing.
 */
import { deflateBlock } from './gzip.ts';
import { WireBytes, type SharedBytes } from './shared-bytes.ts';

// Maximum bytes of a dictionary. With 32 KiB a block of 200 B takes twice the time, and becomes 3 %
// smaller.
const MAX_DICTIONARY_BYTES = 8_192;

// A group of fewer streams has no dictionary: compressing for the group would cost more than is
// saved. The blocks without a dictionary are shared by all groups.
const MIN_STREAMS = 16;

const EMPTY: Buffer = Buffer.alloc(0);

/** The window of one group, and its block of the current text. */
export class GzipWindow {
  #dictionary = EMPTY;
  #start = 0;
  #end = 0;
  #dictionaryStart = 0;
  #text: SharedBytes | undefined;
  #block: WireBytes | undefined;
  #insideCount = 0;

  /** Position of the current text. */
  get start(): number {
    return this.#start;
  }

  /** Position after the current text. */
  get end(): number {
    return this.#end;
  }

  /** Whether a stream can decode the block of the current text. */
  isInside(receivedSince: number): boolean {
    return receivedSince <= this.#dictionaryStart;
  }

  /** Whether a stream that has received the current text can decode the block of the next text. */
  willBeInside(receivedSince: number): boolean {
    return receivedSince <= this.#end - this.#dictionary.length;
  }

  /** Counts a stream that is inside. */
  countInside(): void {
    this.#insideCount++;
  }

  /** The block of the current text; `undefined` if the current text is another one. */
  blockOf(text: SharedBytes): WireBytes | undefined {
    return this.#text === text ? this.#block : undefined;
  }

  /**
   * Moves on to the next text.
   * @param streams number of streams of the group
   * @param attached number of streams that are inside without being counted
   * @returns the block of the text for the streams that are inside
   */
  moveTo(text: SharedBytes, streams: number, attached: number): WireBytes {
    const inside = Math.max(attached, this.#insideCount);
    this.#insideCount = 0;
    // If most streams are outside, all streams get the block without a dictionary once, and are
    // inside afterwards.
    if (streams < MIN_STREAMS || inside * 4 < streams) this.#dictionary = EMPTY;
    this.#text = text;
    this.#block =
      this.#dictionary.length === 0
        ? text.gzip
        : new WireBytes(deflateBlock(text.bytes, this.#dictionary));
    this.#start = this.#end;
    this.#dictionaryStart = this.#start - this.#dictionary.length;
    this.#end += text.bytes.length;
    this.#dictionary = streams < MIN_STREAMS ? EMPTY : joinEnd(this.#dictionary, text.bytes);
    return this.#block;
  }

  /** Releases the current text and its block. */
  release(): void {
    this.#text = undefined;
    this.#block = undefined;
  }
}

/** The last bytes of both, at most {@link MAX_DICTIONARY_BYTES}. */
function joinEnd(dictionary: Buffer, bytes: Buffer): Buffer {
  const kept = dictionary.subarray(
    Math.max(0, dictionary.length + bytes.length - MAX_DICTIONARY_BYTES),
  );
  return Buffer.concat([kept, bytes.subarray(-MAX_DICTIONARY_BYTES)]);
}
