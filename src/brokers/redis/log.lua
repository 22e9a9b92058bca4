-- The log of a registry in Redis: one script that runs atomically, for Redis 6.2 and later and for
-- Valkey. `npm run build` copies this file into script.ts.
--
-- Keys, all in one hash slot:
--
--   {prefix}:log                     hash: the state of the log and of its channels. It is one
--                                    hash, so that an eviction deletes all of it or nothing
--   │  v                             version of the format, 1
--   │  epoch                         name of the log
--   │  head                          offset of the newest change
--   │  floor                         newest offset of any forgotten channel
--   │  origin                        jumps before this offset are not recorded any more
--   │  run                           run_id of the Redis server that last wrote the log
--   │  breaks                        jumps of the offset, `<from>:<to>`, separated by spaces
--   │  held                          bytes of the kept events of all channels
--   │  sweep                         progress of the sweep, see sweep(); absent before the first
--   └  t:<channel>                   the channel: offset of the newest event, `trimmed`, bytes of
--                                    the kept events; the limits (events, bytes, age in ms,
--                                    newest-only); whether it has ended. Separated by colons
--   {prefix}:s:<channel>             stream: the events that are kept, with the ids `<offset>-0`
--   {prefix}:k:<channel>\n<key>      string: the event id that was published with this key
--   {prefix}:b:<random>              string: the answer to a call that the client may send again
--   {prefix}:leases                  sorted set: the channels that a process holds while it
--                                    publishes to them, with the time in ms at which the lease runs
--                                    out
--   {prefix}:limits                  hash: the lease of each channel, `<time at which it runs
--                                    out>:<whether the channel was cleared since the last
--                                    renewal>:<limits of its history: events, bytes, age,
--                                    latest>:<process>`; in the field without a name, the name of
--                                    all leases and the times of lease calls, see noteLeaseCall()
--
-- Redis may lose one of the last two keys alone. `leases` is made again from `limits`, see
-- restoreExpiries(). Without `limits`, the leases get another name: producers that live take their
-- leases again, and the other channels end with their own limits.
--
-- Topics: `<topics>:c:<channel>` carries the events of a channel. `<topics>:spine` carries one
-- header for each call that publishes (up to 128 events), after the events.
--
-- Every call first reads the log. If the log does not exist, the call creates it. If the log has
-- gone back (for example after a failover to a replica that had not received the last events), the
-- offset jumps to a much higher offset and the jump is recorded, so that no event id is used twice.
-- If another server answers than before (INFO, run_id), the log may have gone back. If the caller
-- knows a higher offset than the log, the log has certainly gone back.
--
--   breaks = "100:4294967396"
--
--   offsets   ──────── 100 ┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄┄ 4294967396 ────────▶
--                       │    never used again         │
--                       from: head of the log         to: jumpTarget(max(head, seen))
--
--   A reader at an offset between `from` and `to` has received events that Redis lost.
--
-- The length of a jump is random: 44 bits, from the random text of the call (ARGV[4], which is also
-- the name of a new log), the server and the time. Redis may go back twice to the same snapshot,
-- which does not contain the first jump. With a constant length, the same ids would be used again.
--
-- For example, the first jump has led to A. Redis has gone back to `from`, and the second jump has
-- led to B. A reader R that has received an event after A is at one of three places:
--
--   ── from ┄┄┄┄┄┄┄ A ── R ┄┄┄ B ── head     R is inside the second jump, which is recorded: it
--                                            gets a gap, however far the log continues.
--   ── from ┄┄┄┄┄┄┄ B ── head ┄┄┄ A ── R     R gets a gap at once. If R is on a node, the node
--                                            passes its offset to the script (ARGV[6]), and the
--                                            log jumps beyond that offset.
--   ── from ┄┄┄┄┄┄┄ B ── A ── R ── head      R would get no gap. After n events since the second
--                                            jump, the probability of this case is n / 2^44.
--
-- If the log got a new epoch instead of a jump, then every reader would have a gap at each restart
-- of Redis, even if no event is lost: the script cannot see whether a server has lost events. If a
-- jump would exceed MAX_OFFSET (after about a thousand jumps), the log gets a new epoch after all.
--
-- Redis may refuse a write (maxmemory, a replica, MISCONF, min-replicas-to-write, an ACL):
--
-- - An append first writes a value that the log already has. If Redis refuses this write, nothing
--   has happened. The command must be one that maxmemory forbids, and it must be the first write of
--   the call: after any other write, even a DEL of no key, Redis lets a script exceed maxmemory
--   (redis/redis#8478). Later refusals are answered for each event, or reported as a warning.
-- - A query is answered with the data that can be read. If a write that is not part of the query is
--   refused (a jump, the deletion of events that are too old), a later call repeats it.
--
-- The work of a call is bounded: in addition to its task, it deletes at most 1,000 single entries,
-- and checks a few hundred channels to enforce the limits over all channels. Later calls continue.
-- Events at or below `trimmed` that are still in a stream are never read again. Events that exceed
-- a limit in number or bytes can be read until they are deleted.
--
-- Channels are evicted in an approximate order: the oldest of a few hundred channels at a time, as
-- Redis evicts its own keys. An exact order would need a second index, or a scan of all channels.
--
-- Arguments of every call:
--
--   KEYS  1 the log; the others are declared for the Cluster only
--   ARGV  1 operation: append, clear, lease, look or page    2 base: `{prefix}`
--         3 PUBLISH or SPUBLISH                       4 epoch to use if a log is created
--         5, 6 cursor that the caller knows           7 token: nonce of a query, or the key
--                                                      of a repeatable append
--         8 maxHistory                                9 maxChannels
--         10 prefix of the topics                     11 … arguments of the operation
--
-- An operation answers with an array, or with an error if nothing has happened.

local operation, base, publish = ARGV[1], ARGV[2], ARGV[3]
local token = ARGV[7]
local maxHistory, maxChannels = tonumber(ARGV[8]), tonumber(ARGV[9])
local topics = ARGV[10]
local key = KEYS[1]
-- Minimum length of a jump of the offset; the highest offset to which the log jumps, so that later
-- offsets stay below 2^53, up to which JavaScript counts exactly; maximum number of recorded jumps.
local MIN_JUMP, MAX_OFFSET, MAX_JUMPS = 4294967296, 8725724278030336, 16
-- Times in ms after which: a stream without new events expires; the key of a publication expires.
local STREAM_MS, KEY_MS = 604800000, 300000
-- The body of the end of a channel.
local END = '1 end'
-- Number of the fields of the log that always exist: all but `sweep` and the channels.
local FIXED_FIELDS = 8
-- Maximum numbers of channels in one sweep: to check; to forget.
local MAX_CHECKED, MAX_FORGOTTEN = 300, 200
-- Number of events that this call may still delete.
local deletions = 1000

-- Formats an integer without an exponent: tostring() would write 1e+15.
local function text(number) return string.format('%.0f', number) end

-- Formats a condition.
local function flag(condition) return condition and '1' or '0' end

-- Returns the error text of a refused command, or nil if the command succeeded.
local function refusal(reply) return type(reply) == 'table' and reply.err or nil end

if publish == 'SPUBLISH' and (redis.REDIS_VERSION_NUM or 0) < 458752 then
  return redis.error_reply('ERR res-sse needs Redis 7 or later on a Cluster, for sharded Pub/Sub')
end

-- Without the permission for INFO, `run` is empty. Then the script finds out that the log has gone
-- back only if a caller knows a higher offset than the log.
local info = redis.pcall('INFO', 'server')
local run = type(info) == 'string' and string.match(info, 'run_id:(%x+)') or ''
local time = redis.pcall('TIME')
if refusal(time) then return time end
local now = tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)

local log = redis.pcall(
  'HMGET', key, 'v', 'epoch', 'head', 'floor', 'origin', 'run', 'breaks', 'held', 'sweep'
)
if refusal(log) then return log end
if log[1] and log[1] ~= '1' then
  return redis.error_reply(
    'ERR res-sse does not know format ' .. log[1] .. ' of the log at ' .. key
  )
end
local epoch, breaks = log[2], log[7]
local head, floor = tonumber(log[3] or ''), tonumber(log[4] or '')
local origin, held = tonumber(log[5] or ''), tonumber(log[8] or '')
local isQuery = operation == 'look' or operation == 'page'

-- Creates the log, and deletes a damaged log before. Returns the answer to the write.
local function createLog()
  if redis.call('HLEN', key) > 0 then redis.pcall('DEL', key) end
  local made = redis.pcall(
    'HSET', key, 'v', '1', 'epoch', ARGV[4], 'head', '0', 'floor', '0', 'origin', '0',
    'run', run, 'breaks', '', 'held', '0'
  )
  epoch, head, floor, origin, breaks, held, log[9] = ARGV[4], 0, 0, 0, '', 0, false
  -- If the log cannot be written, nothing can be published either. The name '0' is used until the
  -- log can be created.
  if refusal(made) then epoch = '0' end
  return made
end

-- Returns the offset at which a log that has gone back continues: 2^32 and a random number of 44
-- bits beyond `from`.
local function jumpTarget(from)
  local random = redis.sha1hex(ARGV[4] .. run .. time[1] .. time[2])
  local high, low = tonumber(string.sub(random, 1, 5), 16), tonumber(string.sub(random, 6, 11), 16)
  return from + MIN_JUMP + high * 16777216 + low
end

-- Create the log, or record that it has gone back.
local written
if not (epoch and breaks and log[6] and head and floor and origin and held) then
  written = createLog()
else
  local seen = ARGV[5] == epoch and tonumber(ARGV[6]) or 0
  local isOther = run ~= '' and log[6] ~= '' and run ~= log[6]
  if seen > head or isOther then
    local to = jumpTarget(math.max(head, seen))
    -- No higher offset is left: create a new log.
    if to > MAX_OFFSET then
      written = createLog()
    else
      -- Only the newest jumps are kept. `origin` is the end of the newest jump that was dropped.
      local all, from = {}, origin
      for one in string.gmatch(breaks, '%S+') do table.insert(all, one) end
      table.insert(all, text(head) .. ':' .. text(to))
      while #all > MAX_JUMPS do from = tonumber(string.match(table.remove(all, 1), '%d+$')) end
      local jumps = table.concat(all, ' ')
      written = redis.pcall(
        'HSET', key, 'head', text(to), 'run', run ~= '' and run or log[6],
        'breaks', jumps, 'origin', text(from)
      )
      if not refusal(written) then breaks, head, origin = jumps, to, from end
    end
  -- The permission for INFO was missing before.
  elseif log[6] == '' and run ~= '' then
    redis.pcall('HSET', key, 'run', run)
  end
end
if refusal(written) and not isQuery then return written end

-- Returns the value of a field of a stream entry: { id, { name, value, … } }.
local function field(entry, name)
  for i = 1, #entry[2], 2 do
    if entry[2][i] == name then return entry[2][i + 1] end
  end
end

-- Returns the offset of a stream entry.
local function offsetOf(entry) return tonumber(string.match(entry[1], '^%d+')) end

-- Returns whether the entry exceeds the age limit of its channel.
local function isOld(channel, entry)
  return channel.age > 0 and now - (tonumber(field(entry, 'm') or '') or now) > channel.age
end

-- Writes the channel, together with the head and the bytes of the log.
local function save(channel)
  local fields = table.concat({
    text(channel.newest), text(channel.trimmed), text(channel.bytes), text(channel.maxEvents),
    text(channel.maxBytes), text(channel.age), flag(channel.latest), flag(channel.isEnded),
  }, ':')
  local name = 't:' .. channel.name
  return redis.pcall('HSET', key, 'head', text(head), 'held', text(held), name, fields)
end

-- Marks all events of the channel as lost. Does not delete them.
local function markAllLost(channel)
  held = math.max(held - channel.bytes, 0)
  channel.trimmed, channel.bytes, channel.length, channel.changed = channel.newest, 0, 0, true
  channel.isEnded = false
end

-- Returns the channel with this name, or nil if the log does not know the channel. If the stream of
-- the channel was evicted, has expired or is not a stream, then its events are marked as lost.
-- known: the value of the field t:<channel>, if the caller has read it already.
local function find(name, known)
  known = known or redis.call('HGET', key, 't:' .. name)
  if not known then return nil end
  -- Version 0.1.0 wrote no `ended`.
  local newest, trimmed, bytes, events, limit, age, latest, ended =
    string.match(known, '^(%d+):(%d+):(%d+):(%d+):(%d+):(%d+):([01]):?([01]?)$')
  -- If the value is damaged, all events count as lost: none is newer than `trimmed`.
  local channel = {
    name = name,
    stream = base .. ':s:' .. name,
    newest = tonumber(newest) or head,
    trimmed = tonumber(trimmed) or head,
    bytes = tonumber(bytes) or 0,
    maxEvents = tonumber(events) or 1,
    maxBytes = tonumber(limit) or 0,
    age = tonumber(age) or 0,
    latest = latest == '1',
    isEnded = ended == '1',
  }
  local length = redis.pcall('XLEN', channel.stream)
  channel.problem = refusal(length)
  channel.length = type(length) == 'number' and length or 0
  local hasEvents = channel.bytes > 0 or channel.trimmed ~= channel.newest
  if channel.length == 0 and hasEvents then markAllLost(channel) end
  return channel
end

-- Returns the number of entries of the channel that have about this number of bytes: at least 1, at
-- most `most`. Estimated from the mean size, so that XRANGE reads neither single entries nor
-- megabytes.
local function countFor(channel, bytes, most)
  local each = channel.length > 0 and channel.bytes / channel.length or 0
  return math.max(1, math.min(most, each > 0 and math.floor(bytes / each) or most))
end

-- Returns the maximum number of entries. A newest-only channel keeps its newest event and its end.
local function mostEvents(channel)
  return channel.latest and channel.isEnded and channel.maxEvents + 1 or channel.maxEvents
end

-- Finds the oldest entries that a channel must not keep: those that exceed its limits, and those at
-- or below `trimmed`, which an earlier call could not delete. Reads them in small groups. Returns:
--
--   1. a table: `ids` of these entries; `length`, `bytes` and `trimmed` of the channel after their
--      deletion; `isEmpty` if the stream has no further entry
--   2. nil if the table has all of these entries. Otherwise the reason why some are missing: the
--      error text of a refused command, or that one call does not delete more
local function findExcess(channel)
  local most, from, count, ids = mostEvents(channel), '-', 1, {}
  local rest = {
    ids = ids,
    length = channel.length,
    bytes = channel.bytes,
    trimmed = channel.trimmed,
  }
  while rest.length > 0 do
    local isOver = rest.length > most or rest.bytes > channel.maxBytes
    if not isOver and channel.age == 0 then return rest end
    local some = redis.pcall('XRANGE', channel.stream, from, '+', 'COUNT', count)
    if refusal(some) then return rest, some.err end
    -- XLEN may count deleted entries: the stream has no more.
    if #some == 0 then
      rest.isEmpty = true
      return rest
    end
    for _, entry in ipairs(some) do
      local offset = offsetOf(entry)
      isOver = rest.length > most or rest.bytes > channel.maxBytes or isOld(channel, entry)
      if not isOver and offset > rest.trimmed then return rest end
      if #ids >= deletions then return rest, 'more than one call deletes' end
      ids[#ids + 1] = entry[1]
      rest.length = rest.length - 1
      rest.bytes = math.max(rest.bytes - (tonumber(field(entry, 's') or '') or 0), 0)
      rest.trimmed, from = math.max(rest.trimmed, offset), '(' .. entry[1]
    end
    -- A publish usually deletes one entry, so the first groups have one entry, and later groups
    -- twice as many each time.
    count = #ids < 2 and 1 or math.min(count * 2, countFor(channel, 65536, 100))
  end
  return rest
end

-- Deletes the entries that a channel must not keep, by one command. Returns nil, or the reason why
-- some of them remain.
local function trim(channel)
  local rest, problem = findExcess(channel)
  if #rest.ids == 0 then
    if rest.isEmpty then markAllLost(channel) end
    return problem
  end
  local deleted = redis.pcall('XDEL', channel.stream, unpack(rest.ids))
  if refusal(deleted) then return deleted.err end
  deletions = deletions - #rest.ids
  if rest.length == 0 then rest.bytes, channel.isEnded = 0, false end
  held = math.max(held - (channel.bytes - rest.bytes), 0)
  channel.trimmed, channel.bytes, channel.length = rest.trimmed, rest.bytes, rest.length
  channel.changed = true
  return problem
end

-- Excludes entries that exceed the age limit from a query: deletes them or, if they cannot be
-- deleted now, moves `trimmed` to the newest of them. A binary search finds it, because the entries
-- are in the order of their times.
local function expire(channel)
  if not trim(channel) or channel.age == 0 then return end
  local low, high = channel.trimmed, channel.newest
  while low < high do
    local middle = low + math.ceil((high - low) / 2)
    local some = redis.pcall('XRANGE', channel.stream, text(middle), '+', 'COUNT', 1)
    if refusal(some) then return end
    if some[1] and isOld(channel, some[1]) then
      low = math.min(offsetOf(some[1]), high)
    else
      high = middle - 1
    end
  end
  if low > channel.trimmed then channel.trimmed, channel.changed = low, true end
  if low == channel.newest then channel.isEnded = false end
end

-- Deletes the channel and its events. `floor` becomes at least the offset of its newest event.
local function forget(channel)
  if channel.length > 0 or channel.problem then redis.pcall('UNLINK', channel.stream) end
  redis.pcall('HDEL', key, 't:' .. channel.name)
  floor, held = math.max(floor, channel.newest), math.max(held - channel.bytes, 0)
  channel.isForgotten = true
end

-- Sets `isFollowed` of each channel: whether a node listens to it.
local function noteFollowed(channels)
  local names = {}
  for i, channel in ipairs(channels) do names[i] = topics .. ':c:' .. channel.name end
  local subcommand = publish == 'SPUBLISH' and 'SHARDNUMSUB' or 'NUMSUB'
  local counts = redis.pcall('PUBSUB', subcommand, unpack(names))
  if refusal(counts) then return end
  for i, channel in ipairs(channels) do channel.isFollowed = (tonumber(counts[2 * i]) or 0) > 0 end
end

-- Reads the next few hundred channels of a cyclic HSCAN. Returns them, the least recently published
-- first, and the cursor at which the scan continues; or nil, nil and the error text.
local function scanChannels(cursor)
  local channels, seen = {}, {}
  repeat
    local page = redis.pcall('HSCAN', key, cursor, 'COUNT', 100)
    if refusal(page) then return nil, nil, page.err end
    cursor = page[1]
    for i = 1, #page[2], 2 do
      local name = page[2][i]
      if string.sub(name, 1, 2) == 't:' and not seen[name] then
        seen[name] = true
        table.insert(channels, find(string.sub(name, 3), page[2][i + 1]))
      end
    end
  until cursor == '0' or #channels >= MAX_CHECKED
  table.sort(channels, function(one, other) return one.newest < other.newest end)
  return channels, cursor
end

-- Forgets some of these channels, because the log has `count` channels, more than maxChannels.
-- First channels without subscribers, down to a target below the limit, so that the next publish
-- does not sweep again; then, if `isAny`, also channels with subscribers, down to the limit.
-- Returns the number of channels that are left.
local function forgetSome(channels, count, isAny)
  local left = count
  local function pass(target, isFollowedToo)
    for _, channel in ipairs(channels) do
      if left <= target or count - left == MAX_FORGOTTEN then return end
      if not channel.isForgotten and (isFollowedToo or not channel.isFollowed) then
        forget(channel)
        left = left - 1
      end
    end
  end
  noteFollowed(channels)
  pass(maxChannels - math.min(math.floor(maxChannels / 8), 64), false)
  if isAny then pass(maxChannels, true) end
  return left
end

-- Deletes events of the older half of these channels (of all, if `isAny`), because more than
-- maxHistory bytes are kept: all events of the first channels, and a part of the events of the last
-- one.
local function deleteOldest(channels, isAny)
  local target = maxHistory - math.floor(maxHistory / 16)
  for i = 1, isAny and #channels or math.ceil(#channels / 2) do
    local channel = channels[i]
    if held <= target or deletions <= 0 then return end
    if channel.bytes > 0 and not channel.isForgotten and not channel.problem then
      if held - channel.bytes >= target then
        if not refusal(redis.pcall('UNLINK', channel.stream)) then markAllLost(channel) end
      else
        local limit = channel.maxBytes
        channel.maxBytes = math.max(channel.bytes - (held - target), 0)
        trim(channel)
        channel.maxBytes = limit
      end
    end
  end
end

-- Returns the number of channels of the log; or nil and the error text of a refused command.
local function countChannels()
  local fields = redis.pcall('HLEN', key)
  if refusal(fields) then return nil, fields.err end
  return fields - FIXED_FIELDS - (log[9] and 1 or 0)
end

-- Enforces maxHistory and maxChannels, the limits over all channels: evicts the least recently
-- published of the next few hundred channels. Returns nil, or the error text of a refused command.
--
-- The field `sweep` has four parts, `<cursor>:<evicted>:<strict>:<busy>`:
--
--   cursor    where the scan of the channels continues
--   evicted   1 if this round of the scan has evicted something
--   strict    1 if the previous round has evicted nothing: then also channels with subscribers and
--             recently published ones are evicted
--   busy      1 if a limit is still exceeded: the next append sweeps again
local function sweep()
  local cursor, evicted, strict = string.match(log[9] or '', '^(%d+):([01]):([01]):')
  local channels, continueAt, problem = scanChannels(cursor or '0')
  if problem then return problem end
  local countBefore, refused = countChannels()
  if refused then return refused end
  local count, heldBefore = countBefore, held
  local areAll = (cursor or '0') == '0' and continueAt == '0'
  local isAny = areAll or strict == '1'
  if count > maxChannels then count = forgetSome(channels, count, isAny) end
  if held > maxHistory then deleteOldest(channels, isAny) end
  for _, channel in ipairs(channels) do
    if channel.changed and not channel.isForgotten then save(channel) end
  end
  local hasEvicted = evicted == '1' or count < countBefore or held < heldBefore
  local isStrict = strict == '1'
  -- The round is over.
  if continueAt == '0' then hasEvicted, isStrict = false, not hasEvicted end
  local isBusy = held > maxHistory or count > maxChannels
  local state = table.concat({ continueAt, flag(hasEvicted), flag(isStrict), flag(isBusy) }, ':')
  local saved = redis.pcall('HSET', key, 'floor', text(floor), 'held', text(held), 'sweep', state)
  return refusal(saved)
end

-- Publishes a header: the offset of the log before the changes, the offset now, and a line for each
-- change. Nodes compare `previous` to the head that they have reached, to detect missed messages.
-- nonce: identifies a probe; nil for a header with changes
--
--   1 <epoch> <previous> <head> <nonce>
--   +<offset> <channel>      an event was appended
--   -<offset> <channel>      the channel was cleared up to this offset
--
-- A header without changes is a probe, or announces a new log or a jump.
local function publishHeader(previous, lines, nonce)
  local header = table.concat({ '1', epoch, text(previous), text(head), nonce or '' }, ' ')
  return redis.pcall(publish, topics .. ':spine', header .. lines)
end

-- Announce a new log, or that the log has gone back, before the messages of the call. Nodes that
-- receive this header heal first: revocations may be lost, and events without history have no
-- header.
if written and not refusal(written) then publishHeader(head, '') end

-- Returns nil if Redis accepts writes, otherwise the error text. Must be the first write of a call
-- to the log: see the head of this file.
local isWritable
local function unwritable()
  if isWritable then return nil end
  local written = redis.pcall('HSET', key, 'head', text(head))
  isWritable = not refusal(written)
  return refusal(written)
end

-- The reason why a limit could not be enforced. Returned in addition to the results, because the
-- events are published.
local warning = ''

-- Appends the entries of a publication to its channel: assigns an offset to each entry, stores it,
-- deletes the entries that exceed the limits of the channel, and publishes the event messages. The
-- caller publishes the header.
-- entries: list of { body, size }; isEnd: whether the last of them is the end of the channel
-- history: maxEvents, maxBytes, age and latest, as a channel has them
-- Returns five values:
--
--                              id            error    isNew     isUnknown   firstEnd
--   appended                   of the last   nil      is the channel new?
--   not appended               nil           text     nil
--   perhaps in the log         nil           text     false     true
--   has ended before           nil           nil      false     false       id of the end
local function appendEntries(name, remembered, entries, isEnd, history)
  local problem = unwritable()
  if problem then return nil, problem end
  local stream = base .. ':s:' .. name
  local channel = find(name)
  local isNew = not channel
  if isNew then
    channel = {
      name = name,
      stream = stream,
      newest = floor,
      trimmed = floor,
      bytes = 0,
      length = 0,
    }
    -- A stream without a channel in the log belongs to an earlier log.
    local stale = redis.pcall('XLEN', stream)
    if refusal(stale) and not string.find(stale.err, 'WRONGTYPE', 1, true) then
      return nil, stale.err
    end
    if stale ~= 0 then redis.pcall('UNLINK', stream) end
  elseif channel.problem then
    return nil, channel.problem
  elseif channel.isEnded then
    -- The end may exceed the age limit.
    expire(channel)
    if channel.isEnded then
      if channel.changed then save(channel) end
      return nil, nil, false, false, epoch .. '.' .. text(channel.newest)
    end
  end
  channel.maxEvents, channel.maxBytes = history.maxEvents, math.min(history.maxBytes, maxHistory)
  channel.age, channel.latest = history.age, history.latest
  local lastId = epoch .. '.' .. text(head + #entries)
  local written = remembered and redis.pcall('SET', remembered, lastId, 'PX', KEY_MS)
  if refusal(written) then return nil, written.err end
  local messages = {}
  for i, entry in ipairs(entries) do
    local id, body, size = text(head + 1) .. '-0', entry[1], entry[2]
    local added = redis.pcall('XADD', stream, id, 'm', text(now), 's', text(size), 'b', body)
    if refusal(added) and string.find(added.err, 'equal or smaller', 1, true) then
      -- Another program has added an entry with a higher id. The stream would refuse all later
      -- entries of the log, so it is deleted, and its events are marked as lost.
      redis.pcall('UNLINK', stream)
      markAllLost(channel)
      added = redis.pcall('XADD', stream, id, 'm', text(now), 's', text(size), 'b', body)
    end
    if refusal(added) then
      if i > 1 then return nil, added.err, false, true end
      if remembered then redis.pcall('DEL', remembered) end
      return nil, added.err
    end
    messages[i] = { offset = head + 1, previous = channel.newest, body = body }
    head, held = head + 1, held + size
    channel.newest, channel.bytes, channel.length = head, channel.bytes + size, channel.length + 1
    channel.isEnded = isEnd and i == #entries
  end
  local untrimmed = trim(channel)
  if untrimmed and deletions > 0 then warning = untrimmed end
  local saved = save(channel)
  if refusal(saved) then return nil, saved.err, false, true end
  redis.pcall('PEXPIRE', stream, channel.age > 0 and channel.age or STREAM_MS)
  -- The event messages: metadata in the first line, then the body.
  for _, message in ipairs(messages) do
    local trimmed = math.min(channel.trimmed, message.offset - 1)
    local metadata = table.concat({
      '1', epoch, text(message.offset), text(message.previous), text(now), text(trimmed),
      text(channel.maxEvents), text(channel.maxBytes), text(channel.age), flag(channel.latest),
    }, ' ')
    redis.pcall(publish, topics .. ':c:' .. channel.name, metadata .. '\n' .. message.body)
  end
  return lastId, nil, isNew
end

-- The keys of the leases: when each runs out, and the leases themselves.
local expiries, leases = base .. ':leases', base .. ':limits'

-- Returns the lease of a channel, or nil; and the error text of a refused command.
local function leaseOf(name)
  local value = redis.pcall('HGET', leases, name)
  if refusal(value) then return nil, value.err end
  local expiry, cleared, history, owner =
    string.match(value or '', '^(%d+):([01]):(%d+:%d+:%d+:[01]):(.+)$')
  if not expiry then return nil end
  return {
    expiry = tonumber(expiry),
    isCleared = cleared == '1',
    history = history,
    owner = owner,
  }
end

-- Writes the lease of a channel. Returns the error text of a refused command, or nil.
local function putLease(name, lease)
  local parts = { text(lease.expiry), flag(lease.isCleared), lease.history, lease.owner }
  local written = redis.pcall('HSET', leases, name, table.concat(parts, ':'))
  if not refusal(written) then written = redis.pcall('ZADD', expiries, text(lease.expiry), name) end
  return refusal(written)
end

-- Removes the lease of a channel.
local function dropLease(name)
  redis.pcall('ZREM', expiries, name)
  redis.pcall('HDEL', leases, name)
end

-- A process publishes to a channel that it holds: if the channel was cleared, the lease counts
-- again, so that the channel ends if the process dies before it renews the lease.
local function onHolderPublished(name, owner)
  local lease = leaseOf(name)
  if not lease or not lease.isCleared or lease.owner ~= owner then return end
  lease.isCleared = false
  putLease(name, lease)
end

-- Returns the error text if this server is a replica: it would publish events without history, to
-- its own subscribers only. If the append writes nothing, a field is deleted that does not exist:
-- this write changes nothing and is not replicated. Before other writes it would let them exceed
-- maxmemory.
-- hasWrites: whether the append writes something in any case
local function refusalOfReplica(hasWrites)
  for i = 12, #ARGV, 10 do hasWrites = hasWrites or ARGV[i + 1] ~= '' or ARGV[i + 4] ~= '' end
  local problem
  if hasWrites then problem = unwritable() else problem = refusal(redis.pcall('HDEL', key, '')) end
  return problem and string.find(problem, 'READONLY', 1, true) and problem or nil
end

-- append: publishes events.
--   ARGV  11 time in ms for which the answer of a repeatable call is kept
--         12 … for each publication: channel, key, body, size, the limits of the history: events,
--         bytes, age, latest, the size of an end, and the caller. Empty: the body without an event,
--         `events` without history, the size of an end without an end, and a caller that does not
--         hold the channel
-- Answers { epoch, head, error of the header, warning, result, … }; a result is `=<id>`,
-- `~<id of the end>` if the channel has ended before, `!<error>` if the event was not published, or
-- `?<error>` if it may have been.
if operation == 'append' then
  -- If the client may send a command again by itself (Sentinel), the answer is kept, so that a
  -- repeated command gets the first answer and does not publish twice.
  local repeated = token ~= '' and token
  if repeated then
    local before = redis.pcall('GET', repeated)
    if refusal(before) then return before end
    if before and before ~= '' then return cjson.decode(before) end
  end
  local refused = refusalOfReplica(repeated)
  if refused then return redis.error_reply(refused) end
  if repeated then
    local written = redis.pcall('SET', repeated, '', 'PX', ARGV[11])
    if refusal(written) then return written end
  end
  local from, lines, answers, isMore = head, {}, { epoch, '', '', '' }, false
  for i = 12, #ARGV, 10 do
    local name, publishKey, body, size = ARGV[i], ARGV[i + 1], ARGV[i + 2], tonumber(ARGV[i + 3])
    local remembered = publishKey ~= '' and base .. ':k:' .. name .. '\n' .. publishKey
    local id = remembered and redis.pcall('GET', remembered)
    local problem, isUnknown, firstEnd = nil, false, nil
    if refusal(id) then
      id, problem = nil, id.err
    -- Without history, an event has no offset and no header.
    elseif not id and ARGV[i + 4] == '' then
      local written = remembered and redis.pcall('SET', remembered, '', 'PX', KEY_MS)
      if refusal(written) then
        problem = written.err
      else
        local message = '1 - 0 0 ' .. text(now) .. ' 0 0 0 0 0\n' .. body
        local sent = redis.pcall(publish, topics .. ':c:' .. name, message)
        if refusal(sent) then
          -- The event was not published, so the key must not count as used.
          if remembered then redis.pcall('DEL', remembered) end
          problem = sent.err
        else
          id = ''
        end
      end
    elseif not id then
      local history = {
        maxEvents = tonumber(ARGV[i + 4]),
        maxBytes = tonumber(ARGV[i + 5]),
        age = tonumber(ARGV[i + 6]),
        latest = ARGV[i + 7] == '1',
      }
      local endSize, holder, entries, isNew = ARGV[i + 8], ARGV[i + 9], {}, nil
      if body ~= '' then entries[1] = { body, size } end
      if endSize ~= '' then entries[#entries + 1] = { END, tonumber(endSize) } end
      id, problem, isNew, isUnknown, firstEnd = appendEntries(
        name, remembered, entries, endSize ~= '', history
      )
      isMore = isMore or isNew
      if id then
        if endSize ~= '' then dropLease(name) end
        if holder ~= '' then onHolderPublished(name, holder) end
        for offset = head - #entries + 1, head do
          table.insert(lines, '\n+' .. text(offset) .. ' ' .. name)
        end
      end
    end
    if firstEnd then
      table.insert(answers, '~' .. firstEnd)
    else
      table.insert(answers, problem and (isUnknown and '?' or '!') .. problem or '=' .. id)
    end
  end
  answers[2] = text(head)
  local sent = head > from and publishHeader(from, table.concat(lines))
  if refusal(sent) then answers[3] = sent.err end
  -- Sweep if a limit is exceeded, or if the previous sweep has not finished. The number of channels
  -- is counted only if a channel is new.
  local isBusy = log[9] and string.sub(log[9], -1) == '1'
  local count = isMore and countChannels()
  local isOver = count and count > maxChannels
  if head > from and (held > maxHistory or isOver or isBusy) then warning = sweep() or warning end
  answers[4] = warning
  if repeated then redis.pcall('SET', repeated, cjson.encode(answers), 'PX', ARGV[11]) end
  return answers
end

-- Returns the limits of the history with which the end of a channel is appended: those of its
-- lease, or, if the lease was lost, those of the channel, if events of it are kept. Returns nil if
-- the channel was cleared; and the error text of a refused command.
local function historyOfEnd(name)
  local lease, problem = leaseOf(name)
  if problem or (lease and lease.isCleared) then return nil, problem end
  if lease then
    local events, bytes, age, latest = string.match(lease.history, '^(%d+):(%d+):(%d+):([01])$')
    return {
      maxEvents = tonumber(events),
      maxBytes = tonumber(bytes),
      age = tonumber(age),
      latest = latest == '1',
    }
  end
  local channel = find(name)
  if channel and channel.trimmed < channel.newest then return channel end
  return nil, channel and channel.problem
end

-- Ends a channel with a lease, unless it was cleared. If Redis refuses the end, the lease is kept
-- until the time `later`, when a call tries again. Returns the id of the end, or nil; and the error
-- text, if the end was refused.
local function endLeased(name, size, later)
  local history, problem = historyOfEnd(name)
  local id
  if history then id, problem = appendEntries(name, nil, { { END, size } }, true, history) end
  if problem then redis.pcall('ZADD', expiries, text(later), name) else dropLease(name) end
  return id, problem
end

-- Notes a lease call. Returns the name of the leases, which is another one if Redis has lost the
-- leases; whether channels may be ended whose lease has run out; and the error text of a refused
-- command.
--
-- While Redis is down or paused, no process can renew its leases, but they run out. So channels are
-- ended only after lease calls have come for the time of a lease without a long pause: then each
-- process that lives has renewed its leases. The times are kept here, because a process cannot see
-- an outage during which it makes no call.
--
--   calls    │ │ │ │      outage      │ │ │ │ │ │ │ │ │
--            ─────── last             since ────────── since + lease: channels may be ended
--
-- A process makes a lease call six times in the time of a lease. A pause of a third of that time is
-- long. After a shorter pause, a lease still has at least half of its time.
local function noteLeaseCall(leaseMs)
  local known = redis.pcall('HGET', leases, '')
  if type(known) ~= 'string' then known = '' end
  local id, since, last = string.match(known, '^([^:]+):(%d+):(%d+)$')
  since, last = tonumber(since or ''), tonumber(last or '')
  -- The clock may also go back.
  if not since or now < last or now - last > leaseMs / 3 then since = now end
  id = id or ARGV[4]
  local noted = redis.pcall('HSET', leases, '', id .. ':' .. text(since) .. ':' .. text(now))
  return id, now - since >= leaseMs, refusal(noted)
end

-- Makes the key `leases` again if Redis has lost it alone.
local function restoreExpiries()
  local times, all = redis.pcall('ZCARD', expiries), redis.pcall('HLEN', leases)
  -- One field of `leases` belongs to no channel: see noteLeaseCall().
  if refusal(times) or refusal(all) or times >= all - 1 then return end
  local cursor = '0'
  repeat
    local page = redis.pcall('HSCAN', leases, cursor, 'COUNT', 100)
    if refusal(page) then return end
    cursor = page[1]
    for i = 1, #page[2], 2 do
      local name, expiry = page[2][i], string.match(page[2][i + 1], '^(%d+):[01]:')
      if name ~= '' and expiry then redis.pcall('ZADD', expiries, expiry, name) end
    end
  until cursor == '0'
end

-- lease: renews leases, and ends the channels whose lease has run out, because the process that
-- published to them has died. The end of a channel removes its lease.
--   ARGV  11 time in ms for which the renewed leases are valid    12 size of an end
--         13 the caller    14 whether the channels of its own leases end now: 0 or 1
--         15 … its leases, `<kind><taken>:<events>:<bytes>:<age>:<latest>:<channel>`; the kind is
--            `!` if the caller begins to hold the channel, `+` if it holds the channel already, and
--            `-` if it has given the lease up; `taken` is the `state` that was answered to the call
--            that has taken the lease, and empty before
-- Answers { state, head, error of the header, error of a refused end, channel, id of its end, … }.
-- `state` names the log with its leases. It is another name after the log has gone back or the
-- leases were lost.
if operation == 'lease' then
  local leaseMs, owner = tonumber(ARGV[11]), ARGV[13]
  local problem = unwritable()
  if problem then return redis.error_reply(problem) end
  local id, mayEnd, refused = noteLeaseCall(leaseMs)
  if refused then return redis.error_reply(refused) end
  local state = epoch .. '.' .. (string.match(breaks, '%d+$') or '0') .. '.' .. id
  local from, lines, answers, ended = head, {}, { state, '', '', '' }, {}
  restoreExpiries()
  for i = 15, #ARGV do
    local kind, taken, history, name =
      string.match(ARGV[i], '^([!+-])([^:]*):(%d+:%d+:%d+:[01]):(.*)$')
    local lease, unreadable = leaseOf(name)
    if unreadable then return redis.error_reply(unreadable) end
    local channel = find(name)
    -- What the caller does with the channel (`kind`), and what becomes of the lease:
    --
    --   begins to hold it   !     taken: the channel belongs to the newest holder
    --   holds it            +     renewed if it is the lease of the caller; taken if its owner has
    --                             not renewed it for a third of the time: it counts as dead
    --   holds it, or has    + -   taken if there is no lease, and this log has never accepted one
    --   given it up               or has lost it (`taken ~= state`); with `-` it then runs out
    --
    -- In all other cases nothing is done: the lease belongs to another process, or the channel has
    -- ended or was cleared. The end of a channel removes its lease.
    local isOwn = lease and lease.owner == owner
    local isLost = not lease and taken ~= state
    local isLeft = kind == '+' and lease and lease.expiry < now + leaseMs * 2 / 3
    if channel and channel.isEnded then
      dropLease(name)
    elseif kind == '!' or (kind == '+' and isOwn) or isLost or isLeft then
      local renewed = { expiry = now + leaseMs, history = history, owner = owner }
      local unwritten = putLease(name, renewed)
      if unwritten then return redis.error_reply(unwritten) end
      -- In a log that has gone back, another process may have begun to hold the channel later.
      local isKnown = taken == '' or taken == state
      if ARGV[14] == '1' and isKnown and (isOwn or isLost) then table.insert(ended, name) end
    end
  end
  if mayEnd then
    local over = redis.pcall('ZRANGEBYSCORE', expiries, '-inf', text(now), 'LIMIT', 0, 100)
    if refusal(over) then return over end
    for _, name in ipairs(over) do table.insert(ended, name) end
  end
  for _, name in ipairs(ended) do
    local endId, endProblem = endLeased(name, tonumber(ARGV[12]), now + leaseMs / 3)
    if endProblem then answers[4] = endProblem end
    if endId then
      table.insert(lines, '\n+' .. text(head) .. ' ' .. name)
      table.insert(answers, name)
      table.insert(answers, endId)
    end
  end
  answers[2] = text(head)
  local sent = head > from and publishHeader(from, table.concat(lines))
  if refusal(sent) then answers[3] = sent.err end
  return answers
end

-- clear: deletes the events of a channel.  ARGV  11 channel
-- Answers { epoch, head, offset up to which the channel has no events }.
if operation == 'clear' then
  local channel, from = find(ARGV[11]), head
  -- Marks the lease: if the producer does not renew it, the lease runs out without an end.
  local lease = leaseOf(ARGV[11])
  if lease and not lease.isCleared then
    lease.isCleared = true
    putLease(ARGV[11], lease)
  end
  if channel then
    if channel.length > 0 or channel.problem then
      local gone = redis.pcall('UNLINK', channel.stream)
      if refusal(gone) then return gone end
    end
    markAllLost(channel)
    head = head + 1
    local saved = save(channel)
    if refusal(saved) then return saved end
    publishHeader(from, '\n-' .. text(channel.trimmed) .. ' ' .. channel.name)
    return { epoch, text(head), text(channel.trimmed) }
  end
  return { epoch, text(head), text(floor) }
end

-- The error of an XRANGE. If an XRANGE fails, the whole query is refused: from a partial answer,
-- the node would conclude that the channel does not have the other events.
local readError
-- Reads entries of the stream. On an error, sets `readError` and returns none.
local function range(channel, from, till, count)
  local some = redis.pcall('XRANGE', channel.stream, text(from), till, 'COUNT', count)
  if not refusal(some) then return some end
  readError = some
  return {}
end

-- Adds an entry to the result of its channel: offset, time, body.
local function addToResult(found, entry, body)
  table.insert(found, text(offsetOf(entry)))
  table.insert(found, field(entry, 'm') or '')
  table.insert(found, body)
end

-- The answer for a channel that the log does not know.
local unknown = { text(floor), text(floor), '0', '0', '1', '0', '0', '0', '', '0', '0' }
-- Returns the answer for a channel: newest, trimmed, bytes, length, limits (events, bytes, age,
-- latest), error text, whether more entries follow, whether the channel has ended, and the entries.
local function summary(channel, isMore, found)
  local length = channel.trimmed < channel.newest and channel.length or 0
  local answer = {
    text(channel.newest), text(channel.trimmed), text(channel.bytes), text(length),
    text(channel.maxEvents), text(channel.maxBytes), text(channel.age), flag(channel.latest),
    channel.problem or '', flag(isMore), flag(channel.isEnded),
  }
  for _, part in ipairs(found) do table.insert(answer, part) end
  return answer
end

-- The first fields of the answer to a query; answers[6] is the offset of the last entry of a page.
local answers = { epoch, text(head), text(origin), breaks, text(now), '' }

-- page: a page of several channels, merged by offset.
--   ARGV  11 bytes of the page: at least one event is returned
--         12 offset after which the page begins    13 … channels
--
-- A k-way merge: each channel has a window of entries (`some`, `at`). If all entries of a window
-- are used, it is filled again. The next entry of the page is the lowest one of all windows.
--
--   a  12 15 17        some = {12, 15, 17}, at = 1
--   b  13 14           some = {13, 14}, at = 1         page: 12 13 14 15 17
--
-- The page ends before the first entry that exceeds the bytes. answers[6] is then the offset of the
-- last entry of the page.
if operation == 'page' then
  local left, after, windows, all = tonumber(ARGV[11]), tonumber(ARGV[12]), {}, {}
  for i = 13, #ARGV do
    local channel = find(ARGV[i])
    local one = { channel = channel, found = {}, some = {}, at = 1, count = 1 }
    all[#all + 1] = one
    if channel then
      expire(channel)
      if channel.changed then save(channel) end
      one.from = math.max(after, channel.trimmed) + 1
      if channel.length > 0 and one.from <= channel.newest then windows[#windows + 1] = one end
    end
  end
  local taken, cut = 0, nil
  while true do
    -- Find the window with the lowest offset, and fill used windows again.
    local first
    for i = #windows, 1, -1 do
      local one = windows[i]
      if one.at > #one.some then
        one.some, one.at = range(one.channel, one.from, '+', one.count), 1
        one.count = math.min(one.count * 2, countFor(one.channel, left, 16))
        if #one.some > 0 then one.from = offsetOf(one.some[#one.some]) + 1 end
      end
      if #one.some == 0 then
        table.remove(windows, i)
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
    addToResult(first.found, entry, body)
    first.at, taken, cut = first.at + 1, taken + 1, first.next
  end
  for _, one in ipairs(all) do
    table.insert(answers, one.channel and summary(one.channel, false, one.found) or unknown)
  end
  return readError or answers
end

-- look: the state of channels, and their newer entries, all at one moment.
--   ARGV  11 bytes of entries of each channel: at least one entry is returned, unless the bytes of
--         all channels are used up    12 bytes of entries of all channels
--         13 … for each channel: name, offset after which entries are read (empty: none), and
--         offset up to which they are read (empty: all)
local budget, bytesLeft = tonumber(ARGV[11]), tonumber(ARGV[12])
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
        if (#found > 0 and left < weight) or bytesLeft <= 0 then
          isMore = true
          break
        end
        left, bytesLeft = left - weight, bytesLeft - weight
        start = offsetOf(entry) + 1
        addToResult(found, entry, body)
      end
      if #some < count then break end
    end
    table.insert(answers, summary(channel, isMore, found))
  end
end
if readError then return readError end
-- Publish a probe: a header without changes. If a node receives its own nonce, it knows which of
-- the messages on its connection came before this answer, and that the connection works.
if token ~= '' then
  local sent = publishHeader(head, '', token)
  if refusal(sent) then return sent end
end
return answers
