/**
 * Resources to dispose of later, the newest first, like `AsyncDisposableStack`, which Node 20 does
 * not have.
 */
export class Resources implements AsyncDisposable {
  #disposals: (() => unknown)[] = [];

  use<T extends AsyncDisposable>(resource: T): T {
    this.defer(() => resource[Symbol.asyncDispose]());
    return resource;
  }

  defer(dispose: () => unknown): void {
    this.#disposals.push(dispose);
  }

  /** Moves all resources to a new object, so that they are not disposed of with this one. */
  move(): Resources {
    const moved = new Resources();
    moved.#disposals = this.#disposals;
    this.#disposals = [];
    return moved;
  }

  async [Symbol.asyncDispose](): Promise<void> {
    const errors: unknown[] = [];
    for (
      let dispose = this.#disposals.pop();
      dispose !== undefined;
      dispose = this.#disposals.pop()
    ) {
      try {
        await dispose();
      } catch (error) {
        errors.push(error);
      }
    }
    if (errors.length > 0) throw errors[0];
  }
}
