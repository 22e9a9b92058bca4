/** A list in no order, from which a member leaves at once: the last one takes its place. Members know theirs. */
export interface IndexedListMember {
  /** Its place in the list, -1 outside. Kept by the list. */
  listIndex: number;
}

export class IndexedList<T extends IndexedListMember> {
  readonly members: T[] = [];

  has(member: T): boolean {
    return this.members[member.listIndex] === member;
  }

  /** @throws {Error} if the member is in a list: it would stay in the first one, and could not leave that any more */
  add(member: T): void {
    if (member.listIndex !== -1) throw new Error('this member is in a list already');
    member.listIndex = this.members.push(member) - 1;
  }

  /** @returns whether it was in */
  delete(member: T): boolean {
    const { listIndex } = member;
    if (listIndex === -1) return false;
    const last = this.members.pop() as T;
    if (last !== member) {
      this.members[listIndex] = last;
      last.listIndex = listIndex;
    }
    member.listIndex = -1;
    return true;
  }
}
