import { describe, expect, test } from 'vitest';
import { createExample } from '../../examples/private-channels/app.ts';
import { read, type Reader } from '../support/reader.ts';
import { until } from '../support/wait.ts';
import { post, serveExample } from './serve-example.ts';

/**
 * Logs in.
 * @returns the headers of a browser with the session
 */
async function login(url: string, user: string): Promise<Record<string, string>> {
  const response = await post(`${url}/login`, { user });
  expect(response.status).toBe(204);
  return { Cookie: (response.headers.get('Set-Cookie') as string).split(';')[0] as string };
}

/** Opens a stream and waits until it is live. */
async function follow(url: string, headers: Record<string, string>): Promise<Reader> {
  const reader = await read(url, { headers });
  expect(reader.response.status).toBe(200);
  await until('the first checkpoint', () => reader.checkpoints.length === 1);
  return reader;
}

function statusOf(url: string, headers: Record<string, string> = {}): Promise<number> {
  return fetch(url, { headers: { Accept: 'text/event-stream', ...headers } }).then(
    ({ status }) => status,
  );
}

describe('access to streams', () => {
  test('a member of a room can read it, other users get 403, without login 401', async () => {
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

  test("only the user can read the user's own channel", async () => {
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

  test('an id of another channel gives no access to its events', async () => {
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

describe('end of access', () => {
  test('a logout ends all streams of the session for good, and no other streams', async () => {
    await using server = await serveExample(createExample());
    const ada = await login(server.url, 'ada');
    const otherSession = await login(server.url, 'ada');
    using own = await follow(`${server.url}/events`, ada);
    using room = await follow(`${server.url}/rooms/engine/events`, ada);
    using other = await follow(`${server.url}/rooms/engine/events`, otherSession);
    expect((await post(`${server.url}/logout`, {}, { headers: ada })).status).toBe(204);
    for (const each of [own, room]) {
      await each.end();
      expect(each.events.at(-1)?.event).toBe('sse:end');
    }
    await post(
      `${server.url}/rooms/engine/messages`,
      { text: 'still here' },
      { headers: otherSession },
    );
    expect(await other.next()).toMatchObject({ data: '{"from":"ada","text":"still here"}' });
    expect(server.example.events.stats()).toMatchObject({ open: 1, closed: { revoked: 2 } });
    // The end of the streams did not restore the session.
    expect(await statusOf(`${server.url}/events`, ada)).toBe(401);
  });

  test('a user who leaves a room loses its streams in all tabs, but no other streams', async () => {
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

  test('each login creates a new session, so that its id cannot be chosen before', async () => {
    await using server = await serveExample(createExample());
    const first = await login(server.url, 'ada');
    const response = await post(`${server.url}/login`, { user: 'grace' }, { headers: first });
    expect(response.headers.get('Set-Cookie')).not.toContain(first.Cookie as string);
    expect(await statusOf(`${server.url}/rooms/engine/events`, first)).toBe(401);
  });
});
