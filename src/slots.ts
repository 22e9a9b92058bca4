/** A list in no order, from which a member leaves at once: the last one takes its place. Members know theirs. */
export interface Slotted {
  /** Its place in the list, -1 outside. Kept by the list. */
  slot: number;
}

export class Slots<T extends Slotted> {
  readonly members: T[] = [];

  has(member: T): boolean {
    return this.members[member.slot] === member;
  }

  add(member: T): void {
    member.slot = this.members.push(member) - 1;
  }

  /** @returns whether it was in */
  delete(member: T): boolean {
    const { slot } = member;
    if (slot === -1) return false;
    const last = this.members.pop() as T;
    if (last !== member) {
      this.members[slot] = last;
      last.slot = slot;
    }
    member.slot = -1;
    return true;
  }
}
