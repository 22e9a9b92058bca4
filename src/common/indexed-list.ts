/**
 * An unordered list from which a member is deleted in constant time ("swap-remove"): each member
 * knows its index, and the last member takes the place of the deleted one.
 *
 * ```text
 * members     a  b  c  d          delete(b)          a  d  c
 * listIndex   0  1  2  3                             0  1  2          b: -1
 * ```
 */

/** A member of an {@link IndexedList}. */
export interface IndexedListMember {
  /** The index of the member, -1 outside of a list. Only the list changes the index. */
  listIndex: number;
}

/** The list. A member can be in one list at a time. */
export class IndexedList<T extends IndexedListMember> {
  readonly members: T[] = [];

  /** Whether the member is in this list. */
  has(member: T): boolean {
    return this.members[member.listIndex] === member;
  }

  /**
   * Adds a member at the end.
   * @throws {Error} if the member is in a list: it would remain in that list and could not leave it
   */
  add(member: T): void {
    if (member.listIndex !== -1) throw new Error('this member is in a list already');
    member.listIndex = this.members.push(member) - 1;
  }

  /**
   * Removes a member. The member must be in this list or in no list.
   * @returns whether the member was in this list
   */
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
