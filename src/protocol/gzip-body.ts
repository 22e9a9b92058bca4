/** The gzip body of one stream. It keeps a checksum, a length and a position, and no compressor. */
import {
  GZIP_HEADER,
  NO_TOTALS,
  addToTotals,
  encodeAlone,
  gzipTrailer,
  moveTotals,
  type GzipTotals,
} from './gzip.ts';
import type { GzipWindow } from './gzip-window.ts';
import type { SharedBytes, WireBytes } from './shared-bytes.ts';

const NOTHING = Buffer.alloc(0);

/** The totals of one compressed stream, and its place in the window of its group. */
export class GzipBody {
  // As a signed integer: V8 would allocate an object for a larger number.
  #checksum = 0;
  #length = 0;
  // The last bytes of the body, after its end.
  #end: Buffer | undefined;
  // The window whose text the stream has received last, and nothing since; from which position of
  // the window, and up to which.
  #window: GzipWindow | undefined;
  #receivedSince = 0;
  #receivedUpTo = 0;
  // The totals of the group when the stream was attached.
  #groupTotals: GzipTotals | undefined;

  /** The first bytes of the body. */
  begin(text: Buffer): Buffer {
    return Buffer.concat([GZIP_HEADER, this.encode(text)]);
  }

  /** Whether the stream can decode the next block of the window, so that it may be attached. */
  get isInside(): boolean {
    return this.#window?.willBeInside(this.#receivedSince) === true;
  }

  /** Whether {@link end} was called. */
  get hasEnded(): boolean {
    return this.#end !== undefined;
  }

  /** Whether these are the bytes that {@link end} has returned. */
  isEnd(bytes: Buffer): boolean {
    return this.#end?.equals(bytes) === true;
  }

  /** The block of bytes that only this stream gets. They never share a dictionary with others. */
  encode(bytes: Buffer): Buffer {
    // A wrapped `end()` writes before it passes the end on. Text there would not be in the
    // checksum.
    if (this.#end !== undefined) return NOTHING;
    this.#window = undefined;
    this.totals = addToTotals(this.totals, bytes);
    return encodeAlone(bytes);
  }

  /**
   * The block of bytes that many streams get.
   * @param window of the group that gets these bytes
   */
  encodeShared(shared: SharedBytes, window: GzipWindow | undefined): WireBytes {
    this.totals = addToTotals(this.totals, shared.bytes);
    const block = window?.blockOf(shared);
    if (window === undefined || block === undefined) {
      this.#window = undefined;
      return shared.gzip;
    }
    if (this.#window !== window || this.#receivedUpTo !== window.start) {
      this.#window = window;
      this.#receivedSince = window.start;
    }
    this.#receivedUpTo = window.end;
    if (this.isInside) window.countInside();
    return window.isInside(this.#receivedSince) ? block : shared.gzip;
  }

  /** The last bytes of the body. Nothing may be written after them. */
  end(last: Buffer): Buffer {
    const block = this.encode(last);
    const trailer = gzipTrailer(this.totals);
    this.#end = Buffer.concat([block, trailer]);
    return this.#end;
  }

  /** From here on the totals of the group count for the stream. */
  onAttached(groupTotals: GzipTotals): void {
    this.#groupTotals = groupTotals;
  }

  /** The stream takes over what its group has received since it was attached. */
  onDetached(groupTotals: GzipTotals): void {
    const before = this.#groupTotals ?? NO_TOTALS;
    this.#groupTotals = undefined;
    this.totals = moveTotals(this.totals, before, groupTotals);
    this.#receivedUpTo += (groupTotals.length - before.length) >>> 0;
  }

  // Not `#`: V8 would mark each object, see `ResponseWriter`.
  private get totals(): GzipTotals {
    return { checksum: this.#checksum >>> 0, length: this.#length };
  }

  private set totals({ checksum, length }: GzipTotals) {
    this.#checksum = checksum | 0;
    this.#length = length;
  }
}
