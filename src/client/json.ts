/** Parsing of data that may be JSON. */

/** Returns the value of a JSON text, and any other text unchanged. */
export function parseJson(text: string): unknown {
  try {
    return JSON.parse(text);
  } catch {
    return text;
  }
}
