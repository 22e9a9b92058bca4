import type { Broker } from '../../src/index.ts';

/** @returns a broker with these members; all other members are those of `inner` */
export function brokerWith(inner: Broker, members: Partial<Broker>): Broker {
  return new Proxy(inner, {
    get(_, name) {
      if (Object.hasOwn(members, name)) return Reflect.get(members, name);
      const member: unknown = Reflect.get(inner, name);
      return typeof member === 'function' ? (member.bind(inner) as unknown) : member;
    },
  });
}
