import type { Socket } from 'node:net';
import fc from 'fast-check';
import { expect, test } from 'vitest';
import { Audience, type Member, type Pace } from '../src/audience.ts';
import type { Frame } from '../src/frame.ts';
import { LogEntry } from '../src/log-entry.ts';

/** A stream that keeps account of itself as a real one does, and notes what comes to it by whichever way. */
class FakeMember implements Member {
  slot = -1;
  readonly received: number[] = [];
  cursor: number;
  written = 0;
  bytes = 0;
  events = 0;
  inStep = false;
  /** Whether the next frames may go to its socket. */
  isPlain = true;
  readonly socket: { writable: boolean; writableLength: number; write: (chunk: Buffer) => boolean } = {
    writable: true,
    writableLength: 0,
    write: (chunk: Buffer): boolean => {
      if (!this.inStep) throw new Error('written to past a member that is not in step');
      if (!this.socket.writable || this.socket.writableLength > 16_384) throw new Error('written to a socket that is not ready');
      if (chunk.length > 65_600) throw new Error('more than one write may hold');
      const text = chunk.toString();
      this.#note(text.slice(text.indexOf('\r\n') + 2, -2));
      return true;
    },
  };

  constructor(cursor: number) {
    this.cursor = cursor;
  }

  take(frame: Frame): Socket | undefined {
    if (this.inStep) throw new Error('asked while in step');
    const due = frame.entries.filter(({ offset }) => offset > this.cursor);
    if (due.length === 0) return undefined;
    const bytes = Buffer.concat(due.map((entry) => entry.frame));
    this.bytes += bytes.length;
    this.events += due.length;
    this.cursor = frame.last;
    this.#note(bytes.toString());
    return this.isPlain && due.length === frame.entries.length ? (this.socket as unknown as Socket) : undefined;
  }

  steppedIn({ bytes, events }: Pace): void {
    this.inStep = true;
    this.bytes -= bytes;
    this.events -= events;
  }

  steppedOut({ bytes, events, cursor }: Pace): void {
    this.inStep = false;
    this.bytes += bytes;
    this.events += events;
    this.cursor = cursor;
  }

  #note(text: string): void {
    this.written += text.length;
    for (const [, offset] of text.matchAll(/^id: e\.(\d+)$/gm)) this.received.push(Number(offset));
  }
}

type Deed = 'leave' | 'end' | 'flush' | 'step out' | 'block' | 'unblock' | 'break' | 'plain' | 'fussy';

type Step =
  | { do: 'publish'; events: number; size: number }
  | { do: 'begin' | 'join' }
  | { do: 'give'; members: number }
  | { do: 'deed'; deed: Deed; which: number };

const steps: fc.Arbitrary<Step[]> = fc.array(
  fc.oneof(
    {
      weight: 4,
      arbitrary: fc.record({
        do: fc.constant('publish' as const),
        events: fc.integer({ min: 1, max: 3 }),
        size: fc.constantFrom(5, 5, 5, 40_000, 70_000),
      }),
    },
    { weight: 4, arbitrary: fc.record({ do: fc.constantFrom('begin' as const, 'join' as const) }) },
    { weight: 6, arbitrary: fc.record({ do: fc.constant('give' as const), members: fc.integer({ min: 1, max: 5 }) }) },
    {
      weight: 6,
      arbitrary: fc.record({
        do: fc.constant('deed' as const),
        deed: fc.constantFrom<Deed>('leave', 'end', 'flush', 'step out', 'block', 'unblock', 'break', 'plain', 'fussy'),
        which: fc.nat(1_000),
      }),
    },
  ),
  // Short ones, which are the default, hardly ever have a leaving member with others in step.
  { minLength: 5, maxLength: 80, size: 'max' },
);

/** An audience, and what each that was ever in it has to have by the end. */
class World {
  readonly audience = new Audience(['a']);
  readonly members: FakeMember[] = [];
  head = 0;

  do(step: Step): void {
    switch (step.do) {
      case 'publish': {
        for (let count = 0; count < step.events; count++) {
          this.audience.push(new LogEntry({ channel: 'a', epoch: 'e', offset: ++this.head, data: 'x'.repeat(step.size) }));
        }
        break;
      }
      case 'begin': {
        this.audience.begin();
        break;
      }
      case 'give': {
        if (this.audience.isGiving) this.audience.give(step.members);
        break;
      }
      case 'join': {
        const member = new FakeMember(this.head);
        this.members.push(member);
        this.audience.add(member);
        break;
      }
      case 'deed': {
        const present = this.audience.members as FakeMember[];
        const member = present[step.which % Math.max(1, present.length)];
        if (member !== undefined) this.#doTo(member, step.deed);
        break;
      }
    }
  }

  #doTo(member: FakeMember, deed: Deed): void {
    switch (deed) {
      case 'leave': {
        // As a stream that unsubscribes does: what it is owed comes first.
        this.#flush(member);
        this.audience.delete(member);
        break;
      }
      case 'end': {
        // As one that is cut off does: what it is owed is owed no more.
        this.audience.delete(member);
        break;
      }
      case 'flush': {
        this.#flush(member);
        break;
      }
      case 'step out': {
        this.audience.stepOut(member);
        break;
      }
      case 'block':
      case 'unblock': {
        member.socket.writableLength = deed === 'block' ? 20_000 : 0;
        break;
      }
      case 'break': {
        member.socket.writable = false;
        break;
      }
      case 'plain':
      case 'fussy': {
        member.isPlain = deed === 'plain';
        if (!member.isPlain) this.audience.stepOut(member);
        break;
      }
    }
  }

  #flush(member: FakeMember): void {
    this.audience.flush(member);
    if (member.cursor !== this.head) throw new Error('something is owed after a flush');
  }

  /** All that was published is given. */
  rest(): void {
    for (;;) {
      while (this.audience.isGiving) this.audience.give(3);
      if (!this.audience.begin()) return;
    }
  }
}

test('every member is given everything once and in order, however frames, those who come and those who leave meet', () => {
  fc.assert(
    fc.property(steps, (all) => {
      const world = new World();
      const joined = new Map<FakeMember, number>();
      const left = new Map<FakeMember, number>();
      for (const step of all) {
        world.do(step);
        for (const member of world.members) {
          if (!joined.has(member)) joined.set(member, world.head);
          if (member.slot === -1 && !left.has(member)) left.set(member, member.cursor);
        }
      }
      world.rest();
      for (const member of world.members) {
        const from = joined.get(member) as number;
        const until = left.get(member) ?? world.head;
        expect(member.received).toEqual(Array.from({ length: until - from }, (_, index) => from + 1 + index));
        world.audience.stepOut(member);
        expect({ cursor: member.cursor, bytes: member.bytes, events: member.events }).toEqual({
          cursor: until,
          bytes: member.written,
          events: until - from,
        });
      }
      const present = world.audience.members;
      expect(present.map(({ slot }) => slot)).toEqual([...present.keys()]);
    }),
    { numRuns: 2_000 },
  );
});

test('a member that has taken a whole frame is not asked again, until somebody takes it out of step', () => {
  const world = new World();
  const publishAndGive = (): void => {
    world.do({ do: 'publish', events: 1, size: 5 });
    world.rest();
  };
  world.do({ do: 'join' });
  const [member] = world.members as [FakeMember];
  expect([world.audience.paceOf(member), member.inStep]).toEqual([undefined, false]);
  publishAndGive();
  expect([world.audience.paceOf(member)?.cursor, member.inStep]).toEqual([1, true]);
  publishAndGive();
  expect([world.audience.paceOf(member)?.cursor, member.inStep]).toEqual([2, true]);
  world.audience.flush(member);
  expect([world.audience.paceOf(member), member.inStep, member.cursor]).toEqual([undefined, false, 2]);
  publishAndGive();
  expect([world.audience.paceOf(member)?.cursor, member.received]).toEqual([3, [1, 2, 3]]);
});

test('what comes again is given to nobody again', () => {
  const world = new World();
  world.do({ do: 'join' });
  const [member] = world.members as [FakeMember];
  for (const offset of [1, 2, 2, 1, 3]) {
    world.audience.push(new LogEntry({ channel: 'a', epoch: 'e', offset, data: '' }));
    world.rest();
  }
  expect(member.received).toEqual([1, 2, 3]);
});

/** Keeps count as a stream does, and of nothing else. */
function countingMember(): Member & { bytes: number } {
  return {
    slot: -1,
    bytes: 0,
    take({ bytes }) {
      this.bytes += bytes.length;
      return { writable: true, writableLength: 0, write: () => true } as unknown as Socket;
    },
    steppedIn({ bytes }) {
      this.bytes -= bytes;
    },
    steppedOut({ bytes }) {
      this.bytes += bytes;
    },
  };
}

test("a stream's counts are no larger for what its audience was given before it came", () => {
  const audience = new Audience(['a']);
  // Few and large, where a real audience is given many and small.
  const bytes = Buffer.alloc(2 ** 27);
  let offset = 0;
  function give(frame: Buffer): void {
    audience.push({ offset: ++offset, frame, rest: () => {} } as unknown as LogEntry);
    audience.begin();
    audience.give(2);
  }
  const [early, late] = [countingMember(), countingMember()];
  audience.add(early);
  for (let count = 0; count < 20; count++) give(bytes);
  audience.add(late);
  for (let count = 0; count < 3; count++) give(Buffer.alloc(100));
  // In step: what is on the audience's account is taken off its own.
  expect(audience.paceOf(late)).toBeDefined();
  expect(Math.abs(late.bytes)).toBeLessThan(2 ** 31);
  for (const member of [early, late]) audience.stepOut(member);
  expect([early.bytes, late.bytes]).toEqual([20 * 2 ** 27 + 300, 300]);
});
