/** What runs inside Redis: one script, atomic, whatever is asked of the log. Redis 6.2 and later, and Valkey. */
import { createHash } from 'node:crypto';

/*
 * Keys, all of one slot: `{prefix}:log`, a hash of all that is known of the log, so that eviction takes all of it or none;
 * `{prefix}:s:<channel>`, a stream with what is kept of a channel under ids `<offset>-0`; `{prefix}:k:<channel>\n<key>`, the id
 * that a key has published. Topics: `{prefix}:c:<channel>` carries events, `{prefix}:spine` says of every one that there is one.
 *
 * Every call begins with the same look at the log: it is made where there is none, and where it has gone back, its offset jumps
 * and the jump is noted, so that no id is used twice. It has gone back perhaps when another server answers (INFO, run_id), and
 * certainly when the caller has seen more of it than there is.
 *
 * Whatever can fail of an append comes before its first effect, so an error means that nothing has happened.
 */
const SOURCE = `
local operation, base, publish = ARGV[1], ARGV[2], ARGV[3]
local maxHistory, maxChannels = tonumber(ARGV[8]), tonumber(ARGV[9])
local nonce = ARGV[7]
local key = KEYS[1]
local JUMP, LAST, BREAKS = 4294967296, 4503599627370496, 16
local IDLE, REMEMBERED = 604800000, 300000
local FIELDS = 8

local function text(number) return string.format('%.0f', number) end

if publish == 'SPUBLISH' and (redis.REDIS_VERSION_NUM or 0) < 458752 then
  return redis.error_reply('ERR res-sse needs Redis 7 or later on a Cluster, for sharded Pub/Sub')
end

local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
local time = redis.call('TIME')
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local log = redis.call('HMGET', key, 'v', 'epoch', 'head', 'floor', 'origin', 'run', 'breaks', 'held')
if log[1] and log[1] ~= '1' then
  return redis.error_reply('ERR res-sse does not know format ' .. log[1] .. ' of the log at ' .. key)
end
local epoch, breaks = log[2], log[7]
local head, floor, origin, held = tonumber(log[3] or ''), tonumber(log[4] or ''), tonumber(log[5] or ''), tonumber(log[8] or '')

local function begin()
  epoch, head, floor, origin, breaks, held = ARGV[4], 0, 0, 0, '', 0
  redis.call('DEL', key)
  redis.call('HSET', key, 'v', '1', 'epoch', epoch, 'head', '0', 'floor', '0', 'origin', '0', 'run', run, 'breaks', '', 'held', '0')
end

if not (epoch and breaks and log[6] and head and floor and origin and held) then
  begin()
else
  local seen = ARGV[5] == epoch and tonumber(ARGV[6]) or 0
  local isOther = run ~= '' and log[6] ~= '' and run ~= log[6]
  if seen > head or isOther then
    local to = math.max(head, seen) + JUMP
    if to > LAST then
      begin()
    else
      local all = {}
      for one in string.gmatch(breaks, '%S+') do table.insert(all, one) end
      table.insert(all, text(head) .. ':' .. text(to))
      while #all > BREAKS do origin = tonumber(string.match(table.remove(all, 1), '%d+$')) end
      breaks, head = table.concat(all, ' '), to
      redis.call('HSET', key, 'head', text(head), 'run', run ~= '' and run or log[6], 'breaks', breaks, 'origin', text(origin))
    end
  elseif log[6] == '' and run ~= '' then
    redis.call('HSET', key, 'run', run)
  end
end

local function field(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
end

local function save(channel)
  local age, latest = text(channel.age), channel.latest and '1' or '0'
  local known = { text(channel.newest), text(channel.trimmed), text(channel.bytes), text(channel.events), text(channel.limit), age, latest }
  redis.call('HSET', key, 'head', text(head), 'held', text(held), 't:' .. channel.name, table.concat(known, ':'))
end

local function lose(channel)
  held = math.max(held - channel.bytes, 0)
  channel.trimmed, channel.bytes, channel.length, channel.changed = channel.newest, 0, 0, true
end

-- What is known of a channel, after what has gone since: evicted, expired, or never been a stream.
local function find(name)
  local known = redis.call('HGET', key, 't:' .. name)
  if not known then return nil end
  local newest, trimmed, bytes, events, limit, age, latest = string.match(known, '^(%d+):(%d+):(%d+):(%d+):(%d+):(%d+):([01])$')
  local channel = {
    name = name, stream = base .. ':s:' .. name,
    newest = tonumber(newest) or head, trimmed = tonumber(trimmed) or head, bytes = tonumber(bytes) or 0,
    events = tonumber(events) or 1, limit = tonumber(limit) or 0, age = tonumber(age) or 0, latest = latest == '1',
  }
  local length = redis.pcall('XLEN', channel.stream)
  if type(length) == 'table' then channel.problem = length.err end
  channel.length = type(length) == 'number' and length or 0
  if channel.length == 0 and (channel.bytes > 0 or channel.trimmed ~= channel.newest) then lose(channel) end
  return channel
end

local function trim(channel)
  while channel.length > 0 and (channel.length > channel.events or channel.bytes > channel.limit or channel.age > 0) do
    local oldest = redis.call('XRANGE', channel.stream, '-', '+', 'COUNT', 1)[1]
    if not oldest then return lose(channel) end
    local at = tonumber(field(oldest, 'm') or '') or now
    local isOld = channel.age > 0 and now - at > channel.age
    if channel.length <= channel.events and channel.bytes <= channel.limit and not isOld then return end
    local size = math.min(tonumber(field(oldest, 's') or '') or 0, channel.bytes)
    redis.call('XDEL', channel.stream, oldest[1])
    channel.trimmed = math.max(channel.trimmed, tonumber(string.match(oldest[1], '^%d+')))
    channel.bytes, channel.length, channel.changed = channel.bytes - size, channel.length - 1, true
    held = math.max(held - size, 0)
  end
end

local function forget(channel)
  redis.call('UNLINK', channel.stream)
  redis.call('HDEL', key, 't:' .. channel.name)
  floor, held = math.max(floor, channel.newest), math.max(held - channel.bytes, 0)
end

local function isFollowed(name)
  local count = redis.pcall('PUBSUB', publish == 'SPUBLISH' and 'SHARDNUMSUB' or 'NUMSUB', base .. ':c:' .. name)
  return count[2] ~= nil and tonumber(count[2]) > 0
end

-- Over a bound of all channels: in one go well below it, so that it is seldom done.
local function sweep()
  local all, channels = redis.call('HGETALL', key), {}
  for i = 1, #all, 2 do
    if string.sub(all[i], 1, 2) == 't:' then
      table.insert(channels, find(string.sub(all[i], 3)))
    end
  end
  held = 0
  for _, channel in ipairs(channels) do held = held + channel.bytes end
  local left = #channels
  if left > maxChannels then
    for _, channel in ipairs(channels) do channel.isFollowed = isFollowed(channel.name) end
    table.sort(channels, function(one, other)
      if one.isFollowed ~= other.isFollowed then return other.isFollowed end
      return one.newest < other.newest
    end)
    local few = maxChannels - math.floor(maxChannels / 4)
    while left > few do
      forget(table.remove(channels, 1))
      left = left - 1
    end
  end
  if held > maxHistory then
    table.sort(channels, function(one, other) return one.newest < other.newest end)
    local little = maxHistory - math.floor(maxHistory / 4)
    for _, channel in ipairs(channels) do
      if held <= little then break end
      local limit = channel.limit
      channel.limit = math.max(channel.bytes - (held - little), 0)
      if not channel.problem then trim(channel) end
      channel.limit = limit
    end
  end
  for _, channel in ipairs(channels) do if channel.changed then save(channel) end end
  redis.call('HSET', key, 'floor', text(floor), 'held', text(held))
end

local function say(previous, lines)
  return redis.pcall(publish, base .. ':spine', '1 ' .. epoch .. ' ' .. text(previous) .. ' ' .. text(head) .. ' ' .. nonce .. lines)
end

local function keep(name, remembered, body, size, events, limit, age, latest)
  local stream = base .. ':s:' .. name
  local channel = find(name)
  local isNew = not channel
  if isNew then
    channel = { name = name, stream = stream, newest = floor, trimmed = floor, bytes = 0, length = 0 }
    -- What is there is of a log that is gone.
    redis.call('UNLINK', stream)
  elseif channel.problem then
    return nil, channel.problem
  end
  channel.events, channel.limit, channel.age, channel.latest = events, limit, age, latest
  local id = text(head + 1) .. '-0'
  local name = epoch .. '.' .. text(head + 1)
  local noted = remembered and redis.pcall('SET', remembered, name, 'PX', REMEMBERED)
  if noted and noted.err then return nil, noted.err end
  local added = redis.pcall('XADD', stream, id, 'm', text(now), 's', text(size), 'b', body)
  if type(added) == 'table' and string.find(added.err, 'equal or smaller', 1, true) then
    -- Somebody else has written into it, and it would take nothing any more.
    redis.call('UNLINK', stream)
    lose(channel)
    added = redis.pcall('XADD', stream, id, 'm', text(now), 's', text(size), 'b', body)
  end
  if type(added) == 'table' then
    if remembered then redis.pcall('DEL', remembered) end
    return nil, added.err
  end
  local previous = channel.newest
  head, held = head + 1, held + size
  channel.newest, channel.bytes, channel.length = head, channel.bytes + size, channel.length + 1
  trim(channel)
  save(channel)
  redis.pcall('PEXPIRE', stream, age > 0 and age or IDLE)
  local stamp = { '1', epoch, text(head), text(previous), text(now), text(channel.trimmed), text(events), text(limit), text(age), latest and '1' or '0' }
  redis.pcall(publish, base .. ':c:' .. channel.name, table.concat(stamp, ' ') .. '\\n' .. body)
  return name, nil, isNew
end

if operation == 'append' then
  local from, lines, answers, isMore = head, {}, { epoch, '', '' }, false
  for i = 10, #ARGV, 8 do
    local name, once, body, size = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
    local remembered = once ~= '' and base .. ':k:' .. name .. '\\n' .. once
    local id, problem = remembered and redis.pcall('GET', remembered), nil
    if type(id) == 'table' then
      id, problem = nil, id.err
    elseif not id and ARGV[i + 4] == '' then
      local noted = remembered and redis.pcall('SET', remembered, '', 'PX', REMEMBERED)
      if noted and noted.err then
        problem = noted.err
      else
        id = ''
        redis.pcall(publish, base .. ':c:' .. name, '1 - 0 0 ' .. text(now) .. ' 0 0 0 0 0\\n' .. body)
      end
    elseif not id then
      local limit, isNew = math.min(tonumber(ARGV[i + 5]), maxHistory), nil
      id, problem, isNew = keep(name, remembered, body, size, tonumber(ARGV[i + 4]), limit, tonumber(ARGV[i + 6]), ARGV[i + 7] == '1')
      isMore = isMore or isNew
      if id then table.insert(lines, '\\n+' .. text(head) .. ' ' .. name) end
    end
    table.insert(answers, problem and '!' .. problem or '=' .. id)
  end
  answers[2] = text(head)
  local said = head > from and say(from, table.concat(lines))
  if type(said) == 'table' then answers[3] = said.err end
  if held > maxHistory or (isMore and redis.call('HLEN', key) - FIELDS > maxChannels) then sweep() end
  return answers
end

if operation == 'clear' then
  local channel, from = find(ARGV[10]), head
  if channel then
    redis.call('UNLINK', channel.stream)
    lose(channel)
    head = head + 1
    save(channel)
    say(from, '\\n-' .. text(channel.trimmed) .. ' ' .. channel.name)
    return { epoch, text(head), text(channel.trimmed) }
  end
  return { epoch, text(head), text(floor) }
end

local budget, most = tonumber(ARGV[10]), tonumber(ARGV[11])
local answers = { epoch, text(head), text(origin), breaks, text(now) }
for i = 12, #ARGV, 3 do
  local name, after, till = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local channel = find(name)
  if not channel then
    table.insert(answers, { text(floor), text(floor), '0', '0', '1', '0', '0', '0', '', '0' })
  else
    trim(channel)
    if channel.changed then save(channel) end
    local found, isMore, left = {}, '0', budget
    local start = after ~= '' and tonumber(after) + 1 or nil
    if start and channel.newest < start then start = nil end
    while start and channel.length > 0 and isMore == '0' do
      local some = redis.call('XRANGE', channel.stream, text(start), till == '' and '+' or till, 'COUNT', 16)
      for _, entry in ipairs(some) do
        local body = field(entry, 'b') or ''
        local weight = #body + 64
        if (#found > 0 and left < weight) or most <= 0 then
          isMore = '1'
          break
        end
        left, most = left - weight, most - weight
        start = tonumber(string.match(entry[1], '^%d+')) + 1
        table.insert(found, text(start - 1))
        table.insert(found, field(entry, 'm') or '')
        table.insert(found, body)
      end
      if #some < 16 then break end
    end
    local known = {
      text(channel.newest), text(channel.trimmed), text(channel.bytes), text(channel.length), text(channel.events), text(channel.limit),
      text(channel.age), channel.latest and '1' or '0', channel.problem or '', isMore,
    }
    for _, part in ipairs(found) do table.insert(known, part) end
    table.insert(answers, known)
  end
end
if nonce ~= '' then
  local said = say(head, '')
  if type(said) == 'table' then return said end
end
return answers
`;

/** The script and the name under which Redis keeps it. */
export const script: { readonly source: string; readonly sha: string } = {
  source: SOURCE,
  sha: createHash('sha1').update(SOURCE).digest('hex'),
};
