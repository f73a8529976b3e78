#!lua name=mrpool
-- Deferrable requests that wait in Redis for a server with green power to spare (Redis >= 7.0): who has what, moved in
-- one call each, so that a cut-off call has happened or has not. See pool.h for the life of a request.
--
-- Keys     mr:{pool:<group>:<model>}:...     one hash tag a model: one slot of a Cluster
--   jobs     stream: a field `id` an entry; consumer group `hubs`, a consumer a process
--   j:<id>   hash: b (the request's bytes), n (deliveries so far), h (the consumer that runs it). Expires.
--   r:<id>   string: its result. Expires.
-- An id is either offered (j), or answered (r), or neither: it was withdrawn, given up, or has expired. The first result
-- of a job takes the place of j; later ones find neither, or r, and have lost.
--
-- mr_pool_version   0                                                    -> VERSION
-- mr_pool_offer     jobs j r | id bytes ttl_ms most                      -> offered, held, full, done
-- mr_pool_withdraw  j r                                                  -> how many of them were there
-- mr_pool_look      (j r)...                                             -> a string: - gone, o open, t taken, d done, each
-- mr_pool_take      jobs | consumer count idle_ms tries bytes tag        -> [entry, id, bytes]*
-- mr_pool_renew     jobs | consumer tag (entry id)...                    -> entries that are not the consumer's any more
-- mr_pool_finish    jobs j r | entry result ttl_ms                       -> 1: this result counts, 0: another, or none
-- mr_pool_return    jobs j | consumer entry id again                     -> 1: it waits again, 0: not ours, or given up

local VERSION = 1 -- pool_redis.h has it too
local GROUP = 'hubs'
local IDLE_CONSUMER_MS = 3600000
local LOOKS = 1000 -- entries of a take, dropped ones included

local function drop(jobs, entry)
  redis.call('XACK', jobs, GROUP, entry)
  redis.call('XDEL', jobs, entry)
end

redis.register_function('mr_pool_version', function() return VERSION end)

redis.register_function('mr_pool_offer', function(keys, args)
  local jobs, j, r = keys[1], keys[2], keys[3]
  if redis.call('EXISTS', r) == 1 then return 'done' end
  if redis.call('EXISTS', j) == 1 then return 'held' end
  if redis.call('XLEN', jobs) >= tonumber(args[4]) then return 'full' end
  redis.call('XADD', jobs, '*', 'id', args[1])
  redis.call('HSET', j, 'b', args[2])
  redis.call('PEXPIRE', j, args[3])
  return 'offered'
end)

redis.register_function('mr_pool_withdraw', function(keys) return redis.call('DEL', keys[1], keys[2]) end)

redis.register_function('mr_pool_look', function(keys)
  local out = {}
  for i = 1, #keys, 2 do
    if redis.call('EXISTS', keys[i + 1]) == 1 then
      out[#out + 1] = 'd'
    elseif redis.call('EXISTS', keys[i]) == 0 then
      out[#out + 1] = '-'
    else
      out[#out + 1] = redis.call('HEXISTS', keys[i], 'h') == 1 and 't' or 'o'
    end
  end
  return table.concat(out)
end)

-- Consumers that have died leave nothing but their name, once their entries are others'.
local function sweep(jobs)
  for _, row in ipairs(redis.call('XINFO', 'CONSUMERS', jobs, GROUP)) do
    local about = {}
    for i = 1, #row, 2 do about[row[i]] = row[i + 1] end
    if about.pending == 0 and about.idle > IDLE_CONSUMER_MS then
      redis.call('XGROUP', 'DELCONSUMER', jobs, GROUP, about.name)
    end
  end
end

-- An entry whose consumer has been silent for too long, else a new one.
local function next_entry(jobs, me, idle)
  for _, late in ipairs(redis.call('XPENDING', jobs, GROUP, 'IDLE', idle, '-', '+', 1)) do
    local claimed = redis.call('XCLAIM', jobs, GROUP, me, idle, late[1])[1]
    if claimed then return claimed end
    redis.call('XACK', jobs, GROUP, late[1]) -- it was deleted
  end
  local read = redis.call('XREADGROUP', 'GROUP', GROUP, me, 'COUNT', 1, 'STREAMS', jobs, '>')
  return read and read[1] and read[1][2][1]
end

redis.register_function('mr_pool_take', function(keys, args)
  local jobs, me, most, idle = keys[1], args[1], tonumber(args[2]), args[3]
  local tries, budget, tag = tonumber(args[4]), tonumber(args[5]), args[6]
  local out, bytes, looks = {}, 0, 0
  local made = redis.pcall('XGROUP', 'CREATE', jobs, GROUP, '0', 'MKSTREAM')
  if made.err and not string.find(made.err, 'BUSYGROUP', 1, true) then return made end
  sweep(jobs)
  while #out < most and bytes < budget and looks < LOOKS do
    looks = looks + 1
    local entry = next_entry(jobs, me, idle)
    if not entry then break end
    local id = entry[2] and entry[2][2] or ''
    local j = tag .. 'j:' .. id
    local body = redis.call('HGET', j, 'b')
    if not body then
      drop(jobs, entry[1])
    elseif redis.call('HINCRBY', j, 'n', 1) > tries then -- it ends whoever runs it
      redis.call('DEL', j)
      drop(jobs, entry[1])
    else
      redis.call('HSET', j, 'h', me)
      out[#out + 1] = {entry[1], id, body}
      bytes = bytes + #body
    end
  end
  return out
end)

redis.register_function('mr_pool_renew', function(keys, args)
  local jobs, me, tag, lost = keys[1], args[1], args[2], {}
  for i = 3, #args, 2 do
    local entry, j = args[i], tag .. 'j:' .. args[i + 1]
    local pending = redis.pcall('XPENDING', jobs, GROUP, entry, entry, 1)
    local mine = not pending.err and pending[1] and pending[1][2] == me
    if mine and redis.call('EXISTS', j) == 1 then
      redis.call('XCLAIM', jobs, GROUP, me, 0, entry, 'JUSTID')
    else
      if mine then drop(jobs, entry) end -- withdrawn, or answered by another
      lost[#lost + 1] = entry
    end
  end
  return lost
end)

redis.register_function('mr_pool_finish', function(keys, args)
  local jobs, j, r = keys[1], keys[2], keys[3]
  local first = redis.call('GET', r)
  local counts = first == args[2] -- the same call once more, whose answer was lost
  if not first and redis.call('EXISTS', j) == 1 then
    redis.call('SET', r, args[2], 'PX', args[3])
    redis.call('DEL', j)
    counts = true
  end
  drop(jobs, args[1])
  return counts and 1 or 0
end)

redis.register_function('mr_pool_return', function(keys, args)
  local jobs, j = keys[1], keys[2]
  if redis.call('HGET', j, 'h') ~= args[1] then return 0 end
  drop(jobs, args[2])
  if args[4] ~= '1' then
    redis.call('DEL', j)
    return 0
  end
  redis.call('XADD', jobs, '*', 'id', args[3])
  redis.call('HDEL', j, 'h')
  redis.call('HINCRBY', j, 'n', -1)
  return 1
end)
