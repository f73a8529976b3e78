#!/usr/bin/env python3
"""Takes out the ledger's guards one at a time and shows that the vectors notice each: those of ledger.lua by replacing text,
those of ledger.c by the switches of ledger_planted.h. By hand, some minutes; exit 1 when one is not noticed.

  mutations.py [lua | c] [NAME ...]"""
import os
import re
import subprocess
import sys
import tempfile

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.join(HERE, '..', '..')
BUILD = os.environ.get('MILLRACE_BUILD') or os.path.join(ROOT, 'build', 'release')
TESTS = ['edges', 'numbers', 'happy']
LUA = os.path.join(ROOT, 'server', 'billing', 'ledger.lua')

# name: (text, replacement); the text stands in the file once
GUARDS = {
    'argument is canonical': ("if not s or #s > 16 or not (s == '0' or string.find(s, '^[1-9]%d*$')) then return nil end\n  n =",
                              "if not s or not tonumber(s) then return nil end\n  n ="),
    'argument below 2^53': ("if n > MAX then return nil end", ""),
    'stored counter is canonical': ("if not v or not (v == '0' or string.find(v, '^[1-9]%d*$')) then return nil end",
                                    "if not v or not tonumber(v) then return nil end"),
    'stored counter has room': ("if #v > 18 and (#v > 19 or v >= ROOM) then return nil end", ""),
    'text of numbers': ("return string.format('%.0f', n)", "return tostring(n)"),
    'package limit': ("if over_limit(f[1], units_s) then return { 'LIMIT' } end", ""),
    'package limit is exact': ("return high > 4600 or (high == 4600 and low > 0)",
                               "return tonumber(a) + tonumber(b) > 4.6e18"),
    'package has begun': ("local function live(e, t) return t >= e.ef and not ended(e, t) end",
                          "local function live(e, t) return not ended(e, t) end"),
    'package has not ended': ("local function live(e, t) return t >= e.ef and not ended(e, t) end",
                              "local function live(e, t) return t >= e.ef end"),
    'model class': ("return math.floor(e.mk / 2 ^ mclass) % 2 == 1", "return true"),
    'lease is not above its package': ("and e.mk and e.rs >= e.le", "and e.mk"),
    'account fields are sound': ("if v.err or not num0(v[2]) or not num0(v[3]) then return nil end", "if v.err then return nil end"),
    'lease is canonical': ("if s and not int(s) then return nil end", ""),
    'leases pay first': ("if acct.leased > 0 then\n    for", "if false then\n    for"),
    'lease cap': ("math.min(want, MAX - acct.leased)", "want"),
    'closed account': ("if acct.st ~= 'A' then return plan end", ""),
    'least of a grant': ("return need - left >= least and plan or {}", "return plan"),
    'expired lease': ("redis.call('HINCRBY', A, e.id .. (ended(e, t) and '.xp' or '.av'), e.le_s)",
                      "redis.call('HINCRBY', A, e.id .. '.av', e.le_s)"),
    'lease ends with release': ("  redis.call('HDEL', A, 'X:' .. prod)\n", ""),
    'no ledger': ("if not m[1] then return 'NOLEDGER' end", ""),
    'ledger uuid': ("if m[1] ~= uuid or m[2] ~= SCHEMA", "if m[2] ~= SCHEMA"),
    'ledger schema': ("if m[1] ~= uuid or m[2] ~= SCHEMA", "if m[1] ~= uuid"),
    'keys of one partition': ("if string.sub(keys[i], 1, #pre) ~= pre then return reply('BADARG') end", ""),
    'init beside a log': ("if n ~= 0 or #redis.call('HGETALL', keys[1]) > 0 then return { 'BADSTATE' } end", ""),
    'month counters are sound': ("if not num0(m[i]) then return 'BADSTATE' end", ""),
    'energy counters are sound': ("for i = 1, #ENERGY do if not num0(m[i]) then return false end end", ""),
    'energy counters are a hash': ("  if m.err then return false end\n  for i = 1, #ENERGY", "  for i = 1, #ENERGY"),
    'grams are two numbers': ("r.c = int(r.loc) and int(r.mkt)", "r.c = 0"),
    'month of energy is its account\'s': ("if acct_of[mi] ~= 'm' .. id then return reply('BADARG') end", ""),
    'energy is counted': ("count(r.M, 'c' .. r.mclass_s, ENERGY,", "count(r.M, 'c0', ENERGY,"),
    'overage': ("if over > 0 then redis.call('HINCRBY', A, 'ov', str(over)) end", ""),
    'mark is sound': ("if not (int(a) and int(b) and #c == 16) then return reply('BADSTATE') end", ""),
    'fenced': ("if epoch < he then return reply('FENCED') end", ""),
    'log is a stream': ("if type(redis.pcall('XLEN', keys[2])) ~= 'number' then return reply('BADSTATE') end", ""),
    'hello stores the epoch': ("if n == 0 and epoch > he then", "if false then"),
    'hash8 is hex': ("or #prev8 ~= 16 or #hash8 ~= 16 or string.find(prev8 .. hash8, '[^0-9a-f]') then", "then"),
    'duplicate': ("if seq <= hs then", "if false then"),
    'same number, other hash': ("if seq == hs and hash8 ~= hh then return reply('CONFLICT') end", ""),
    'gap': ("elseif seq ~= hs + 1 then\n      return reply('GAP')", "elseif false then"),
    'chain': ("elseif prev8 ~= hh then\n      return reply('CONFLICT')", "elseif false then"),
    'account and month belong together': ("if acct_of[mi] ~= 'm' .. id or ", "if "),
    'kind of a record': ("elseif r.kind ~= 'R' then\n        return reply('BADARG')", "elseif false then"),
    'answer is of its class': ("if e.le > 0 and serves(e, r.mclass) then total", "if e.le > 0 then total"),
    'answer renews': ("if any > 0 then ", "if #plan > 0 then "),
    'expiry by the ledger\'s clock': ("x = str(now + r.b)", "x = str(r.t + r.b)"),
    'open in the answer': ("acct.st == 'C' and '0' or '1'", "'1'"),
    'mark moves': ("redis.call('HSET', keys[1], prod, argv[2] .. '|' .. hs_s .. '|' .. hh)\n    end\n  end\n  return reply('OK')",
                   "end\n  end\n  return reply('OK')"),
    'repeated order': ("if seen then return { seen == terms and 'DUP' or 'CONFLICT' } end", ""),
    'other terms': ("seen == terms and 'DUP' or 'CONFLICT'", "'DUP'"),
    'package id': ("or not string.find(p, '^[%w_-]+$')", ""),
    'package exists': ("if f[1] then return { 'EXISTS' } end", ""),
    'package is there': ("if not f[1] then return { 'NOPACKAGE' } end", "if not f[1] then return { 'OK' } end"),
    'increase of an expired one': ("if pex > 0 and pex <= now_ms() then return { 'EXPIRED' } end", ""),
    'settled one comes back': ("if not listed(f[5], p) then ", "if false then "),
    'order of use': ("for i = 2, 5 do if a[i] ~= b[i] then return a[i] < b[i] end end\n", ""),
    'order of ids is by bytes': ("return before(a[1], b[1])", "return a[1] < b[1]"),
    'usage before an order': ("if not f[6] then redis.call('HSET', A, 'st', 'A') end",
                              "if not f[6] then redis.call('HSET', A, 'st', 'A', 'us', '0', 'ov', '0') end"),
    'void of nothing free': ("if f[2] ~= '0' then    ", "if true then    "),
    'voided is over': ("redis.call('HSET', A, p .. '.ex', '1')", "redis.call('HSET', A, p .. '.mk', argv[10])"),
    'order is remembered': ("redis.call('HSET', A, 'o:' .. order, terms)", ""),
    'repeated closing': ("if seen then return { seen == op and 'DUP' or 'CONFLICT' } end", ""),
    'grace of a lease': ("(int(all[i + 1]) or 0) + grace < now", "(int(all[i + 1]) or 0) < now"),
    'line without line end': ("or string.find(line, '[%z\\n]') then", "then"),
    'directory keys': ("if keys[1] ~= 'mr:{dir}:lines' or keys[2] ~= 'mr:{dir}:version' then return 'BADARG' end", ""),
}


def caught(environment):
    """Which test fails with this environment; None: no one does."""
    for test in TESTS:
        r = subprocess.run([sys.executable, os.path.join(HERE, 'run.py'), '--quick', test], stdout=subprocess.PIPE,
                           stderr=subprocess.STDOUT, text=True, env=dict(os.environ, **environment), timeout=300)
        if r.returncode != 0:
            return '%-8s %s' % (test, r.stdout.strip().splitlines()[-1][:90])
    return None


def mutate_lua(names):
    with open(LUA) as f:
        text = f.read()
    missed = []
    for name, (old, new) in GUARDS.items():
        if names and name not in names:
            continue
        assert text.count(old) == 1, 'the text of %r stands there %d times' % (name, text.count(old))
        with tempfile.NamedTemporaryFile('w', suffix='.lua') as f:
            f.write(text.replace(old, new))
            f.flush()
            how = caught({'MILLRACE_LEDGER_LUA': f.name,
                          'MILLRACE_LEDGER_DRIVER': os.path.join(BUILD, 'tests', 'ledger', 'ledger_driver')})
        print('lua  %-36s %s' % (name, how or 'NOT NOTICED'), flush=True)
        missed += [] if how else [name]
    return missed


def mutate_c(names):
    with open(os.path.join(ROOT, 'server', 'billing', 'ledger_planted.h')) as f:
        bugs = re.findall(r'^    LEDGER_PLANTED_(\w+),', f.read(), re.M)[1:]
    missed = []
    for i, name in enumerate(bugs, 1):
        if name == 'COUNT' or (names and name not in names):
            continue
        how = caught({'MILLRACE_LEDGER_PLANT': str(i),
                      'MILLRACE_LEDGER_DRIVER': os.path.join(BUILD, 'tests', 'ledger', 'ledger_driver_planted')})
        print('c    %-36s %s' % (name, how or 'NOT NOTICED'), flush=True)
        missed += [] if how else [name]
    return missed


def main():
    which, names = sys.argv[1:2], set(sys.argv[2:])
    assert caught({'MILLRACE_LEDGER_DRIVER': os.path.join(BUILD, 'tests', 'ledger', 'ledger_driver_planted')}) is None, \
        'the vectors fail without any mutation'
    missed = []
    if which != ['c']:
        missed += mutate_lua(names)
    if which != ['lua']:
        missed += mutate_c(names)
    print('%s' % ('not noticed: ' + ', '.join(missed) if missed else 'all noticed'))
    return 1 if missed else 0


if __name__ == '__main__':
    sys.exit(main())
