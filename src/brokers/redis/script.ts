/** What runs inside Redis: one script, atomic, whatever is asked of the log. Redis 6.2 and later, and Valkey. */
import { createHash } from 'node:crypto';

/*
 * Keys, all of one slot: `{prefix}:log`, a hash of all that is known of the log, so that eviction takes all of it or none;
 * `{prefix}:s:<channel>`, a stream with what is kept of a channel under ids `<offset>-0`; `{prefix}:k:<channel>\n<key>`, the id
 * that a key has published; `{prefix}:b:<random>`, the answer to a call that the client may repeat by itself.
 * Topics: `<topics>:c:<channel>` carries events, `<topics>:spine` says of every one that there is one.
 *
 * Every call begins with the same look at the log: it is made where there is none, and where it has gone back, its offset jumps
 * and the jump is noted, so that no id is used twice. It has gone back perhaps when another server answers (INFO, run_id), and
 * certainly when the caller has seen more of it than there is.
 *
 * Writes may be refused (maxmemory, a replica, MISCONF, min-replicas-to-write, an ACL):
 * - An append first writes to the log what is there already. If that is refused, nothing has happened. It must be a command
 *   that maxmemory forbids, and the first one that writes: after any other write, a DEL of nothing included, Redis lets a
 *   script exceed maxmemory (redis/redis#8478). What fails later is answered for each event, or reported.
 * - A question is answered from what is read. A note that cannot be written (a jump, events that have become too old) is left
 *   to a later call.
 *
 * No call does more than a bounded amount of work beyond what it was asked for: it deletes at most 1,000 events and looks at
 * some hundred channels to keep the bounds over all of them. Later calls go on. Events at or below `trimmed` that are still in
 * a stream are never read again; those over a bound in events or bytes are served until they are deleted.
 *
 * Which channels give way is decided among some hundred at a time, as Redis does for its own keys: an exact order would need
 * a second index beside the log, or a look at all channels.
 */
const SOURCE = `
local operation, base, publish = ARGV[1], ARGV[2], ARGV[3]
local nonce = ARGV[7]
local maxHistory, maxChannels = tonumber(ARGV[8]), tonumber(ARGV[9])
local topics = ARGV[10]
local key = KEYS[1]
local JUMP, LAST, BREAKS = 4294967296, 4503599627370496, 16
local IDLE, REMEMBERED = 604800000, 300000
local FIELDS = 8
local MOST_LOOKED_AT, MOST_FORGOTTEN = 300, 200
-- Events that this call may still delete.
local deletions = 1000

local function text(number) return string.format('%.0f', number) end

-- Why a command was refused; nil where it was not.
local function refusal(reply) return type(reply) == 'table' and reply.err or nil end

if publish == 'SPUBLISH' and (redis.REDIS_VERSION_NUM or 0) < 458752 then
  return redis.error_reply('ERR res-sse needs Redis 7 or later on a Cluster, for sharded Pub/Sub')
end

local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
local time = redis.pcall('TIME')
if refusal(time) then return time end
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local log = redis.pcall('HMGET', key, 'v', 'epoch', 'head', 'floor', 'origin', 'run', 'breaks', 'held', 'sweep')
if refusal(log) then return log end
if log[1] and log[1] ~= '1' then
  return redis.error_reply('ERR res-sse does not know format ' .. log[1] .. ' of the log at ' .. key)
end
local epoch, breaks = log[2], log[7]
local head, floor, origin, held = tonumber(log[3] or ''), tonumber(log[4] or ''), tonumber(log[5] or ''), tonumber(log[8] or '')
local isQuestion = operation == 'look' or operation == 'page'

local function begin()
  if redis.call('HLEN', key) > 0 then redis.pcall('DEL', key) end
  local made = redis.pcall('HSET', key, 'v', '1', 'epoch', ARGV[4], 'head', '0', 'floor', '0', 'origin', '0', 'run', run, 'breaks', '', 'held', '0')
  epoch, head, floor, origin, breaks, held, log[9] = ARGV[4], 0, 0, 0, '', 0, false
  -- Nothing can be published into it either, so this name will do until it can be made.
  if refusal(made) then epoch = '0' end
  return made
end

local noted
if not (epoch and breaks and log[6] and head and floor and origin and held) then
  noted = begin()
else
  local seen = ARGV[5] == epoch and tonumber(ARGV[6]) or 0
  local isOther = run ~= '' and log[6] ~= '' and run ~= log[6]
  if seen > head or isOther then
    local to = math.max(head, seen) + JUMP
    if to > LAST then
      noted = begin()
    else
      local all, from = {}, origin
      for one in string.gmatch(breaks, '%S+') do table.insert(all, one) end
      table.insert(all, text(head) .. ':' .. text(to))
      while #all > BREAKS do from = tonumber(string.match(table.remove(all, 1), '%d+$')) end
      local jumps = table.concat(all, ' ')
      noted = redis.pcall('HSET', key, 'head', text(to), 'run', run ~= '' and run or log[6], 'breaks', jumps, 'origin', text(from))
      if not refusal(noted) then breaks, head, origin = jumps, to, from end
    end
  elseif log[6] == '' and run ~= '' then
    redis.pcall('HSET', key, 'run', run)
  end
end
if refusal(noted) and not isQuestion then return noted end

local function field(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
end

local function offsetOf(entry) return tonumber(string.match(entry[1], '^%d+')) end

local function isOld(channel, entry)
  return channel.age > 0 and now - (tonumber(field(entry, 'm') or '') or now) > channel.age
end

local function save(channel)
  local age, latest = text(channel.age), channel.latest and '1' or '0'
  local known = { text(channel.newest), text(channel.trimmed), text(channel.bytes), text(channel.events), text(channel.limit), age, latest }
  return redis.pcall('HSET', key, 'head', text(head), 'held', text(held), 't:' .. channel.name, table.concat(known, ':'))
end

local function lose(channel)
  held = math.max(held - channel.bytes, 0)
  channel.trimmed, channel.bytes, channel.length, channel.changed = channel.newest, 0, 0, true
end

-- What is known of a channel, after what has gone since: evicted, expired, or never been a stream.
local function find(name, known)
  known = known or redis.call('HGET', key, 't:' .. name)
  if not known then return nil end
  local newest, trimmed, bytes, events, limit, age, latest = string.match(known, '^(%d+):(%d+):(%d+):(%d+):(%d+):(%d+):([01])$')
  local channel = {
    name = name, stream = base .. ':s:' .. name,
    newest = tonumber(newest) or head, trimmed = tonumber(trimmed) or head, bytes = tonumber(bytes) or 0,
    events = tonumber(events) or 1, limit = tonumber(limit) or 0, age = tonumber(age) or 0, latest = latest == '1',
  }
  local length = redis.pcall('XLEN', channel.stream)
  channel.problem = refusal(length)
  channel.length = type(length) == 'number' and length or 0
  if channel.length == 0 and (channel.bytes > 0 or channel.trimmed ~= channel.newest) then lose(channel) end
  return channel
end

-- How many entries make about so many bytes.
local function countFor(channel, bytes, most)
  local each = channel.length > 0 and channel.bytes / channel.length or 0
  return math.max(1, math.min(most, each > 0 and math.floor(bytes / each) or most))
end

-- Deletes what is beyond the bounds of the channel, some at a time. Returns why not all of it could be deleted.
local function trim(channel)
  local ids, length, bytes, trimmed = {}, channel.length, channel.bytes, channel.trimmed
  local from, count, isDone, problem = '-', 1, false, nil
  while not isDone and length > 0 and (length > channel.events or bytes > channel.limit or channel.age > 0) do
    local some = redis.pcall('XRANGE', channel.stream, from, '+', 'COUNT', count)
    problem = refusal(some)
    if problem or #some == 0 then break end
    for _, entry in ipairs(some) do
      local offset = offsetOf(entry)
      isDone = length <= channel.events and bytes <= channel.limit and offset > trimmed and not isOld(channel, entry)
      if not isDone and #ids >= deletions then
        isDone, problem = true, 'more than one call deletes'
      end
      if isDone then break end
      ids[#ids + 1] = entry[1]
      length, bytes = length - 1, math.max(bytes - (tonumber(field(entry, 's') or '') or 0), 0)
      trimmed, from = math.max(trimmed, offset), '(' .. entry[1]
    end
    -- A publish seldom deletes more than one.
    count = #ids < 2 and 1 or math.min(count * 2, countFor(channel, 65536, 100))
  end
  if #ids > 0 then
    local deleted = redis.pcall('XDEL', channel.stream, unpack(ids))
    if refusal(deleted) then return deleted.err end
    deletions = deletions - #ids
    if length == 0 then bytes = 0 end
    held = math.max(held - (channel.bytes - bytes), 0)
    channel.trimmed, channel.bytes, channel.length, channel.changed = trimmed, bytes, length, true
  elseif channel.length > 0 and from == '-' and not isDone and not problem and (length > channel.events or bytes > channel.limit or channel.age > 0) then
    -- It is empty, whatever it says.
    lose(channel)
  end
  return problem
end

-- What is too old is not read, whether it can be deleted now or not: events are in the order of their time.
local function expire(channel)
  if not trim(channel) or channel.age == 0 then return end
  local low, high = channel.trimmed, channel.newest
  while low < high do
    local middle = low + math.ceil((high - low) / 2)
    local some = redis.pcall('XRANGE', channel.stream, text(middle), '+', 'COUNT', 1)
    if refusal(some) then return end
    if some[1] and isOld(channel, some[1]) then low = math.min(offsetOf(some[1]), high) else high = middle - 1 end
  end
  if low > channel.trimmed then channel.trimmed, channel.changed = low, true end
end

local function forget(channel)
  if channel.length > 0 or channel.problem then redis.pcall('UNLINK', channel.stream) end
  redis.pcall('HDEL', key, 't:' .. channel.name)
  floor, held = math.max(floor, channel.newest), math.max(held - channel.bytes, 0)
  channel.isForgotten = true
end

local function noteFollowed(channels)
  local names = {}
  for i, channel in ipairs(channels) do names[i] = topics .. ':c:' .. channel.name end
  local counts = redis.pcall('PUBSUB', publish == 'SPUBLISH' and 'SHARDNUMSUB' or 'NUMSUB', unpack(names))
  if refusal(counts) then return end
  for i, channel in ipairs(channels) do channel.isFollowed = (tonumber(counts[2 * i]) or 0) > 0 end
end

-- Over a bound of all channels, some of them give way: those that were published to least recently of the next few hundred.
-- 'sweep' in the log says where to go on, whether this round has found anything, whether the round before has found nothing
-- (then followed and recent ones give way, too), and whether there is more to do.
local function sweep()
  local cursor, found, isStrict = string.match(log[9] or '', '^(%d+):([01]):([01]):')
  cursor, found, isStrict = cursor or '0', found == '1', isStrict == '1'
  local channels, seen, isAll = {}, {}, cursor == '0'
  repeat
    local page = redis.pcall('HSCAN', key, cursor, 'COUNT', 100)
    if refusal(page) then return page.err end
    cursor = page[1]
    for i = 1, #page[2], 2 do
      local name = page[2][i]
      if string.sub(name, 1, 2) == 't:' and not seen[name] then
        seen[name] = true
        table.insert(channels, find(string.sub(name, 3), page[2][i + 1]))
      end
    end
  until cursor == '0' or #channels >= MOST_LOOKED_AT
  isAll = isAll and cursor == '0'
  table.sort(channels, function(one, other) return one.newest < other.newest end)
  local isAny = isAll or isStrict

  local fields = redis.pcall('HLEN', key)
  if refusal(fields) then return fields.err end
  local count = fields - FIELDS - (log[9] and 1 or 0)
  if count > maxChannels and #channels > 0 then
    local target, budget = maxChannels - math.min(math.floor(maxChannels / 8), 64), MOST_FORGOTTEN
    noteFollowed(channels)
    for _, gives in ipairs(isAny and { 'unfollowed', 'any' } or { 'unfollowed' }) do
      for _, channel in ipairs(channels) do
        if count <= target or budget == 0 or (gives == 'any' and count <= maxChannels) then break end
        if not channel.isForgotten and (gives == 'any' or not channel.isFollowed) then
          forget(channel)
          count, budget, found = count - 1, budget - 1, true
        end
      end
    end
  end

  if held > maxHistory then
    local target = maxHistory - math.floor(maxHistory / 16)
    local last = isAny and #channels or math.ceil(#channels / 2)
    for i = 1, last do
      local channel = channels[i]
      if held <= target or deletions <= 0 then break end
      if channel.bytes > 0 and not channel.isForgotten and not channel.problem then
        local before = held
        if held - channel.bytes >= target then
          if not refusal(redis.pcall('UNLINK', channel.stream)) then lose(channel) end
        else
          local limit = channel.limit
          channel.limit = math.max(channel.bytes - (held - target), 0)
          trim(channel)
          channel.limit = limit
        end
        found = found or held < before
      end
    end
  end

  for _, channel in ipairs(channels) do
    if channel.changed and not channel.isForgotten then save(channel) end
  end
  if cursor == '0' then
    isStrict = not found
    found = false
  end
  local isBusy = held > maxHistory or count > maxChannels
  local state = cursor .. ':' .. (found and '1' or '0') .. ':' .. (isStrict and '1' or '0') .. ':' .. (isBusy and '1' or '0')
  local saved = redis.pcall('HSET', key, 'floor', text(floor), 'held', text(held), 'sweep', state)
  return refusal(saved)
end

local function say(previous, lines)
  return redis.pcall(publish, topics .. ':spine', '1 ' .. epoch .. ' ' .. text(previous) .. ' ' .. text(head) .. ' ' .. nonce .. lines)
end

-- Why nothing can be written now.
local isWritable
local function unwritable()
  if isWritable then return nil end
  local written = redis.pcall('HSET', key, 'head', text(head))
  isWritable = not refusal(written)
  return refusal(written)
end

local warning = ''

local function keep(name, remembered, body, size, events, limit, age, latest)
  local problem = unwritable()
  if problem then return nil, problem end
  local stream = base .. ':s:' .. name
  local channel = find(name)
  local isNew = not channel
  if isNew then
    channel = { name = name, stream = stream, newest = floor, trimmed = floor, bytes = 0, length = 0 }
    -- What is there is of a log that is gone.
    local stale = redis.pcall('XLEN', stream)
    if refusal(stale) and not string.find(stale.err, 'WRONGTYPE', 1, true) then return nil, stale.err end
    if stale ~= 0 then redis.pcall('UNLINK', stream) end
  elseif channel.problem then
    return nil, channel.problem
  end
  channel.events, channel.limit, channel.age, channel.latest = events, limit, age, latest
  local id = text(head + 1) .. '-0'
  local name = epoch .. '.' .. text(head + 1)
  local noted = remembered and redis.pcall('SET', remembered, name, 'PX', REMEMBERED)
  if refusal(noted) then return nil, noted.err end
  local added = redis.pcall('XADD', stream, id, 'm', text(now), 's', text(size), 'b', body)
  if refusal(added) and string.find(added.err, 'equal or smaller', 1, true) then
    -- Somebody else has written into it, and it would take nothing any more.
    redis.pcall('UNLINK', stream)
    lose(channel)
    added = redis.pcall('XADD', stream, id, 'm', text(now), 's', text(size), 'b', body)
  end
  if refusal(added) then
    if remembered then redis.pcall('DEL', remembered) end
    return nil, added.err
  end
  local previous = channel.newest
  head, held = head + 1, held + size
  channel.newest, channel.bytes, channel.length = head, channel.bytes + size, channel.length + 1
  local untrimmed = trim(channel)
  if untrimmed and deletions > 0 then warning = untrimmed end
  local saved = save(channel)
  if refusal(saved) then return nil, saved.err, false, true end
  redis.pcall('PEXPIRE', stream, age > 0 and age or IDLE)
  local stamp = { '1', epoch, text(head), text(previous), text(now), text(channel.trimmed), text(events), text(limit), text(age), latest and '1' or '0' }
  redis.pcall(publish, topics .. ':c:' .. channel.name, table.concat(stamp, ' ') .. '\\n' .. body)
  return name, nil, isNew
end

if operation == 'append' then
  -- A client that repeats a command by itself gets the answer that was lost.
  local repeated = nonce ~= '' and nonce
  nonce = ''
  if repeated then
    local before = redis.pcall('GET', repeated)
    if refusal(before) then return before end
    if before and before ~= '' then return cjson.decode(before) end
    local noted = redis.pcall('SET', repeated, '', 'PX', ARGV[11])
    if refusal(noted) then return noted end
  end
  local from, lines, answers, isMore = head, {}, { epoch, '', '', '' }, false
  for i = 12, #ARGV, 8 do
    local name, once, body, size = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
    local remembered = once ~= '' and base .. ':k:' .. name .. '\\n' .. once
    local id, problem, isUnknown = remembered and redis.pcall('GET', remembered), nil, false
    if refusal(id) then
      id, problem = nil, id.err
    elseif not id and ARGV[i + 4] == '' then
      local noted = remembered and redis.pcall('SET', remembered, '', 'PX', REMEMBERED)
      if refusal(noted) then
        problem = noted.err
      else
        id = ''
        redis.pcall(publish, topics .. ':c:' .. name, '1 - 0 0 ' .. text(now) .. ' 0 0 0 0 0\\n' .. body)
      end
    elseif not id then
      local limit, isNew = math.min(tonumber(ARGV[i + 5]), maxHistory), nil
      id, problem, isNew, isUnknown = keep(name, remembered, body, size, tonumber(ARGV[i + 4]), limit, tonumber(ARGV[i + 6]), ARGV[i + 7] == '1')
      isMore = isMore or isNew
      if id then table.insert(lines, '\\n+' .. text(head) .. ' ' .. name) end
    end
    table.insert(answers, problem and (isUnknown and '?' or '!') .. problem or '=' .. id)
  end
  answers[2] = text(head)
  local said = head > from and say(from, table.concat(lines))
  if refusal(said) then answers[3] = said.err end
  local isBusy = log[9] and string.sub(log[9], -1) == '1'
  local fields = isMore and redis.pcall('HLEN', key)
  local isOver = type(fields) == 'number' and fields - FIELDS - (log[9] and 1 or 0) > maxChannels
  if head > from and (held > maxHistory or isOver or isBusy) then warning = sweep() or warning end
  answers[4] = warning
  if repeated then redis.pcall('SET', repeated, cjson.encode(answers), 'PX', ARGV[11]) end
  return answers
end

if operation == 'clear' then
  local channel, from = find(ARGV[11]), head
  if channel then
    if channel.length > 0 or channel.problem then
      local gone = redis.pcall('UNLINK', channel.stream)
      if refusal(gone) then return gone end
    end
    lose(channel)
    head = head + 1
    local saved = save(channel)
    if refusal(saved) then return saved end
    say(from, '\\n-' .. text(channel.trimmed) .. ' ' .. channel.name)
    return { epoch, text(head), text(channel.trimmed) }
  end
  return { epoch, text(head), text(floor) }
end

-- A question may not be answered by half.
local fault
local function range(channel, from, till, count)
  local some = redis.pcall('XRANGE', channel.stream, text(from), till, 'COUNT', count)
  if not refusal(some) then return some end
  fault = some
  return {}
end

local function take(found, entry, body)
  table.insert(found, text(offsetOf(entry)))
  table.insert(found, field(entry, 'm') or '')
  table.insert(found, body)
end

local unknown = { text(floor), text(floor), '0', '0', '1', '0', '0', '0', '', '0' }
local function summary(channel, isMore, found)
  local length = channel.trimmed < channel.newest and channel.length or 0
  local known = {
    text(channel.newest), text(channel.trimmed), text(channel.bytes), text(length), text(channel.events), text(channel.limit),
    text(channel.age), channel.latest and '1' or '0', channel.problem or '', isMore and '1' or '0',
  }
  for _, part in ipairs(found) do table.insert(known, part) end
  return known
end

local answers = { epoch, text(head), text(origin), breaks, text(now), '' }

-- All channels merged in the order of the log, so many bytes together.
if operation == 'page' then
  local left, after, heads, all = tonumber(ARGV[11]), tonumber(ARGV[12]), {}, {}
  for i = 13, #ARGV do
    local channel = find(ARGV[i])
    local one = { channel = channel, found = {}, some = {}, at = 1, count = 1 }
    all[#all + 1] = one
    if channel then
      expire(channel)
      if channel.changed then save(channel) end
      one.from = math.max(after, channel.trimmed) + 1
      if channel.length > 0 and one.from <= channel.newest then heads[#heads + 1] = one end
    end
  end
  local taken, cut = 0, nil
  while true do
    local first
    for i = #heads, 1, -1 do
      local one = heads[i]
      if one.at > #one.some then
        one.some, one.at = range(one.channel, one.from, '+', one.count), 1
        one.count = math.min(one.count * 2, countFor(one.channel, left, 16))
        if #one.some > 0 then one.from = offsetOf(one.some[#one.some]) + 1 end
      end
      if #one.some == 0 then
        table.remove(heads, i)
      else
        one.next = offsetOf(one.some[one.at])
        if not first or one.next < first.next then first = one end
      end
    end
    if not first then break end
    local entry = first.some[first.at]
    local body = field(entry, 'b') or ''
    left = left - #body - 64
    if taken > 0 and left < 0 then
      answers[6] = text(cut)
      break
    end
    take(first.found, entry, body)
    first.at, taken, cut = first.at + 1, taken + 1, first.next
  end
  for _, one in ipairs(all) do
    table.insert(answers, one.channel and summary(one.channel, false, one.found) or unknown)
  end
  return fault or answers
end

local budget, most = tonumber(ARGV[11]), tonumber(ARGV[12])
for i = 13, #ARGV, 3 do
  local name, after, till = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  local channel = find(name)
  if not channel then
    table.insert(answers, unknown)
  else
    expire(channel)
    if channel.changed then save(channel) end
    local found, isMore, left = {}, false, budget
    local start = after ~= '' and math.max(tonumber(after), channel.trimmed) + 1 or nil
    if start and channel.newest < start then start = nil end
    while start and channel.length > 0 and not isMore do
      local count = countFor(channel, left, 16)
      local some = range(channel, start, till == '' and '+' or till, count)
      for _, entry in ipairs(some) do
        local body = field(entry, 'b') or ''
        local weight = #body + 64
        if (#found > 0 and left < weight) or most <= 0 then
          isMore = true
          break
        end
        left, most = left - weight, most - weight
        start = offsetOf(entry) + 1
        take(found, entry, body)
      end
      if #some < count then break end
    end
    table.insert(answers, summary(channel, isMore, found))
  end
end
if fault then return fault end
if nonce ~= '' then
  local said = say(head, '')
  if refusal(said) then return said end
end
return answers
`;

/** The script and the name under which Redis keeps it. */
export const script: { readonly source: string; readonly sha: string } = {
  source: SOURCE,
  sha: createHash('sha1').update(SOURCE).digest('hex'),
};
