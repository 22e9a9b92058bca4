import { describe, expect, test } from 'vitest';
import { createExample } from '../../examples/private-channels/app.ts';
import { read, type Reader } from '../support/reader.ts';
import { until } from '../support/wait.ts';
import { post, serveExample } from './serve-example.ts';

/** Logs in. @returns the headers of a browser that has */
async function login(url: string, user: string): Promise<Record<string, string>> {
  const response = await post(`${url}/login`, { user });
  expect(response.status).toBe(204);
  return { Cookie: (response.headers.get('Set-Cookie') as string).split(';')[0] as string };
}

/** Follows, and is live. */
async function follow(url: string, headers: Record<string, string>): Promise<Reader> {
  const reader = await read(url, { headers });
  expect(reader.response.status).toBe(200);
  await until('the start', () => reader.checkpoints.length === 1);
  return reader;
}

function statusOf(url: string, headers: Record<string, string> = {}): Promise<number> {
  return fetch(url, { headers: { Accept: 'text/event-stream', ...headers } }).then(
    ({ status }) => status,
  );
}

describe('who gets in', () => {
  test('a member of a room reads it, others get 403, who is not logged in 401', async () => {
    await using server = await serveExample(createExample());
    const room = `${server.url}/rooms/engine`;
    const ada = await login(server.url, 'ada');
    const charles = await login(server.url, 'charles');
    const grace = await login(server.url, 'grace');
    using reader = await follow(`${room}/events`, charles);
    expect((await post(`${room}/messages`, { text: 'hello' }, { headers: ada })).status).toBe(202);
    expect(await reader.next()).toMatchObject({ data: '{"from":"ada","text":"hello"}' });
    expect((await post(`${room}/messages`, { text: 'hello' }, { headers: grace })).status).toBe(
      403,
    );
    expect(await statusOf(`${room}/events`, grace)).toBe(403);
    expect(await statusOf(`${server.url}/rooms/none/events`, ada)).toBe(403);
    expect(await statusOf(`${room}/events`)).toBe(401);
    expect(
      await statusOf(`${server.url}/events`, { Cookie: 'connect.sid=s%3Aforged.signature' }),
    ).toBe(401);
    expect(reader.events.length).toBe(1);
  });

  test("a user's own channel is read by that user only", async () => {
    await using server = await serveExample(createExample());
    const ada = await login(server.url, 'ada');
    const grace = await login(server.url, 'grace');
    using adas = await follow(`${server.url}/events`, ada);
    using graces = await follow(`${server.url}/events`, grace);
    await post(`${server.url}/users/ada/notices`, {}, { headers: grace });
    await post(`${server.url}/users/grace/notices`, {}, { headers: ada });
    expect(await adas.next()).toMatchObject({
      event: 'notice',
      data: '{"text":"grace waves at you"}',
    });
    expect(await graces.next()).toMatchObject({
      event: 'notice',
      data: '{"text":"ada waves at you"}',
    });
    expect([adas.events.length, graces.events.length]).toEqual([1, 1]);
  });

  test('an id of another channel opens nothing', async () => {
    await using server = await serveExample(createExample());
    const ada = await login(server.url, 'ada');
    const grace = await login(server.url, 'grace');
    using adas = await follow(`${server.url}/rooms/engine/events`, ada);
    await post(`${server.url}/rooms/engine/messages`, { text: 'secret' }, { headers: ada });
    await adas.next();
    using graces = await follow(`${server.url}/events`, {
      ...grace,
      'Last-Event-ID': adas.checkpoints[0]!,
    });
    await post(`${server.url}/users/grace/notices`, {}, { headers: ada });
    await graces.next();
    expect(graces.text).not.toContain('secret');
  });
});

describe('who has to go', () => {
  test('a logout ends all streams of the session for good, and no others', async () => {
    await using server = await serveExample(createExample());
    const ada = await login(server.url, 'ada');
    const elsewhere = await login(server.url, 'ada');
    using own = await follow(`${server.url}/events`, ada);
    using room = await follow(`${server.url}/rooms/engine/events`, ada);
    using other = await follow(`${server.url}/rooms/engine/events`, elsewhere);
    expect((await post(`${server.url}/logout`, {}, { headers: ada })).status).toBe(204);
    for (const each of [own, room]) {
      await each.end();
      expect(each.events.at(-1)?.event).toBe('sse:end');
    }
    await post(
      `${server.url}/rooms/engine/messages`,
      { text: 'still here' },
      { headers: elsewhere },
    );
    expect(await other.next()).toMatchObject({ data: '{"from":"ada","text":"still here"}' });
    expect(server.example.events.stats()).toMatchObject({ open: 1, closed: { revoked: 2 } });
    // Nor has the end of its streams brought the session back.
    expect(await statusOf(`${server.url}/events`, ada)).toBe(401);
  });

  test('who leaves a room reads nothing more of it, in any tab, and keeps all else', async () => {
    await using server = await serveExample(createExample());
    const charles = await login(server.url, 'charles');
    const ada = await login(server.url, 'ada');
    using one = await follow(`${server.url}/rooms/engine/events`, charles);
    using other = await follow(
      `${server.url}/rooms/engine/events`,
      await login(server.url, 'charles'),
    );
    using adas = await follow(`${server.url}/rooms/engine/events`, ada);
    using own = await follow(`${server.url}/events`, charles);
    expect((await post(`${server.url}/rooms/engine/leave`, {}, { headers: charles })).status).toBe(
      204,
    );
    await one.end();
    await other.end();
    await post(`${server.url}/rooms/engine/messages`, { text: 'gone' }, { headers: ada });
    await adas.next();
    expect(one.text + other.text).not.toContain('gone');
    expect(own.ended).toBe(false);
    expect(await statusOf(`${server.url}/rooms/engine/events`, charles)).toBe(403);
  });

  test('a new session is made at each login, so that nobody can choose its id beforehand', async () => {
    await using server = await serveExample(createExample());
    const first = await login(server.url, 'ada');
    const response = await post(`${server.url}/login`, { user: 'grace' }, { headers: first });
    expect(response.headers.get('Set-Cookie')).not.toContain(first.Cookie as string);
    expect(await statusOf(`${server.url}/rooms/engine/events`, first)).toBe(401);
  });
});
