"""What every test here is made of: journals that producers write, calls on the ledger in Redis and on ledger.c, and the
comparison of both with a third ledger in Python, field by field.

  Journal   what a producer wrote, in order: the truth
  Both      a Redis with ledger.lua and a ledger_driver with ledger.c; each call goes to both, the answers must be equal
  compare   Redis' log once and byte for byte; who paid and every stored field of Redis, of C and of ledger_rules.py"""
import collections
import os
import struct
import subprocess

import records
from ledger_rules import Ledger
from redis_tools import RedisError
from records import UNITS_MAX, Order

DRIVER = os.environ.get('MILLRACE_LEDGER_DRIVER') or os.path.join(
    os.path.dirname(os.path.abspath(__file__)), '..', '..', 'build', 'release', 'tests', 'ledger', 'ledger_driver')
PLANT = int(os.environ.get('MILLRACE_LEDGER_PLANT') or 0)
UUID, ZERO8, MONTH, MASK = 'led-1', '0' * 16, 202611, UNITS_MAX
NOW0 = 1_800_000_000_000                      # records carry their own time; packages of tests start and end around it


def accounts_in(partition, count):
    """The first account numbers of a partition."""
    out, number = [], 0
    while len(out) < count:
        number += 1
        if records.partition_of(number) == partition:
            out.append(number)
    return out


Rec = collections.namedtuple('Rec', 'kind pseq prev8 hash8 acct mclass t units a b c raw month')


class Journal:
    """One producer, one partition."""
    def __init__(self, prod, part):
        self.prod, self.part, self.recs = prod, part, []

    def add(self, kind, acct, mclass=0, t=NOW0, units=0, a=0, b=0, c=0, month=MONTH):
        """F, W: a b c are in_miss, in_hit, out. G: units, a, b are want, least, valid_ms. E: units, a, b are energy, share of idle
        time, green; c is (location, market)."""
        chain, pseq = self.recs[-1].raw[-32:] if self.recs else records.ZERO_CHAIN, len(self.recs) + 1
        if kind in 'FW':
            fields = dict(units=units, in_total=a + b, in_hit=b, out=c, month=month)
        elif kind == 'E':
            loc, mkt = c or (0, 0)
            fields = dict(uj_prefill=units // 3, uj_decode=units - units // 3 - units // 7, uj_host=units // 7, uj_idle_share=a,
                          green_uj=b, ugco2_loc=loc, ugco2_mkt=mkt, month=month, charge_id=struct.pack('<QQ', pseq, acct))
            c = '%d|%d' % (loc, mkt)
        else:
            fields = dict(want=units, least=a, valid_ms=b) if kind == 'G' else {}
        raw = records.encode(chain, kind, mclass, pseq, acct, t, **fields)
        r = Rec(kind, pseq, chain[:8].hex(), raw[-32:-24].hex(), acct, mclass, t, units, a, b, c, raw, month)
        self.recs.append(r)
        return r

    def clone(self):
        j = Journal(self.prod, self.part)
        j.recs = list(self.recs)
        return j


# ----------------------------------------------------------------------------------------------- Redis
def keys_of(part):
    return 'mr:{b%03d}:hwm' % part, 'mr:{b%03d}:log' % part


def akey(part, a):
    return 'mr:{b%03d}:a:%d' % (part, a)


def mkey(part, a, month=MONTH):
    return 'mr:{b%03d}:m:%06d:%d' % (part, month, a)


def apply_args(prod, epoch, part, recs, uuid=UUID):
    keys, idx, argv = list(keys_of(part)), {}, [prod, epoch, uuid, len(recs)]
    for r in recs:
        pair = []
        for k in (akey(part, r.acct), mkey(part, r.acct, r.month) if r.kind in 'FWE' else None):
            if k is not None and k not in idx:
                keys.append(k)
                idx[k] = len(keys)
            pair.append(idx.get(k, 0))
        argv += [r.kind, r.pseq, r.prev8, r.hash8, pair[0], pair[1], r.mclass, r.t, r.units, r.a, r.b, r.c, r.raw]
    return ['FCALL', 'mr_apply', len(keys)] + keys + argv


Ans = collections.namedtuple('Ans', 'status hwm hash8 dup grants')


def ans(r):
    if isinstance(r, Exception):
        raise r
    r = [x.decode() for x in r]
    g = r[4:]
    return Ans(r[0], int(r[1]), r[2], int(r[3]), {int(g[i]): (int(g[i + 1]), int(g[i + 2])) for i in range(0, len(g), 3)})


def send(c, j, recs, epoch=1, uuid=UUID):
    return ans(c(*apply_args(j.prod, epoch, j.part, recs, uuid)))


def init(c, part, uuid=UUID):
    return c('FCALL', 'mr_init', 2, *keys_of(part), uuid)[0].decode()


def order(c, part, a, oid, op, p, units=0, pr=5, ef=0, ex=0, cr=0, mk=MASK, uuid=UUID):
    return c('FCALL', 'mr_order', 3, *keys_of(part), akey(part, a), uuid, oid, op, p, units, pr, ef, ex, cr, mk)[0].decode()


def account(c, part, a, oid, op):
    return c('FCALL', 'mr_account', 3, *keys_of(part), akey(part, a), UUID, oid, op)[0].decode()


def reap(c, part, a, grace):
    return [x.decode() for x in c('FCALL', 'mr_reap', 3, *keys_of(part), akey(part, a), UUID, grace)]


class Conflict(Exception):
    pass


def agree(j, a):
    """The emitter's own check of every answer: HWM and hash8 must be a record this journal holds."""
    if a.status != 'OK':
        raise Conflict(a.status)
    if a.hwm > len(j.recs):
        raise Conflict('journal behind ledger')
    if a.hash8 != (j.recs[a.hwm - 1].hash8 if a.hwm else ZERO8):
        raise Conflict('other history')
    return a


def drain(c, j, epoch=1, batch=64):
    """By the HWM, over a connection alone: where ledger.c is not asked at the same time."""
    a = agree(j, send(c, j, [], epoch))
    while a.hwm < len(j.recs):
        a = agree(j, send(c, j, j.recs[a.hwm:a.hwm + batch], epoch))
    return a


# ----------------------------------------------------------------------------------------------- ledger.c
class Driver:
    def __init__(self):
        self.process = subprocess.Popen([DRIVER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        if PLANT:
            self.ask('plant', PLANT)

    def ask(self, *words):
        self.process.stdin.write(' '.join(map(str, words)) + '\n')
        self.process.stdin.flush()
        lines = []
        while True:
            line = self.process.stdout.readline()
            if not line:
                raise AssertionError('ledger_driver ended')
            if line == '.\n':
                return lines
            lines.append(line[:-1])

    def apply(self, part, prod, epoch, recs, now, uuid=UUID):
        """The answer, and what it logged: {pseq: (kind, funding, extra)}."""
        lines = self.ask('apply', part, prod, epoch, uuid, now, *[r.raw.hex() for r in recs])
        w = lines[0].split(' ')
        grants = {int(w[i]): (int(w[i + 1]), int(w[i + 2])) for i in range(4, len(w), 3)}
        log = {}
        for line in lines[1:]:
            _, pseq, kind, funding, extra = line.split(' ')
            log[int(pseq)] = (kind, funding if funding != '-' else '', extra if extra != '-' else '')
        return Ans(w[0], int(w[1]), w[2], int(w[3]), grants), log

    def order(self, o, now, uuid=UUID):
        return self.ask('order', uuid, *o, now)[0]

    def fields(self):
        """{key: {field: value}} without zeros, as compare has Redis' keys."""
        out = collections.defaultdict(dict)
        for line in self.ask('dump'):
            key, field, value = line.split(' ', 2)
            out[key][field] = value
        return out

    def sound(self):
        assert self.ask('check') == ['ok'], self.ask('check')
        assert self.ask('reload') == ['same'], 'reload'
        assert self.ask('check') == ['ok']

    def end(self):
        self.process.stdin.close()
        self.process.wait()
        self.process.stdout.close()


class Both:
    """One partition's ledger in Redis and in C. Time is Redis': C is told which one was stored."""
    def __init__(self, c, part):
        self.c, self.part, self.driver, self.calls = c, part, Driver(), 0

    def init(self, uuid=UUID):
        a = init(self.c, self.part, uuid)
        assert self.driver.ask('init', uuid) == [a], a
        return a

    def stored_time(self, j, recs):
        """Redis' clock in a call, from the lease ends it logged; 0 when it set none."""
        valid = {str(r.pseq): r.b for r in recs if r.kind == 'G'}
        if not valid:
            return 0
        for e in self.c('XREVRANGE', keys_of(self.part)[1], '+', '-', 'COUNT', len(recs) + 1):
            f = fields(e)
            if f['k'] == 'G' and f['p'] == j.prod and f['s'] in valid and f['x']:
                return int(f['x']) - valid[f['s']]
        return 0

    def apply(self, j, recs, epoch=1, uuid=UUID):
        a = send(self.c, j, recs, epoch, uuid)
        b, _ = self.driver.apply(self.part, j.prod, epoch, recs, self.stored_time(j, recs), uuid)
        self.calls += 1
        assert a == b, ('Redis and C differ', a, b, recs)
        return a

    def drain(self, j, epoch=1, batch=64):
        a = agree(j, self.apply(j, [], epoch))
        while a.hwm < len(j.recs):
            a = agree(j, self.apply(j, j.recs[a.hwm:a.hwm + batch], epoch))
        return a

    def order(self, a, oid, op, p, units=0, pr=5, ef=0, ex=0, cr=0, mk=MASK, uuid=UUID):
        got = order(self.c, self.part, a, oid, op, p, units, pr, ef, ex, cr, mk, uuid)
        seconds, us = self.c('TIME')
        now = int(seconds) * 1000 + int(us) // 1000
        same = self.driver.order(Order(a, oid, op, p, units, pr, ef, ex, cr, mk), now, uuid)
        self.calls += 1
        assert got == same, ('Redis and C differ', oid, op, got, same)
        return got

    def account(self, a, oid, op):
        got = account(self.c, self.part, a, oid, op)
        assert self.driver.ask('account', UUID, a, oid, op) == [got], got
        self.calls += 1
        return got

    def reap(self, a, grace):
        got = reap(self.c, self.part, a, grace)
        seconds, us = self.c('TIME')
        now = int(seconds) * 1000 + int(us) // 1000
        last = self.c('XREVRANGE', keys_of(self.part)[1], '+', '-', 'COUNT', 1)
        if got[1:] != ['0', '0'] and last and fields(last[0])['k'] == 'X':
            now = int(fields(last[0])['x'])
        same = self.driver.ask('reap', UUID, a, grace, now)
        self.calls += 1
        assert [' '.join(got)] == same, (got, same)
        return got

    def compare(self, accts, journals, months=(MONTH,), complete=True):
        """As the module's; then ledger.c, which took the same calls, must hold the same too."""
        n, o = compare(self.c, self.part, accts, journals, months, complete)
        stored = everything(self.c, self.part, accts, months)
        mine = {k: v for k, v in self.driver.fields().items() if k.startswith(('a:', 'm:')) or k == 'hwm:%03d' % self.part}
        for k in set(stored) | set(mine):
            assert stored.get(k, {}) == mine.get(k, {}), ('Redis and C differ', k, difference(stored.get(k, {}), mine.get(k, {})))
        self.driver.sound()
        return n, o

    def end(self):
        self.driver.end()


# ----------------------------------------------------------------------------------------------- comparing
def hgetall(r):
    return {r[i].decode(): r[i + 1].decode() for i in range(0, len(r), 2)}


def fields(e):
    f = e[1]
    return {f[i].decode(): (f[i + 1] if f[i] == b'r' else f[i + 1].decode()) for i in range(0, len(f), 2)}


def difference(a, b):
    return {k: (a.get(k), b.get(k)) for k in set(a) | set(b) if a.get(k) != b.get(k)}


def snapshot(c, part, accts, months=(MONTH,), log=False, multi=True):
    """HWMs, account hashes, month hashes and the log, read in one transaction."""
    cmds = [['MULTI']] * multi + [['HGETALL', keys_of(part)[0]]] + [['HGETALL', akey(part, a)] for a in accts]
    cmds += [['HGETALL', mkey(part, a, m)] for a in accts for m in months]
    cmds += [['XRANGE', keys_of(part)[1], '-', '+']] if log else []
    r = c.many(cmds + [['EXEC']])[-1] if multi else c.many(cmds)
    if isinstance(r, Exception):
        raise r
    hw, r = hgetall(r[0]), r[1:]
    A = {a: hgetall(r[i]) for i, a in enumerate(accts)}
    M = {(a, m): hgetall(r[len(accts) + i * len(months) + k]) for i, a in enumerate(accts) for k, m in enumerate(months)}
    hwm = {p: int(v.split('|')[1]) for p, v in hw.items() if p not in ('uuid', 'schema')}
    return hwm, A, M, r[-1] if log else None


def everything(c, part, accts, months):
    """What Redis stores under the names and in the form of ledger_dump."""
    def lean(h):
        return {k: v for k, v in h.items() if v not in ('0', '')}
    _, A, M, _ = snapshot(c, part, accts, months)
    out = {'a:%d' % a: lean(h) for a, h in A.items()}
    out.update({'m:%06d:%d' % (m, a): lean(h) for (a, m), h in M.items()})
    out['hwm:%03d' % part] = {p: v for p, v in hgetall(c('HGETALL', keys_of(part)[0])).items() if p not in ('uuid', 'schema')}
    return {k: v for k, v in out.items() if v}


def totals(journals, hwm):
    """Order-free sums of the records at or below the HWMs, straight from the journals."""
    us, month, n = collections.Counter(), collections.Counter(), 0
    for j in journals:
        for r in j.recs[:hwm.get(j.prod, 0)]:
            n += 1
            c = 'c%d.' % r.mclass
            if r.kind == 'F':
                us[r.acct] += r.units
                for f, v in (('im', r.a), ('ih', r.b), ('ou', r.c), ('un', r.units), ('n', 1)):
                    month[r.acct, r.month, c + f] += v
            elif r.kind == 'W':
                for f, v in (('wi', r.a + r.b), ('wo', r.c), ('wn', 1)):
                    month[r.acct, r.month, c + f] += v
            elif r.kind == 'E':
                loc, mkt = map(int, r.c.split('|'))
                for f, v in (('en', r.units), ('ei', r.a), ('eg', r.b), ('cl', loc), ('cm', mkt), ('ne', 1)):
                    month[r.acct, r.month, c + f] += v
    return us, month, n


def invariants(journals, hwm, A, M):
    """What must hold after any crash, before any replay. Returns the records counted."""
    us, month, n = totals(journals, hwm)
    for a, h in A.items():
        used, ids = 0, {k[:-3] for k in h if k.endswith('.gr')}
        for i in ids:
            gr, av, rs, u, xp = (int(h[i + '.' + f]) for f in ('gr', 'av', 'rs', 'us', 'xp'))
            assert gr == av + rs + u + xp and min(av, rs, u, xp) >= 0, (a, i, gr, av, rs, u, xp)
            assert rs == sum(int(v) for k, v in h.items() if k.startswith('L:') and k.endswith(':' + i)), (a, i)
            used += u
        assert int(h.get('us', 0)) == us[a] == used + int(h.get('ov', 0)), (a, h.get('us'), us[a], used)
    got = {(a, m, f): int(v) for (a, m), h in M.items() for f, v in h.items() if v != '0'}
    assert got == {k: v for k, v in month.items() if v and k[0] in A}, 'months differ'
    return n


def feed(log, journals, part, driver=None):
    """Plays a log into a ledger of ledger_rules.py, and into ledger.c when a driver is given: who paid and each number must
    be what the log says. Returns the ledger and how many records of each producer there were."""
    o, by, seen = Ledger(), {j.prod: j for j in journals}, collections.Counter()
    for e in log:
        f = fields(e)
        if f['k'] == 'O':
            t = f['t'].split('|')
            done = Order(int(f['a']), f['o'], t[0], t[1], *map(int, t[2:]))
            assert o.order(done) == 'OK', f
            assert driver is None or driver.order(done, 0) == 'OK', f
        elif f['k'] == 'S':
            assert o.account_set(int(f['a']), f['o'], f['t']) == 'OK', f
            assert driver is None or driver.ask('account', UUID, f['a'], f['o'], f['t']) == ['OK'], f
        elif f['k'] == 'X':
            o.reap(int(f['a']), 0, int(f['x']), [p for p in f['f'].split(',') if p])
        else:
            seen[f['p']] += 1
            assert int(f['s']) == seen[f['p']], 'log out of order or double'
            r = by[f['p']].recs[int(f['s']) - 1]
            assert f['r'] == r.raw and f['k'] == r.kind and int(f['a']) == r.acct
            want = (f['f'], f['o'])
            until = int(f['x'] or 0)
            assert o.record(f['p'], records.decode(r.raw), until) == want, f
            if driver is not None:
                a, mine = driver.apply(part, f['p'], 1, [r], until - r.b if until else 0)
                assert a.status == 'OK' and mine[r.pseq][1:] == want, (a, mine, f)
    return o, seen


def compare(c, part, accts, journals, months=(MONTH,), complete=True, with_driver=False):
    """The log has each record once, with the journal's bytes; played into a ledger of Python integers it gives every field
    that Redis holds. with_driver: ledger.c too, from the log."""
    hwm, A, M, log = snapshot(c, part, accts, months, log=True)
    if complete:
        assert hwm == {j.prod: len(j.recs) for j in journals}, (hwm, {j.prod: len(j.recs) for j in journals})
    n = invariants(journals, hwm, A, M)
    driver = Driver() if with_driver else None
    if driver:
        driver.ask('init', UUID)
    o, seen = feed(log, journals, part, driver)
    o.check()
    assert dict(seen) == {p: n for p, n in hwm.items() if n}, 'log and HWM differ'
    mine = driver.fields() if driver else None
    for a in accts:
        got, want = {k: v for k, v in A[a].items() if v not in ('0', '')}, o.account_fields(a)
        assert got == want, (a, difference(got, want))
        assert mine is None or mine['a:%d' % a] == want, ('C', a, difference(mine['a:%d' % a], want))
        got = {(m, k): v for (b, m), h in M.items() if b == a for k, v in h.items() if v != '0'}
        assert got == {k: v for k, v in o.month_fields(a).items() if k[0] in months}, (a, got)
    if driver:
        driver.sound()
        driver.end()
    return n, o


def digest(c):
    """Everything stored, for `refused means no change`."""
    ks = sorted(c('KEYS', '*'))
    ty = c.many([['TYPE', k] for k in ks])
    return ks, ty, c.many([['XINFO', 'STREAM', k] if t == 'stream' else ['DEBUG', 'DIGEST-VALUE', k] for k, t in zip(ks, ty)])


# ----------------------------------------------------------------------------------------------- random traffic
def add_random(rnd, j, accts, t, big=False):
    a, mc = rnd.choice(accts), rnd.randrange(4)
    k = rnd.choices('FWGRE', [10, 2, 4, 1, 4])[0]
    if k == 'E':
        top = rnd.choice([10**9, UNITS_MAX + 1]) if big else 10**9
        j.add('E', a, mc, t, rnd.randrange(top), rnd.randrange(top), rnd.randrange(top), (rnd.randrange(top), rnd.randrange(top)))
    elif k in 'FW':
        im, ih, ou = rnd.randrange(200), rnd.randrange(200), rnd.randrange(200)
        u = rnd.choice([rnd.randrange(5000), UNITS_MAX - rnd.randrange(9)]) if big else rnd.randrange(5000)
        j.add(k, a, mc, t, u if k == 'F' else 0, im, ih, ou)
    elif k == 'G':
        want = rnd.choice([0, 500, 20000, UNITS_MAX] if big else [0, 500, 20000])
        j.add('G', a, mc, t, want, rnd.choice([0, 0, 600]), 120000)
    else:
        j.add('R', a, mc, t)


def packages(rnd, place, accts, big=False):
    """Orders packages for the accounts, each order twice; `place` is order() of a Both, or of a connection and partition."""
    n = 0
    for a in accts:
        for i in range(rnd.choice([1, 2, 3, 4, 4, 12])):
            u = rnd.choice([2**53 - 2, 2**53 + 1, 2**60 + 7, 4 * 10**18]) if big else rnd.choice([10**4, 10**6, 10**8])
            args = (a, 'ord%d' % i, 'add', 'p%d' % i, u, rnd.randint(0, 2), rnd.choice([0, NOW0 + 300]),
                    rnd.choice([0, NOW0 + 1500, NOW0 + 10**9]), i, rnd.choice([UNITS_MAX, UNITS_MAX, 0b0111, 0b1000]))
            assert place(*args) == 'OK'
            assert place(*args) == 'DUP'
            n += 1
    return n


__all__ = [n for n in dir() if not n.startswith('_')]
