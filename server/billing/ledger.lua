#!lua name=mr
-- The ledger as Redis Functions (Redis >= 7.0, Lua 5.1): balances, leases, monthly totals and the log, changed by
-- records and orders alone. Its twin in C, for a node without Redis, is ledger.c; tests/ledger/ holds the two to each
-- other and to a third one in Python.
--
--   journal --emitter--> FCALL mr_apply: epoch, sequence and chain checked -> balances, months, log, high-water mark
--
-- A producer sends the records of one partition in journal order. Its high-water mark (HWM) lives beside the balances
-- and moves in the same call, so a record is applied once or not at all: one at or below the HWM is a duplicate, one
-- beyond HWM + 1 a gap, one whose predecessor has another hash another history. When Redis loses writes it loses
-- balance and HWM together, and the producer sends again from the HWM.
--
-- Rules of this file
--   R1  Redis does not roll a script back. Whatever can fail is checked before the first write of a record; XADD, the
--       one write whose failure cannot be seen in advance, comes first.
--   R2  Lua numbers are doubles: exact below 2^53 only. A stored amount is never computed here and written back; it is
--       changed by HINCRBY, which is int64. A number made from a stored amount is used only in min(stored, need) with
--       need < 2^53: rounding is monotone, so a stored value >= 2^53 never rounds below `need`, and the minimum is
--       exact. Whole balances move as the strings they are stored as, and limits compare strings.
--   R3  No '..' or tostring() on an amount (Lua prints "%.14g"): str() prints "%.0f", exact below 2^53.
--   R4  Every number that comes in or is stored is canonical decimal: HINCRBY fails on "007", "-0", "1e3", " 1", and
--       would fail in the middle of a record.
--   R5  All keys of a call carry one hash tag, {bNNN} or {dir}, and are checked to belong together (Redis Cluster).
--   R6  The ledger's identity (uuid, schema) is in the hash of the HWMs: neither can be lost without the other.
--
-- Keys        mr:{bNNN}:...
--   hwm           hash: uuid, schema, producer -> "epoch|pseq|hash8"
--   log           stream: each record once (k p s a f o x r: kind, producer, pseq, account, who paid, overage or
--                 leases, lease expiry, the record's bytes), each order (k = O, S, X)
--   a:<acct>      hash: st (A open, C closed) us ov ord; a package <p>.gr .av .rs .us .xp (granted = free + leased +
--                 used + expired) .pr .ef .ex .cr .mk; a lease L:<producer>:<p>, its end X:<producer>; orders o:<id>
--   m:<yyyymm>:<acct>  hash, model class k: c<k>.im .ih .ou .un .n, waived .wi .wo .wn, energy .en .ei .eg (microjoules:
--                 energy, share of idle time, green) .cl .cm (micrograms of CO2: location, market) .ne; absent means 0
--   u:<key>      hash, what was taken of a key's budget: p the period as "month:202611", producer -> units (budget.h)
-- and mr:{dir}:lines (hash: id -> line), mr:{dir}:version (hash: v)
--
-- Speed: a call of Redis from Lua and the check of a number cost more than all else here. So an account is read in one
-- HMGET once the names of its packages are known: its leases, the first BLOCK packages, of the others whether anything
-- is free; and then only packages that the record needs.

local VERSION = 4                     -- of this file: ledger_lua.h has it too; an older library is loaded anew
local SCHEMA  = '1'                   -- of the keys: another one is another library
local MAX     = 9007199254740991      -- 2^53 - 1: units of a record, leases of a producer on an account
local LIMIT   = '4600000000000000000' -- a package's grant, just below 2^62
local ROOM    = '9100000000000000000' -- a stored counter below this takes one more record without leaving int64
local U32     = 4294967295            -- token counts of a record
local VALID   = 86400000              -- longest lease, ms
local BATCH   = 256                   -- records of a call
local PKGS    = 256                   -- unsettled packages of an account
local BLOCK   = 2                     -- packages read at a time
local STRIDE  = 13                    -- ARGV per record
local LINE    = 65536                 -- bytes of a directory line
local ZERO8   = '0000000000000000'    -- hash8 before the first record

-- ------------------------------------------------------------------------------------------------------ numbers
-- An argument: canonical decimal < 2^53, as a number; nil otherwise.
-- `read_before` spares the check of what this call has seen already: masks, expiries and times come again and again.
local read_before = {}

local function int(s)
  local n = read_before[s or '']
  if n then return n end
  if not s or #s > 16 or not (s == '0' or string.find(s, '^[1-9]%d*$')) then return nil end
  n = tonumber(s)
  if n > MAX then return nil end
  read_before[s] = n
  return n
end

-- A stored counter: canonical decimal with room for one more record; nil when damaged. Rounded above 2^53 (R2).
local function num(v)
  if not v or not (v == '0' or string.find(v, '^[1-9]%d*$')) then return nil end
  if #v > 18 and (#v > 19 or v >= ROOM) then return nil end
  return tonumber(v)
end

local function num0(v) if v then return num(v) end return 0 end     -- the same, absent = 0
local function str(n) return string.format('%.0f', n) end

-- Whether a + b > LIMIT, exactly: in parts of 10^15.
local function over_limit(a, b)
  local low = tonumber(string.sub(a, -15)) + tonumber(string.sub(b, -15))
  local high = (tonumber(string.sub(a, 1, -16)) or 0) + (tonumber(string.sub(b, 1, -16)) or 0)
  if low >= 1e15 then high, low = high + 1, low - 1e15 end
  return high > 4600 or (high == 4600 and low > 0)
end

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- ------------------------------------------------------------------------------------------------------ packages
local FIELDS = { '.av', '.rs', '.us', '.xp', '.ef', '.ex', '.mk' }

local function ended(e, t) return e.ex > 0 and t >= e.ex end
local function live(e, t) return t >= e.ef and not ended(e, t) end
local function serves(e, mclass) return math.floor(e.mk / 2 ^ mclass) % 2 == 1 end

-- Takes FIELDS of a package from v behind position o; false when one is damaged.
local function fill(e, v, o)
  e.av, e.rs, e.us, e.xp = num(v[o + 1]), num(v[o + 2]), num(v[o + 3]), num(v[o + 4])
  e.ef, e.ex, e.mk, e.read = int(v[o + 5]), int(v[o + 6]), int(v[o + 7]), true
  return e.av and e.rs and e.us and e.xp and e.ef and e.ex and e.mk and e.rs >= e.le
end

-- Reads packages [from, to] of the account that were not read yet, or of these those that it leases. false when one is
-- damaged.
local function read(acct, from, to, leased)
  local list, names = {}, {}
  for i = from, math.min(to, #acct.pk) do
    local e = acct.pk[i]
    if not e.read and (not leased or e.le > 0) then
      list[#list + 1] = e
      for f = 1, #FIELDS do names[#names + 1] = e.id .. FIELDS[f] end
    end
  end
  if #list == 0 then return true end
  local v = redis.call('HMGET', acct.key, unpack(names))
  for i, e in ipairs(list) do
    if not fill(e, v, (i - 1) * #FIELDS) then return false end
  end
  return true
end

-- The account as this producer sees it: state, packages in order of use with its own lease (le) on each, the sum of its
-- leases. nil when a field that a record may change is damaged or the key is no hash. `known` keeps the names of the
-- fields for the rest of the call.
local function load(A, prod, known)
  local names = known[A]
  if not names then
    local ord = redis.pcall('HGET', A, 'ord')
    if type(ord) == 'table' then return nil end
    names = { 'st', 'us', 'ov' }
    local ids, lease = {}, 'L:' .. prod .. ':'
    for id in string.gmatch(ord or '', '[^,]+') do
      ids[#ids + 1] = id
      names[#names + 1] = lease .. id
    end
    for i = 1, math.min(#ids, BLOCK) do
      for f = 1, #FIELDS do names[#names + 1] = ids[i] .. FIELDS[f] end
    end
    for i = BLOCK + 1, #ids do names[#names + 1] = ids[i] .. '.av' end
    names.ids = ids
    known[A] = names
  end
  local v, n = redis.pcall('HMGET', A, unpack(names)), #names.ids
  local free = 3 + n + math.min(n, BLOCK) * (#FIELDS - 1)    -- v[free + i]: free units of package i > BLOCK
  if v.err or not num0(v[2]) or not num0(v[3]) then return nil end
  local acct = { key = A, st = v[1], pk = {}, leased = 0 }
  for i, id in ipairs(names.ids) do
    local s = v[3 + i]
    local e = { id = id, le = s and int(s) or 0, le_s = s, empty = i > BLOCK and v[free + i] == '0' }
    if s and not int(s) then return nil end
    if i <= BLOCK and not fill(e, v, 3 + n + (i - 1) * #FIELDS) then return nil end
    acct.leased = acct.leased + e.le
    acct.pk[i] = e
  end
  if acct.leased > MAX or not read(acct, 1, n, true) then return nil end
  return acct
end

-- Adds free units of packages to the plan, in order of use, until `need` is met; returns what is left of it, or nil
-- when a package is damaged.
local function plan_free(plan, acct, mclass, t, need, from)
  for i, e in ipairs(acct.pk) do
    if need <= 0 then break end
    if not e.read and not e.empty and not read(acct, i, i) then return nil end
    if e.read and e.av > 0 and serves(e, mclass) and live(e, t) then
      local q = math.min(e.av, need)
      plan[#plan + 1] = { e.id, from, q }
      need = need - q
    end
  end
  return need
end

-- Who pays `units`: own leases first, then free units, each in order of use. Returns the plan and what is left for
-- overage: usage is a fact and never refused (L2). nil when a package is damaged.
local function plan_use(acct, mclass, t, units)
  local plan, need = {}, units
  if acct.leased > 0 then
    for _, e in ipairs(acct.pk) do
      if need > 0 and e.le > 0 and serves(e, mclass) then
        local q = math.min(e.le, need)
        plan[#plan + 1] = { e.id, 'L', q }
        need = need - q
      end
    end
  end
  need = plan_free(plan, acct, mclass, t, need, 'A')
  return need and plan, need
end

-- What a grant takes from free units: up to `want`, nothing when less than `least`. nil when a package is damaged.
local function plan_grant(acct, mclass, t, want, least)
  local plan, need = {}, math.min(want, MAX - acct.leased)
  if acct.st ~= 'A' then return plan end
  local left = plan_free(plan, acct, mclass, t, need, 'G')
  if not left then return nil end
  return need - left >= least and plan or {}
end

local function plan_text(plan)
  local s = {}
  for i, p in ipairs(plan) do s[i] = p[1] .. ':' .. p[2] .. ':' .. str(p[3]) end
  return table.concat(s, ';')
end

-- Gives a producer's leases back: free again, or expired with their package.
local function give_back(A, prod, acct, t)
  for _, e in ipairs(acct.pk) do
    if e.le > 0 then
      redis.call('HINCRBY', A, e.id .. '.rs', '-' .. e.le_s)
      redis.call('HINCRBY', A, e.id .. (ended(e, t) and '.xp' or '.av'), e.le_s)
    end
    if e.le_s then redis.call('HDEL', A, 'L:' .. prod .. ':' .. e.id) end
  end
  redis.call('HDEL', A, 'X:' .. prod)
end

-- ------------------------------------------------------------------------------------------------------ identity
-- Checks the ledger's identity in the HWM hash; returns a status or nil.  `field` is read in the same call.
local function identity(hwm, uuid, field)
  local m = redis.pcall('HMGET', hwm, 'uuid', 'schema', field or 'uuid')
  if m.err then return 'BADSTATE' end
  if not m[1] then return 'NOLEDGER' end
  if m[1] ~= uuid or m[2] ~= SCHEMA then return 'WRONGLEDGER' end
  return nil, m[3]
end

local function prefix(keys)
  local pre = keys[1] and string.match(keys[1], '^(mr:{b%d%d%d}:)hwm$')
  if pre and keys[2] == pre .. 'log' then return pre end
  return nil
end

-- FCALL mr_init 2 hwm log  uuid          OK | DUP | WRONGLEDGER | BADSTATE (a log without an identity) | BADARG
local function mr_init(keys, argv)
  if not prefix(keys) or not argv[1] or not string.find(argv[1], '^[%w-]+$') then return { 'BADARG' } end
  local bad = identity(keys[1], argv[1])
  if not bad then return { 'DUP' } end
  if bad ~= 'NOLEDGER' then return { bad } end
  local n = redis.pcall('XLEN', keys[2])
  if n ~= 0 or #redis.call('HGETALL', keys[1]) > 0 then return { 'BADSTATE' } end
  redis.call('HSET', keys[1], 'uuid', argv[1], 'schema', SCHEMA)
  return { 'OK' }
end

-- ------------------------------------------------------------------------------------------------------ mr_apply
-- One usage record: F charged, W waived (counted, no units).  Returns status, funding, overage.
local function plan_usage(r, acct)
  local c, m = 'c' .. r.mclass_s
  if r.kind == 'F' then m = redis.pcall('HMGET', r.M, c .. '.im', c .. '.ih', c .. '.ou', c .. '.un', c .. '.n')
  else m = redis.pcall('HMGET', r.M, c .. '.wi', c .. '.wo', c .. '.wn') end
  if m.err then return 'BADSTATE' end
  for i = 1, r.kind == 'F' and 5 or 3 do if not num0(m[i]) then return 'BADSTATE' end end
  if r.kind == 'W' then return 'OK', {}, 0 end
  local plan, over = plan_use(acct, r.mclass, r.t, r.units)
  return plan and 'OK' or 'BADSTATE', plan, over
end

local function count(M, c, names, values)
  for i = 1, #names do
    if values[i] ~= '0' then redis.call('HINCRBY', M, c .. names[i], values[i]) end
  end
end

local CHARGED, WAIVED = { '.im', '.ih', '.ou', '.un', '.n' }, { '.wi', '.wo', '.wn' }

local ENERGY = { '.en', '.ei', '.eg', '.cl', '.cm', '.ne' }

-- Whether the month takes one more energy record: all counters are whole and have room. A sum of microjoules is int64
-- like every other (R2): it is never read into a double and written back, and 9.1e18 of them are 2.5 GWh, which an
-- account reaches in a month and class only when its micro-tokens have passed the same limit at a joule a token.
local function energy_fits(M, c)
  local names = {}
  for i = 1, #ENERGY do names[i] = c .. ENERGY[i] end
  local m = redis.pcall('HMGET', M, unpack(names))
  if m.err then return false end
  for i = 1, #ENERGY do if not num0(m[i]) then return false end end
  return true
end

local function write_usage(r, prod, plan, over)
  local A, c = r.A, 'c' .. r.mclass_s
  if r.kind == 'W' then
    count(r.M, c, WAIVED, { str(r.a + r.b), str(r.c), '1' })
    return
  end
  for _, p in ipairs(plan) do
    local q = str(p[3])
    if p[2] == 'L' then
      redis.call('HINCRBY', A, p[1] .. '.rs', '-' .. q)
      redis.call('HINCRBY', A, 'L:' .. prod .. ':' .. p[1], '-' .. q)
    else
      redis.call('HINCRBY', A, p[1] .. '.av', '-' .. q)
    end
    redis.call('HINCRBY', A, p[1] .. '.us', q)
  end
  if over > 0 then redis.call('HINCRBY', A, 'ov', str(over)) end
  if r.units > 0 then redis.call('HINCRBY', A, 'us', r.units_s) end
  count(r.M, c, CHARGED, { str(r.a), str(r.b), str(r.c), r.units_s, '1' })
end

-- FCALL mr_apply k hwm log accounts, months...   producer epoch uuid n, then 13 a record:
--   kind pseq prev8 hash8 account-key month-key mclass t_ms units a b c raw       (keys by index in KEYS, 0 = none)
--   F, W: units; a b c = in_miss in_hit out      G: want min valid_ms as units a b      R: nothing
--   E: energy idle green as units a b, and c = "location|market" (13 a record stay 13: older nodes call this one too)
-- Reply, always of this shape: status, hwm, hash8, duplicates, then for each G [pseq, leases that its class can use,
-- 1 unless the account is closed]...
-- Records before the one that stopped the call stay applied, and the HWM says so.
local function mr_apply(keys, argv)
  read_before = {}
  local prod, epoch, n = argv[1], int(argv[2]), int(argv[4])
  local hs, hs_s, hh, dup, res, known, now = 0, '0', ZERO8, 0, {}, {}, nil
  local function reply(status) return { status, hs_s, hh, str(dup), unpack(res) } end

  local pre = prefix(keys)
  if not pre or not prod or #prod > 16 or not string.find(prod, '^[0-9a-f]+$') or not epoch or not n or n > BATCH
     or #argv ~= 4 + n * STRIDE then
    return reply('BADARG')
  end
  local acct_of = {}                                         -- key index -> account id, months as 'm' .. id
  for i = 3, #keys do
    local k = string.sub(keys[i], #pre + 1)
    if string.sub(keys[i], 1, #pre) ~= pre then return reply('BADARG') end
    local ym, id = string.match(k, '^m:(%d%d%d%d%d%d):(%d+)$')
    acct_of[i] = ym and 'm' .. id or string.match(k, '^a:(%d+)$')
    if not acct_of[i] then return reply('BADARG') end
  end

  local bad, stored = identity(keys[1], argv[3], prod)
  if bad then return reply(bad) end
  local he = 0
  if stored then
    local a, b, c = string.match(stored, '^(%d+)|(%d+)|([0-9a-f]+)$')
    if not (int(a) and int(b) and #c == 16) then return reply('BADSTATE') end
    he, hs, hs_s, hh = int(a), int(b), b, c
  end
  if epoch < he then return reply('FENCED') end
  if type(redis.pcall('XLEN', keys[2])) ~= 'number' then return reply('BADSTATE') end
  if n == 0 and epoch > he then                              -- hello; otherwise the first record applied stores it
    redis.call('HSET', keys[1], prod, argv[2] .. '|' .. hs_s .. '|' .. hh)
  end

  for i = 0, n - 1 do
    local o = 4 + i * STRIDE
    local seq, prev8, hash8 = int(argv[o + 2]), argv[o + 3], argv[o + 4]
    if not seq or seq == 0 or #prev8 ~= 16 or #hash8 ~= 16 or string.find(prev8 .. hash8, '[^0-9a-f]') then
      return reply('BADARG')
    end
    if seq <= hs then
      if seq == hs and hash8 ~= hh then return reply('CONFLICT') end
      dup = dup + 1
    elseif seq ~= hs + 1 then
      return reply('GAP')
    elseif prev8 ~= hh then
      return reply('CONFLICT')
    else
      local ai, mi = int(argv[o + 5]), int(argv[o + 6])
      local r = { kind = argv[o + 1], A = keys[ai or 0], M = keys[mi or 0], mclass = int(argv[o + 7]),
                  mclass_s = argv[o + 7], t = int(argv[o + 8]), units = int(argv[o + 9]), units_s = argv[o + 9],
                  a = int(argv[o + 10]), b = int(argv[o + 11]), c = int(argv[o + 12]) }
      local energy = r.kind == 'E'
      if energy then
        r.loc, r.mkt = string.match(argv[o + 12] or '', '^(%d+)|(%d+)$')
        r.c = int(r.loc) and int(r.mkt)
      end
      local id = acct_of[ai]
      if not (r.mclass and r.mclass <= 52 and r.t and r.units and r.a and r.b and r.c and id)
         or string.sub(id, 1, 1) == 'm' then
        return reply('BADARG')
      end
      local usage = r.kind == 'F' or r.kind == 'W'
      if usage then
        if acct_of[mi] ~= 'm' .. id or r.a > U32 or r.b > U32 or r.c > U32 or (r.kind == 'W' and r.units > 0) then
          return reply('BADARG')
        end
      elseif energy then
        if acct_of[mi] ~= 'm' .. id then return reply('BADARG') end
      elseif r.kind == 'G' then
        if r.b > VALID then return reply('BADARG') end
      elseif r.kind ~= 'R' then
        return reply('BADARG')
      end

      local acct = load(r.A, prod, known)
      if not acct then return reply('BADSTATE') end
      local plan, over, extra, x = {}, 0, '', nil
      if usage then
        local st
        st, plan, over = plan_usage(r, acct)
        if st ~= 'OK' then return reply(st) end
        extra = str(over)
      elseif energy then
        if not energy_fits(r.M, 'c' .. r.mclass_s) then return reply('BADSTATE') end
      elseif r.kind == 'G' then
        plan = plan_grant(acct, r.mclass, r.t, r.units, r.a)
        if not plan then return reply('BADSTATE') end
        local total, any = 0, acct.leased                    -- the answer is absolute: what its class can use now
        for _, e in ipairs(acct.pk) do
          if e.le > 0 and serves(e, r.mclass) then total = total + e.le end
        end
        for _, p in ipairs(plan) do total, any = total + p[3], any + p[3] end
        if any > 0 then                                      -- every answer renews, also one that adds nothing
          now = now or now_ms()
          x = str(now + r.b)
        end
        extra = str(total)
        res[#res + 1] = argv[o + 2]
        res[#res + 1] = extra
        res[#res + 1] = acct.st == 'C' and '0' or '1'
      else
        for _, e in ipairs(acct.pk) do
          if e.le > 0 then plan[#plan + 1] = { e.id, ended(e, r.t) and 'X' or 'A', e.le } end
        end
      end

      -- from here on nothing may fail (R1)
      redis.call('XADD', keys[2], '*', 'k', r.kind, 'p', prod, 's', argv[o + 2], 'a', id, 'f', plan_text(plan),
                 'o', extra, 'x', x or '', 'r', argv[o + 13])
      if usage then
        write_usage(r, prod, plan, over)
      elseif energy then
        count(r.M, 'c' .. r.mclass_s, ENERGY, { r.units_s, str(r.a), str(r.b), r.loc, r.mkt, '1' })
      elseif r.kind == 'G' then
        for _, p in ipairs(plan) do
          local q = str(p[3])
          redis.call('HINCRBY', r.A, p[1] .. '.av', '-' .. q)
          redis.call('HINCRBY', r.A, p[1] .. '.rs', q)
          redis.call('HINCRBY', r.A, 'L:' .. prod .. ':' .. p[1], q)
        end
        if x then redis.call('HSET', r.A, 'X:' .. prod, x) end
      else
        give_back(r.A, prod, acct, r.t)
      end
      hs, hs_s, hh = seq, argv[o + 2], hash8
      redis.call('HSET', keys[1], prod, argv[2] .. '|' .. hs_s .. '|' .. hh)
    end
  end
  return reply('OK')
end

-- ------------------------------------------------------------------------------------------------------ orders
local function head(keys, argv)                              -- shared checks of mr_order, mr_account, mr_reap
  read_before = {}
  local pre = prefix(keys)
  local id = pre and keys[3] and string.sub(keys[3], 1, #pre) == pre
             and string.match(string.sub(keys[3], #pre + 1), '^a:(%d+)$')
  if not id then return 'BADARG' end
  local bad = identity(keys[1], argv[1])
  if bad then return bad end
  if type(redis.pcall('XLEN', keys[2])) ~= 'number' then return 'BADSTATE' end
  local v = redis.pcall('HGET', keys[3], 'st')
  if type(v) == 'table' then return 'BADSTATE' end
  return nil, id
end

-- The order of two ids, by bytes: Lua's '<' follows the locale that Redis was started in.
local function before(a, b)
  local i = 1
  while i <= #a and string.byte(a, i) == string.byte(b, i) do i = i + 1 end
  return (string.byte(a, i) or 0) < (string.byte(b, i) or 0)
end

-- The account's unsettled packages with one more, in order of use: priority, earliest expiry, effective, created, id.
-- Returns them as `ord` is stored, or nil and why not.
local function ranked(A, ord, p, pr, ef, ex, cr)
  local l = { { p, pr, ex == 0 and MAX or ex, ef, cr } }
  for k in string.gmatch(ord or '', '[^,]+') do
    local v = redis.call('HMGET', A, k .. '.pr', k .. '.ex', k .. '.ef', k .. '.cr')
    for i = 1, 4 do
      v[i] = int(v[i])
      if not v[i] then return nil, 'BADSTATE' end
    end
    l[#l + 1] = { k, v[1], v[2] == 0 and MAX or v[2], v[3], v[4] }
  end
  if #l > PKGS then return nil, 'LIMIT' end
  table.sort(l, function(a, b)
    for i = 2, 5 do if a[i] ~= b[i] then return a[i] < b[i] end end
    return before(a[1], b[1])
  end)
  local ids = {}
  for i = 1, #l do ids[i] = l[i][1] end
  return table.concat(ids, ',')
end

local function listed(ord, p)
  for k in string.gmatch(ord or '', '[^,]+') do if k == p then return true end end
  return false
end

-- FCALL mr_order 3 hwm log account  uuid order op package units pr ef ex cr mk
-- op: add (new package), inc (more units), void (what is free expires now, what is leased when it comes back).
-- Idempotent by order id; the terms themselves are the fingerprint (without cr, which a retry may not know).
-- Units are int64 here, up to LIMIT: they pass as strings. OK | DUP | CONFLICT | EXISTS | NOPACKAGE | EXPIRED | LIMIT |
-- BAD...
local function mr_order(keys, argv)
  local bad, id = head(keys, argv)
  if bad then return { bad } end
  local A, order, op, p, units_s = keys[3], argv[2] or '', argv[3] or '', argv[4] or '', argv[5] or ''
  local pr, ef, ex, cr, mk = int(argv[6]), int(argv[7]), int(argv[8]), int(argv[9]), int(argv[10])
  if not (num(units_s) and pr and ef and ex and cr and mk) or over_limit(units_s, '0') or #p > 32
     or not string.find(p, '^[%w_-]+$') or #order > 64 or not string.find(order, '^[%w_.:-]+$')
     or not (op == 'add' or op == 'inc' or op == 'void') then
    return { 'BADARG' }
  end
  local terms = table.concat({ op, p, units_s, argv[6], argv[7], argv[8], argv[10] }, '|')
  local seen = redis.call('HGET', A, 'o:' .. order)
  if seen then return { seen == terms and 'DUP' or 'CONFLICT' } end

  local f = redis.call('HMGET', A, p .. '.gr', p .. '.av', p .. '.ex', p .. '.xp', 'ord', 'st', p .. '.pr', p .. '.ef',
                       p .. '.cr')
  local ord, why
  if op == 'add' then
    if f[1] then return { 'EXISTS' } end
    ord, why = ranked(A, f[5], p, pr, ef, ex, cr)
    if not ord then return { why } end
  else
    if not f[1] then return { 'NOPACKAGE' } end
    local pex = int(f[3])
    if not (num(f[1]) and num(f[2]) and pex and num(f[4])) then return { 'BADSTATE' } end
    if op == 'inc' then
      if pex > 0 and pex <= now_ms() then return { 'EXPIRED' } end
      if over_limit(f[1], units_s) then return { 'LIMIT' } end
      if not listed(f[5], p) then                            -- it was settled: it may pay again
        if not (int(f[7]) and int(f[8]) and int(f[9])) then return { 'BADSTATE' } end
        ord, why = ranked(A, f[5], p, int(f[7]), int(f[8]), pex, int(f[9]))
        if not ord then return { why } end
      end
    end
  end

  redis.call('XADD', keys[2], '*', 'k', 'O', 'a', id, 'o', order, 't', table.concat(argv, '|', 3, 10))
  if op == 'add' then
    redis.call('HSET', A, p .. '.gr', units_s, p .. '.av', units_s, p .. '.rs', '0', p .. '.us', '0', p .. '.xp', '0',
               p .. '.pr', argv[6], p .. '.ef', argv[7], p .. '.ex', argv[8], p .. '.cr', argv[9], p .. '.mk', argv[10])
    if not f[6] then redis.call('HSET', A, 'st', 'A') end    -- us, ov stay: usage may have come before the order
  elseif op == 'inc' then
    redis.call('HINCRBY', A, p .. '.gr', units_s)
    redis.call('HINCRBY', A, p .. '.av', units_s)
  else
    if f[2] ~= '0' then                                      -- HINCRBY refuses "-0"
      redis.call('HINCRBY', A, p .. '.av', '-' .. f[2])
      redis.call('HINCRBY', A, p .. '.xp', f[2])
    end
    redis.call('HSET', A, p .. '.ex', '1')                   -- expired for every clock, so that no node can revive it
  end
  if ord then redis.call('HSET', A, 'ord', ord) end
  redis.call('HSET', A, 'o:' .. order, terms)
  return { 'OK' }
end

-- FCALL mr_account 3 hwm log account  uuid order open|close       OK | DUP | CONFLICT | BAD...
local function mr_account(keys, argv)
  local bad, id = head(keys, argv)
  if bad then return { bad } end
  local order, op = argv[2] or '', argv[3]
  if #order > 64 or not string.find(order, '^[%w_.:-]+$') or not (op == 'open' or op == 'close') then
    return { 'BADARG' }
  end
  local seen = redis.call('HGET', keys[3], 'o:' .. order)
  if seen then return { seen == op and 'DUP' or 'CONFLICT' } end
  redis.call('XADD', keys[2], '*', 'k', 'S', 'a', id, 'o', order, 't', op)
  redis.call('HSET', keys[3], 'st', op == 'open' and 'A' or 'C', 'o:' .. order, op)
  return { 'OK' }
end

-- FCALL mr_reap 3 hwm log account  uuid grace_ms
-- Ends leases whose expiry passed grace_ms ago by Redis' clock, expires what is free in packages past their end, and
-- takes packages that hold nothing out of `ord` (every record looks at those in it). Reply: status, leases ended,
-- packages expired.
local function mr_reap(keys, argv)
  local bad, id = head(keys, argv)
  if bad then return { bad } end
  local A, grace, now = keys[3], int(argv[2]), now_ms()
  if not grace then return { 'BADARG' } end
  local late, all = {}, redis.call('HGETALL', A)
  for i = 1, #all, 2 do
    local prod = string.match(all[i], '^X:([0-9a-f]+)$')
    if prod and (int(all[i + 1]) or 0) + grace < now then late[#late + 1] = prod end
  end
  table.sort(late)
  for _, prod in ipairs(late) do if not load(A, prod, {}) then return { 'BADSTATE' } end end
  local acct = load(A, '0', {})
  if not acct or not read(acct, 1, #acct.pk) then return { 'BADSTATE' } end
  local expired, settled = 0, 0
  for _, e in ipairs(acct.pk) do
    if ended(e, now) then
      if e.av > 0 then expired = expired + 1 end
      if e.av > 0 or e.rs == 0 then settled = settled + 1 end
    elseif e.av == 0 and e.rs == 0 then
      settled = settled + 1
    end
  end
  if #late + settled == 0 then return { 'OK', '0', '0' } end
  redis.call('XADD', keys[2], '*', 'k', 'X', 'a', id, 'f', table.concat(late, ','), 'x', str(now))
  for _, prod in ipairs(late) do give_back(A, prod, load(A, prod, {}), now) end
  local keep = {}
  for _, e in ipairs(acct.pk) do
    local v = redis.call('HMGET', A, e.id .. '.av', e.id .. '.rs')
    if ended(e, now) and v[1] ~= '0' then
      redis.call('HINCRBY', A, e.id .. '.av', '-' .. v[1])
      redis.call('HINCRBY', A, e.id .. '.xp', v[1])
      v[1] = '0'
    end
    if v[1] ~= '0' or v[2] ~= '0' then keep[#keep + 1] = e.id end
  end
  redis.call('HSET', A, 'ord', table.concat(keep, ','))
  return { 'OK', str(#late), str(expired) }
end

-- ----------------------------------------------------------------------------------------------------- budgets
-- What nodes have taken of a key's budget; the rule is budget.c's, amounts are below 2^53 and their sums are (R2 does not
-- ask for HINCRBY here: a number that is stored was checked to be exact).
local PERIODS = { day = true, month = true, total = true }

-- Days since 1970, a month as 202611, or 0, by Redis' clock. Civil date: Howard Hinnant, "chrono-Compatible Low-Level Date
-- Algorithms", civil_from_days.
local function period_number(period, offset_s)
  local days = math.floor((tonumber(redis.call('TIME')[1]) + offset_s) / 86400)
  if period == 'total' then return 0 end
  if period == 'day' then return days end
  local z = days + 719468
  local era = math.floor(z / 146097)
  local doe = z - era * 146097
  local yoe = math.floor((doe - math.floor(doe / 1460) + math.floor(doe / 36524) - math.floor(doe / 146096)) / 365)
  local mp = math.floor((5 * (doe - (365 * yoe + math.floor(yoe / 4) - math.floor(yoe / 100))) + 2) / 153)
  local month = mp < 10 and mp + 3 or mp - 9
  return (yoe + era * 400 + (month <= 2 and 1 or 0)) * 100 + month
end

-- FCALL mr_budget 1 key   period offset_s+86400 producer units look known number have want reserve release
-- Flags are 0 or 1. Reply: OK, number, base, taken, others.
local function mr_budget(keys, argv)
  local key, period, producer = keys[1] or '', argv[1], argv[3] or ''
  local a = {}
  for i = 2, 11 do if i ~= 3 then a[i] = int(argv[i]) end end
  if #keys ~= 1 or #argv ~= 11 or not string.find(key, '^mr:{b%d%d%d}:u:%x+$') or not PERIODS[period]
     or not string.find(producer, '^%x+$') then
    return { 'BADARG' }
  end
  for i = 2, 11 do if i ~= 3 and not a[i] then return { 'BADARG' } end end
  local number, before, others, old = period_number(period, a[2] - 86400), 0, 0, {}
  local all = redis.pcall('HGETALL', key)
  if all.err then return { 'BADSTATE' } end
  local stored
  for i = 1, #all, 2 do
    if all[i] == 'p' then stored = all[i + 1] else old[all[i]] = int(all[i + 1]) or -1 end
  end
  local kind, last = string.match(stored or '', '^(%a+):(%d+)$')
  if stored and not int(last) then return { 'BADSTATE' } end
  if kind == period and int(last) > number then number = int(last) end   -- a clock that went back
  local same = kind == period and int(last) == number
  if same then
    for from, taken in pairs(old) do
      if taken < 0 then return { 'BADSTATE' } end
      if from == producer then before = taken else others = others + taken end
    end
  end
  if a[5] == 1 then return { 'OK', str(number), str(before), str(before), str(others) } end
  local base = before
  if a[6] == 1 then base = a[7] == number and a[8] or 0 end
  local room = math.max(0, math.max(0, a[4] - others) - base)
  local given = math.min(a[9], room)
  local taken = base + given + math.min(a[10], math.floor((room - given) / 8))
  if a[11] == 0 and taken < before then taken = before end
  if taken > MAX then return { 'BADARG' } end
  if not same then
    for from in pairs(old) do redis.call('HDEL', key, from) end
    redis.call('HSET', key, 'p', period .. ':' .. str(number))
  end
  redis.call('HSET', key, producer, str(taken))
  return { 'OK', str(number), str(base), str(taken), str(others) }
end

-- --------------------------------------------------------------------------------------------------- directory
-- Tenants, accounts and keys as lines of text (directory.h). A node reads them again when the version has grown.
local function dir(keys)
  if keys[1] ~= 'mr:{dir}:lines' or keys[2] ~= 'mr:{dir}:version' then return 'BADARG' end
  local v, l = redis.pcall('HGET', keys[2], 'v'), redis.pcall('HGET', keys[1], '')
  if type(v) == 'table' or type(l) == 'table' or not num0(v) then return 'BADSTATE' end
  return nil, v or '0'
end

-- FCALL mr_dir_put 2 lines version  id line      OK, version | DUP, version (it is there already) | BADARG | BADSTATE
local function mr_dir_put(keys, argv)
  local bad, version = dir(keys)
  if bad then return { bad } end
  local id, line = argv[1] or '', argv[2]
  if not line or #argv ~= 2 or id == '' or #id > 200 or string.find(id, '[%c%s]') or #line > LINE
     or string.find(line, '[%z\n]') then
    return { 'BADARG' }
  end
  if redis.call('HGET', keys[1], id) == line then return { 'DUP', version } end
  redis.call('HSET', keys[1], id, line)
  return { 'OK', str(redis.call('HINCRBY', keys[2], 'v', '1')) }
end

-- FCALL mr_dir_version 2 lines version           OK, version | BAD...
local function mr_dir_version(keys)
  local bad, version = dir(keys)
  if bad then return { bad } end
  return { 'OK', version }
end

-- FCALL mr_dir_read 2 lines version              OK, version, then id, line ... in no order
local function mr_dir_read(keys)
  local bad, version = dir(keys)
  if bad then return { bad } end
  return { 'OK', version, redis.call('HGETALL', keys[1]) }
end

-- FCALL mr_version 0                             the VERSION of the library that is loaded, as an integer
local function mr_version() return VERSION end

redis.register_function('mr_init', mr_init)
redis.register_function('mr_apply', mr_apply)
redis.register_function('mr_order', mr_order)
redis.register_function('mr_account', mr_account)
redis.register_function('mr_reap', mr_reap)
redis.register_function('mr_budget', mr_budget)
redis.register_function('mr_dir_put', mr_dir_put)
redis.register_function{ function_name = 'mr_dir_version', callback = mr_dir_version, flags = { 'no-writes' } }
redis.register_function{ function_name = 'mr_dir_read', callback = mr_dir_read, flags = { 'no-writes' } }
redis.register_function{ function_name = 'mr_version', callback = mr_version, flags = { 'no-writes' } }
