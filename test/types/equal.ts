/** Whether two types are the same, `any` being the same as `any` only. */
export type Equal<A, B> =
  (<T>() => T extends A ? 1 : 2) extends <T>() => T extends B ? 1 : 2 ? true : false;

/** `holds<Equal<A, B>>()` does not compile unless it holds. */
export declare function holds<_Claim extends true>(): void;
