/** Whether two types are identical. `any` is identical only to `any`. */
export type Equal<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

/** `holds<Equal<A, B>>()` compiles only if the types are identical. */
export declare function holds<_Claim extends true>(): void;
