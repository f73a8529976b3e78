"""The rules of the ledger, each call on Redis and on ledger.c at once: random traffic with mistakes between (happy), each rule
once (edges), 2^53 to 2^62 (numbers). Calls that only one of the two can be given (damaged fields, foreign keys, lost keys) are
marked Redis alone."""
import collections
import os
import shutil
import subprocess
import tempfile
import time

from redis_tools import VERSION, RedisError, Server, free_port
from vectors import *  # noqa: F401,F403
from vectors import UNITS_MAX as FULL


def bad_call(rnd, k, both, j, n, epoch):
    """A call that must be refused, chosen by k: (answer wanted, answer), or None where it does not fit just now."""
    recs, c = j.recs, both.c
    if k < .66 and len(recs) > n + 1:
        return 'GAP', both.apply(j, recs[n + 1:n + 5], epoch)
    if k < .72 and n:                                          # another record under the last number: its chain differs
        twin = j.clone()
        twin.recs = twin.recs[:n - 1]
        twin.add('R', recs[n - 1].acct, t=NOW0 + 7)
        return 'CONFLICT', both.apply(j, [twin.recs[-1]], epoch)
    if k < .78 and len(recs) > n:                              # the next number behind another past
        twin = Journal(j.prod, j.part)
        twin.recs = recs[:max(n - 1, 0)] + [recs[n - 1]._replace(raw=recs[n - 1].raw[:-32] + b'e' * 32)] if n else []
        if not n:
            return 'CONFLICT', send(c, j, [recs[0]._replace(prev8='e' * 16)], epoch)
        twin.add('R', recs[n].acct)
        return 'CONFLICT', both.apply(j, [twin.recs[-1]], epoch)
    if k < .82 and len(recs) > n:                              # Redis alone: arguments that no record can hold
        bad = rnd.choice([dict(kind='Z'), dict(units='007'), dict(units='-1'), dict(units='1e3'), dict(units=2**53),
                          dict(units=''), dict(units='0x10'), dict(units=' 1'), dict(t='1.5'), dict(mclass=53),
                          dict(hash8='x|y|' + '0' * 12), dict(prev8='0' * 15), dict(pseq=0), dict(pseq='01'), dict(pseq=''),
                          dict(a='-0')])
        return 'BADARG', send(c, j, [recs[n]._replace(**bad)], epoch)
    if .82 <= k < .86:
        return 'WRONGLEDGER', both.apply(j, recs[n:n + 3], epoch, 'led-2')
    if .86 <= k < .90 and epoch > 1:
        return 'FENCED', both.apply(j, recs[n:n + 3], epoch - 1)
    return None


def test_happy(rnd, opt):
    """Random batches from 4 producers with overlap, gaps, forged and damaged calls between; small and huge balances."""
    cnt, total = collections.Counter(), 0
    for big in (False, True):
        s = Server().start()
        c, part = s.load(), 17
        accts, both = accounts_in(part, 8), Both(c, part)
        assert both.init() == 'OK' and both.init() == 'DUP' and both.init('other') == 'WRONGLEDGER'
        packages(rnd, both.order, accts, big)
        js = [Journal('%016x' % rnd.getrandbits(64), part) for _ in range(4)]
        epoch, hw = {j.prod: 1 for j in js}, {j.prod: 0 for j in js}
        for step in range(opt.steps):
            j, t = rnd.choice(js), NOW0 + step
            for _ in range(rnd.randrange(8)):
                add_random(rnd, j, accts, t, big)
            n, k = hw[j.prod], rnd.random()
            if k < .6:
                lo = max(0, n - rnd.choice([0, 0, 0, 1, 7]))
                a = agree(j, both.apply(j, j.recs[lo:lo + 32], epoch[j.prod]))
                assert not a.dup or a.dup == min(n, lo + 32) - lo
                cnt['batches'] += 1
                cnt['duplicates'] += a.dup
                hw[j.prod] = a.hwm
            elif .90 <= k < .92:
                epoch[j.prod] += 1
                agree(j, both.apply(j, [], epoch[j.prod]))
                cnt['new epoch'] += 1
            else:
                before = digest(c)
                refused = bad_call(rnd, k, both, j, n, epoch[j.prod])
                if refused:
                    want, a = refused
                    assert a.status == want and digest(c) == before, (want, a)
                    cnt[want] += 1
            if step % 100 == 0:
                both.reap(rnd.choice(accts), 10**9)
                both.order(rnd.choice(accts), 'more%d' % step, rnd.choice(['inc', 'void']), 'p%d' % rnd.randrange(4), 5000)
            if step % 250 == 0:
                both.compare(accts, js, complete=False)
        for j in js:
            both.drain(j, epoch[j.prod], 256)
        n, o = both.compare(accts, js)
        total += n
        top = max(p.av for a in accts for p in o.accounts[a].packages.values())
        cnt['largest balance 2^%d' % top.bit_length()] += 1
        both.end()
        s.end()
    return dict(records=total, **cnt)


class Edges:
    """State of test_edges: one producer, one partition; `n` counts checks."""
    def __init__(self, s, rnd):
        self.s, self.rnd, self.n, self.part, self.prod = s, rnd, 0, 3, '00000000000000a1'
        self.c = s.load()
        self.both, self.j = Both(self.c, self.part), Journal(self.prod, self.part)
        self.accts = accounts_in(self.part, 8)

    def grant(self, acct, want, least=0, mclass=0, valid=60000, t=NOW0):
        rec = self.j.add('G', acct, mclass, t, want, least, valid)
        leased, open_ = agree(self.j, self.both.apply(self.j, [rec])).grants[rec.pseq]
        return leased if open_ else (leased, 'closed')

    def hash(self, acct):
        return hgetall(self.c('HGETALL', akey(self.part, acct)))


def edges_orders(e):
    both, j, a = e.both, e.j, e.accts[0]
    j.add('F', a, units=70, a=5, b=2, c=3)
    assert both.apply(j, j.recs).status == 'NOLEDGER' and e.c('KEYS', '*') == []
    assert both.init() == 'OK'
    # usage before the account's first order stays: a new package must not reset it
    assert agree(j, both.apply(j, j.recs)).hwm == 1
    assert both.order(a, 'o1', 'add', 'p', 1000) == 'OK' and e.hash(a)['us'] == e.hash(a)['ov'] == '70'
    both.compare([a], [j])
    # orders: same terms DUP, other terms CONFLICT, second add EXISTS, unknown package
    assert both.order(a, 'o1', 'add', 'p', 1000, cr=99) == 'DUP' and both.order(a, 'o1', 'add', 'p', 1001) == 'CONFLICT'
    for other in (dict(pr=6), dict(ef=1), dict(ex=9), dict(mk=1)):
        assert both.order(a, 'o1', 'add', 'p', 1000, **other) == 'CONFLICT', other
    assert both.order(a, 'o2', 'add', 'p', 1) == 'EXISTS' and both.order(a, 'o2', 'inc', 'q', 1) == 'NOPACKAGE'
    assert both.order(a, 'o2', 'void', 'q') == 'NOPACKAGE' and both.order(a, 'o1', 'add', 'p', 1000, uuid='led-2') == 'WRONGLEDGER'
    for bad in ('007', '-1', '1.0', '1e3', str(2**63), 'nan', ''):            # Redis alone
        assert order(e.c, e.part, a, 'o3', 'inc', 'p', bad) == 'BADARG', bad
    for bad in (dict(p='x,y'), dict(p=''), dict(p='x' * 33), dict(oid='a|b'), dict(oid=''), dict(oid='x' * 65)):
        before = digest(e.c)
        assert order(e.c, e.part, a, bad.get('oid', 'o3'), 'add', bad.get('p', 'z'), 1) == 'BADARG' and digest(e.c) == before
    # the limit of a package, exactly
    assert both.order(a, 'o4', 'add', 'big', 46 * 10**17 - 5) == 'OK'
    assert both.order(a, 'o5', 'inc', 'big', 6) == 'LIMIT' and both.order(a, 'o5', 'inc', 'big', 5) == 'OK'
    assert both.order(a, 'o6', 'inc', 'big', 1) == 'LIMIT' and both.order(a, 'o7', 'add', 'b2', 46 * 10**17 + 1) == 'BADARG'
    assert both.order(a, 'o7', 'add', 'b2', 46 * 10**17) == 'OK' and both.order(a, 'o8', 'inc', 'b2', 10**15) == 'LIMIT'
    # order of use: priority, earliest expiry, effective, created, id
    a = e.accts[6]
    rows = [('e', 2, 0, 0, 0), ('d', 1, 0, 0, 9), ('c', 1, 0, 0, 3), ('b', 1, 0, NOW0 * 2, 1), ('a', 1, 7, 0, 0), ('f', 1, 0, 0, 3)]
    for i, pr, ef, ex, cr in rows:
        assert both.order(a, 'o' + i, 'add', i, 10, pr=pr, ef=ef, ex=ex, cr=cr) == 'OK'
    assert e.hash(a)['ord'] == 'b,c,f,d,a,e', e.hash(a)['ord']
    j.add('F', a, units=45, a=1)
    agree(j, both.apply(j, j.recs[1:]))
    assert [e.hash(a)[i + '.us'] for i in 'bcfdae'] == ['10', '10', '10', '10', '5', '0']
    e.n += 40


def edges_refused(e):
    """Redis alone: keys of another partition, wrong types, damaged stored fields: refused, nothing changes."""
    c, j, part, a = e.c, e.j, e.part, e.accts[0]
    hwm, log = keys_of(part)
    r = j.add('F', a, units=1)
    good = apply_args(e.prod, 1, part, [r])
    before = digest(c)
    for i, k in ((5, akey(4, a)), (5, 'x'), (6, mkey(part, e.accts[1])), (6, akey(part, a)), (3, hwm + 'x'), (4, 'mr:{b004}:log')):
        bad = list(good)
        bad[i] = k
        assert ans(c(*bad)).status == 'BADARG', k
    for n in (-1, 257, 'x'):
        assert ans(c(*good[:10], n, *good[11:])).status == 'BADARG'
    assert digest(c) == before
    for k in (akey(part, a), mkey(part, a), log, hwm):
        if not c('EXISTS', k):
            continue
        c('RENAME', k, 'mr:{b003}:save')
        c('SET', k, 'x')
        before = digest(c)
        got = send(c, j, [r])
        assert got.status == 'BADSTATE' and digest(c) == before, (k, got)
        c('DEL', k)
        c('RENAME', 'mr:{b003}:save', k)
        e.n += 1
    agree(j, e.both.apply(j, [r]))
    e.n += 9


def edges_damaged(e):
    c, j, part, a = e.c, e.j, e.part, e.accts[5]
    e.both.order(a, 'o', 'add', 'p', 10**6)
    j.add('G', a, units=100, b=1000)
    j.add('F', a, units=1, a=1, b=1, c=1)
    agree(j, e.both.apply(j, j.recs[-2:]))
    last = len(j.recs)
    for kind in 'FRE':
        twin = j.clone()
        rec = twin.add(kind, a, units=1) if kind in 'FE' else twin.add(kind, a)
        month = {'F': ('c0.im', 'c0.ih', 'c0.ou', 'c0.un', 'c0.n'), 'R': (),
                 'E': ('c0.en', 'c0.ei', 'c0.eg', 'c0.cl', 'c0.cm', 'c0.ne')}[kind]
        for f in ('p.av', 'p.rs', 'p.us', 'p.xp', 'p.ef', 'p.ex', 'p.mk', 'us', 'ov', 'L:%s:p' % e.prod) + month:
            k = mkey(part, a) if f[0] == 'c' else akey(part, a)
            old = c('HGET', k, f)
            less = ('98',) if f == 'p.rs' else ()              # than its lease: 99
            for v in ('x', '', '007', '-5', '-0', '1e3', '0x1f', '1.5', ' 1', '9' * 19, '9' * 40) + less:
                c('HSET', k, f, v)
                before = digest(c)
                got = send(c, j, [rec])
                assert got.status == 'BADSTATE' and digest(c) == before, (kind, f, v, got)
                e.n += 1
            c('HDEL', k, f) if old is None else c('HSET', k, f, old)
    for v in ('1|x|y', '1|2', 'x', '1|%d|%s' % (last, 'g' * 16), '01|%d|%s' % (last, j.recs[-1].hash8)):
        old = c('HGET', keys_of(part)[0], e.prod)
        c('HSET', keys_of(part)[0], e.prod, v)
        assert send(c, j, []).status == 'BADSTATE', v
        c('HSET', keys_of(part)[0], e.prod, old)
    # a batch that stops in the middle keeps what came before and says so
    j.add('R', a)
    j.add('F', a, units=1)
    got = send(c, j, [j.recs[last], j.recs[last + 1]._replace(units='007')])
    assert got.status == 'BADARG' and got.hwm == last + 1
    e.both.driver.apply(part, e.prod, 1, [j.recs[last]], 0)
    agree(j, e.both.apply(j, j.recs[last + 1:]))
    # HWM hash lost alone: noticed (identity is in it), and init refuses beside an old log
    hwm = keys_of(part)[0]
    c('RENAME', hwm, 'mr:{b003}:save')
    assert send(c, j, j.recs).status == 'NOLEDGER' and init(c, part) == 'BADSTATE'
    c('RENAME', 'mr:{b003}:save', hwm)
    c('HSET', hwm, 'schema', '2')
    assert send(c, j, []).status == 'WRONGLEDGER'
    c('HSET', hwm, 'schema', '1')
    e.both.compare(e.accts, [j])
    e.n += 10


def edges_energy(e):
    """Counted in the account's month and class, paid by nobody; what is no number of ledger.lua's is refused."""
    both, c, j, part, a = e.both, e.c, e.j, e.part, e.accts[0]
    before = e.hash(a)
    got = [j.add('E', a, 2, units=u, a=u // 2, b=u // 4, c=(7 * u, 5)) for u in (0, 10**9 + 1, 2**50 - 1)]
    agree(j, both.apply(j, got))
    assert e.hash(a) == before, 'energy changed the account'
    h = hgetall(c('HGETALL', mkey(part, a)))
    sums = [sum(f(u) for u in (0, 10**9 + 1, 2**50 - 1)) for f in (lambda u: u, lambda u: u // 2, lambda u: u // 4, lambda u: 7 * u)]
    assert [int(h['c2.' + f]) for f in ('en', 'ei', 'eg', 'cl', 'cm', 'ne')] == sums + [15, 3], h
    agree(j, both.apply(j, got))                               # again: duplicates
    assert hgetall(c('HGETALL', mkey(part, a))) == h
    other = j.add('E', a, 2, units=5, c=(1, 2))
    before = digest(c)
    for bad in ('1', '1|', '|1', '1|2|3', '01|2', '1|-2', '1|%d' % 2**53, '%d|1' % 2**53, '1|1e3', ' 1|2', ''):
        assert send(c, j, [other._replace(c=bad)]).status == 'BADARG', bad
    for bad in (dict(units=2**53), dict(units='x'), dict(a='007'), dict(b='-0'), dict(mclass=53)):
        assert send(c, j, [other._replace(**bad)]).status == 'BADARG', bad
    args = apply_args(e.prod, 1, part, [other])
    assert ans(c(*(args[:6] + [mkey(part, e.accts[1])] + args[7:]))).status == 'BADARG'  # another account's month
    assert digest(c) == before
    c('RENAME', mkey(part, a), 'mr:{b003}:save')
    c('SET', mkey(part, a), 'x')
    before = digest(c)
    assert send(c, j, [other]).status == 'BADSTATE' and digest(c) == before
    c('DEL', mkey(part, a))
    c('RENAME', 'mr:{b003}:save', mkey(part, a))
    agree(j, both.apply(j, [other]))
    both.compare(e.accts, [j])
    e.n += 23


def edges_clones(e):
    both, j, a = e.both, e.j, e.accts[0]
    k = j.clone()
    j.add('F', a, units=9)
    k.add('F', a, units=8)
    agree(j, both.apply(j, j.recs[-1:]))
    assert both.apply(k, k.recs[-1:]).status == 'CONFLICT'                     # same number, other hash
    k.add('F', a, units=8)
    assert both.apply(k, k.recs[-1:]).status == 'CONFLICT'                     # next number, other past
    old = j.clone()
    old.recs = old.recs[:3]
    for other, why in ((old, 'journal behind ledger'), (k, 'other history')):
        got = both.apply(other, other.recs[:2])                                # looks like duplicates to a ledger ...
        assert got.status == 'OK' and got.dup == 2
        try:
            agree(other, got)                                                  # ... and is refused by the emitter
            raise AssertionError('clone accepted')
        except Conflict as error:
            assert str(error) == why
    e.n += 4


def edges_grants(e):
    """Absolute, by class, least, capped below 2^53, closed account, renewed by the ledger's clock."""
    both, c, j, part, (one, two, seven) = e.both, e.c, e.j, e.part, (e.accts[0], e.accts[1], e.accts[3])
    g = e.grant
    assert both.order(two, 'a', 'add', 'one', 500, mk=0b01) == 'OK' and both.order(two, 'b', 'add', 'two', 300, mk=0b10) == 'OK'
    now = int(c('TIME')[0]) * 1000
    assert g(two, 200) == 200 and g(two, 200) == 400 and g(two, 200, 101) == 400 and g(two, 200, 100) == 500 and g(two, 0) == 500
    assert g(two, 300, mclass=1) == 300 and g(two, 0) == 500                   # the other class is not counted in
    for skew in (0, -3_600_000, 3_600_000):                                    # node clock wrong by an hour
        c('HSET', akey(part, two), 'X:' + e.prod, '1')
        g(two, 0, t=now + skew)
        x = int(c('HGET', akey(part, two), 'X:' + e.prod))
        assert abs(x - now - 60000) < 30000 and both.reap(two, 0) == ['OK', '0', '0']
    assert g(one, FULL) == FULL and g(one, FULL) == FULL                       # the cap: the answer is exact
    rec = j.add('F', one, units=FULL, a=1, b=1, c=1)
    agree(j, both.apply(j, [rec]))
    assert g(one, 5) == 5
    assert both.account(two, 'c1', 'close') == 'OK' and both.account(two, 'c1', 'close') == 'DUP'
    assert both.account(two, 'c1', 'open') == 'CONFLICT'
    rec = j.add('F', two, units=50, a=1, b=1, c=1)                             # closed: no new grant, leases still pay
    agree(j, both.apply(j, [rec]))
    assert g(two, 10) == (450, 'closed') and e.hash(two)['one.us'] == '50'
    assert both.account(two, 'c2', 'open') == 'OK' and g(two, 10) == 450
    assert both.order(seven, 'a', 'add', 'z', 100) == 'OK' and both.account(seven, 'c', 'close') == 'OK'
    assert g(seven, 10) == (0, 'closed') and both.account(seven, 'd', 'open') == 'OK' and g(seven, 10) == 10
    assert g(e.accts[7], 10) == 0                                              # an account nobody has heard of is open, and empty
    # leases pay before free units of a package that is used earlier
    assert both.order(seven, 'e', 'add', 'y', 100, pr=1) == 'OK'
    rec = j.add('F', seven, units=15, a=1, b=1, c=1)
    agree(j, both.apply(j, [rec]))
    assert (e.hash(seven)['z.us'], e.hash(seven)['y.us']) == ('10', '5')
    e.n += 26


def edges_times(e):
    """Void while leased, packages that have not begun or have ended, reaping, settling and coming back."""
    both, c, j, two, five, eight = e.both, e.c, e.j, e.accts[1], e.accts[2], e.accts[4]
    now = int(c('TIME')[0]) * 1000
    assert both.order(two, 'v', 'void', 'one') == 'OK' and both.order(two, 'v', 'void', 'one') == 'DUP'
    assert both.order(two, 'w', 'inc', 'one', 10) == 'EXPIRED'
    rec = j.add('F', two, units=100, a=1, b=1, c=1)
    j.add('R', two, t=5)
    agree(j, both.apply(j, j.recs[-2:]))
    assert [e.hash(two)['one.' + f] for f in ('gr', 'av', 'rs', 'us', 'xp')] == ['500', '0', '0', '150', '350'], e.hash(two)
    assert both.order(five, 'a', 'add', 'x', 100, ex=now + 1500) == 'OK' and both.order(five, 'b', 'add', 'y', 50) == 'OK'
    assert both.order(five, 'c', 'add', 'later', 70, pr=1, ef=NOW0 + 1000) == 'OK'
    assert e.grant(five, 120, valid=1, t=now) == 120
    while int(c('TIME')[0]) * 1000 <= now + 2500:              # Redis' own seconds, so past the lease and the package
        time.sleep(.02)
    assert both.reap(five, 60000) == ['OK', '0', '0']
    got = both.reap(five, 0)
    assert got == ['OK', '1', '0'], got
    h = e.hash(five)
    assert (h['x.xp'], h['x.av'], h['y.av'], h['ord']) == ('100', '0', '50', 'later,y') and 'X:' + e.prod not in h, h
    rec = j.add('F', five, units=10, a=1, t=NOW0 + 999)                        # `later` has not begun
    agree(j, both.apply(j, [rec]))
    assert e.hash(five)['later.us'] == '0' and e.hash(five)['y.us'] == '10'
    assert both.reap(two, 0)[0] == 'OK' and e.hash(two)['ord'] == 'two'
    # an ended package pays nothing; what is free in it expires when it is reaped
    assert both.order(eight, 'a', 'add', 'old', 40, pr=1, ex=now - 5) == 'OK' and both.order(eight, 'b', 'add', 'k', 60) == 'OK'
    rec = j.add('F', eight, units=60, a=1)
    agree(j, both.apply(j, [rec]))
    assert both.reap(eight, 0) == ['OK', '0', '1']
    h = e.hash(eight)
    assert (h['old.xp'], h['k.us'], h['ord']) == ('40', '60', ''), h           # both are settled: one ended, one used up
    assert both.order(eight, 'c', 'add', 'm', 5, pr=9) == 'OK' and both.order(eight, 'd', 'inc', 'k', 7) == 'OK'
    assert e.hash(eight)['ord'] == 'k,m'                                       # increased, it pays again, in its place
    rec = j.add('F', eight, units=9, a=1)
    agree(j, both.apply(j, [rec]))
    assert (e.hash(eight)['k.us'], e.hash(eight)['m.us'], e.hash(eight).get('ov')) == ('67', '2', None)
    both.compare(e.accts, [j])
    e.n += 20


def edges_redis(e):
    """Redis alone: functions flushed, everything flushed, the ACL user, the directory, Cluster mode."""
    both, c, j, part, s = e.both, e.c, e.j, e.part, e.s
    c('SCRIPT', 'FLUSH')
    drain(c, j)
    c('FUNCTION', 'FLUSH')
    try:
        send(c, j, [])
        raise AssertionError('ran without functions')
    except RedisError as error:
        assert str(error).startswith('ERR Function not found'), error
    s.load()
    drain(c, j)
    assert c('FCALL', 'mr_version', 0) == VERSION
    used = e.hash(e.accts[0])['us']
    c('FLUSHALL')
    assert send(c, j, []).status == send(c, j, j.recs[:3]).status == 'NOLEDGER' and c('KEYS', '*') == []
    assert order(c, part, e.accts[0], 'o1', 'add', 'p', 1000) == 'NOLEDGER'
    init(c, part)
    order(c, part, e.accts[0], 'o1', 'add', 'p', 1000)
    drain(c, j)
    assert e.hash(e.accts[0])['us'] == used
    compare(c, part, e.accts, [j], with_driver=True)
    c('ACL', 'SETUSER', 'mr', 'on', '>pw', '~mr:*', '-@all', '+fcall', '+function', '+hget', '+hmget', '+hgetall', '+hset',
      '+hincrby', '+hdel', '+xadd', '+xlen', '+time', '+wait', '+info', '+role', '+cluster', '+config|get')
    d = s.conn()
    d('AUTH', 'mr', 'pw')
    for _ in range(20):
        add_random(e.rnd, j, e.accts[:3], NOW0)
    drain(d, j)
    assert order(d, part, e.accts[0], 'acl', 'inc', 'p', 5) == 'OK' and reap(d, part, e.accts[0], 0)[0] == 'OK'
    assert account(d, part, e.accts[0], 'acl2', 'open') == 'OK' and init(d, part) == 'DUP' and d('FCALL', 'mr_version', 0) == VERSION
    directory(d)
    compare(c, part, e.accts, [j])
    e.n += 20


def directory(c):
    keys = ('mr:{dir}:lines', 'mr:{dir}:version')

    def put(*words):
        return [x.decode() for x in c('FCALL', 'mr_dir_put', 2, *keys, *words)]
    assert c('FCALL', 'mr_dir_version', 2, *keys) == [b'OK', b'0']
    assert put('t/a', '{"x":1}') == ['OK', '1'] and put('t/a', '{"x":1}') == ['DUP', '1'] and put('t/b', '{}') == ['OK', '2']
    assert put('t/a', '{"x":2}') == ['OK', '3'] and put('', 'x') == put('a b', 'x') == put('a', 'x\ny') == put('a', 'x' * 65537) == ['BADARG']
    r = c('FCALL', 'mr_dir_read', 2, *keys)
    assert r[:2] == [b'OK', b'3'] and hgetall(r[2]) == {'t/a': '{"x":2}', 't/b': '{}'}
    assert c('FCALL', 'mr_dir_put', 2, keys[0], 'mr:{b000}:version', 'a', 'b') == [b'BADARG']


def edges_cluster(rnd):
    s = Server('cluster-enabled yes', 'cluster-port %d' % free_port()).start()
    c, part = s.load(), 200
    c('CLUSTER', 'ADDSLOTSRANGE', 0, 16383)
    while b'cluster_state:ok' not in c('CLUSTER', 'INFO'):
        time.sleep(.05)
    j, accts, both = Journal('%016x' % 0xc1, part), accounts_in(part, 3), Both(c, part)
    both.init()
    both.order(accts[0], 'o', 'add', 'p', 10**6)
    for i in range(300):
        add_random(rnd, j, accts, NOW0 + i)
    both.drain(j)
    assert both.apply(j, [], 7).status == 'OK'                 # a hello alone fences older ones
    assert both.apply(j, [j.add('R', accts[0])], 6).status == 'FENCED' == both.apply(j, [], 6).status
    both.drain(j, 7)
    both.compare(accts, [j])
    both.end()
    s.end()


def edges_locale():
    """The order of packages that only their ids tell apart is the same in each locale that Redis may be started in: by bytes."""
    with tempfile.TemporaryDirectory() as folder:
        make = ['localedef', '--no-archive', '-i', 'en_US', '-f', 'UTF-8', folder + '/en_US.UTF-8']
        if not shutil.which('localedef') or subprocess.run(make, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL).returncode:
            print('skipped: the order in another locale, there is no localedef or no source of en_US')
            return
        s = Server(environment=dict(os.environ, LOCPATH=folder, LC_ALL='en_US.UTF-8')).start()
        c, part = s.load(), 17
        both, account = Both(c, part), accounts_in(part, 1)[0]
        assert c('EVAL', "return tostring('B' < 'a')", 0) == b'false', 'the locale is not in force'
        both.init()
        for i, name in enumerate(('a1', 'a_', 'B', 'a', '-a', 'ab', 'Aa', '9')):
            assert both.order(account, 'o%d' % i, 'add', name, 10) == 'OK'
        both.compare([account], [])
        assert c('HGET', 'mr:{b%03d}:a:%d' % (part, account), 'ord') == b'-a,9,Aa,B,a,a1,a_,ab'
        both.end()
        s.end()


def test_edges(rnd, opt):
    """Each rule once."""
    e = Edges(Server().start(), rnd)
    edges_orders(e)
    edges_refused(e)
    edges_damaged(e)
    edges_energy(e)
    edges_clones(e)
    edges_grants(e)
    edges_times(e)
    edges_redis(e)
    e.both.end()
    e.s.end()
    edges_cluster(rnd)
    edges_locale()
    return dict(checks=e.n, calls_on_both=e.both.calls)


def naive_lua(c):
    """What plain Lua arithmetic on stored amounts would do."""
    c('HSET', 'nx', 'v', str(2**53 + 2))
    got = c('EVAL', "local v=redis.call('HGET',KEYS[1],'v'); redis.call('HSET',KEYS[1],'v',tonumber(v)-1);"
            "return redis.call('HGET',KEYS[1],'v')", 1, 'nx')
    return '2^53+2 - 1 -> %s, right %d' % (got.decode(), 2**53 + 1)


def to_the_edge(both, js, a):
    """A counter below 9.1e18 takes one more record; from there on BADSTATE, unchanged. Redis alone: C has no way to set one."""
    c, j, k = both.c, js[0], akey(both.part, a)
    for v, want in ((91 * 10**17 - 1, 'OK'), (91 * 10**17, 'BADSTATE'), (2**63 - 1, 'BADSTATE')):
        c('HSET', k, 'us', str(v))
        twin = j.clone()
        rec = twin.add('F', a, 0, NOW0, FULL if want == 'OK' else 1, 0, 0, 0)
        before = digest(c)
        got = send(c, j, [rec])
        assert got.status == want, (v, got)
        if want == 'OK':
            assert int(c('HGET', k, 'us')) == v + FULL
            j.recs.append(rec)
        else:
            assert digest(c) == before
    c('DEL', k)
    k = mkey(both.part, a)
    for f in ('en', 'ei', 'eg', 'cl', 'cm', 'ne'):             # energy sums likewise, each of them
        for v, want in ((91 * 10**17, 'BADSTATE'), (91 * 10**17 - 1, 'OK')):
            c('HSET', k, 'c0.' + f, str(v))
            twin = j.clone()
            rec = twin.add('E', a, 0, NOW0, FULL, FULL, FULL, (FULL, FULL))
            before = digest(c)
            assert send(c, j, [rec]).status == want, (f, v)
            assert want == 'OK' or digest(c) == before
        assert int(c('HGET', k, 'c0.' + f)) == v + (1 if f == 'ne' else FULL), f
        j.recs.append(rec)
        c('DEL', k)


def test_numbers(rnd, opt):
    """Doubles: exactness of every balance around 2^53, 2^60, 2^62, by random steps; the limit at 9.1e18; and C's own way there
    by a thousand records of 2^53 - 1."""
    s = Server(aof=None).start()
    c, part = s.load(), 9
    both, accts = Both(c, part), accounts_in(part, 40)
    both.init()
    naive = naive_lua(c)
    js = [Journal('%016x' % (i + 1), part) for i in range(3)]
    for a in accts:
        for i in range(3):
            u = rnd.choice([2**53, 2**60, 46 * 10**17 - 5, 2**53 - 1]) + rnd.randint(-3, 3)
            assert both.order(a, 'o%d' % i, 'add', 'p%d' % i, u, pr=i) == 'OK'
            assert both.order(a, 'i%d' % i, 'inc', 'p%d' % i, rnd.choice([1, 2**53 - 1, 2**53 + 1])) in ('OK', 'LIMIT')
    for step in range(opt.steps):
        j, a = rnd.choice(js), rnd.choice(accts)
        k = rnd.choices('FGRE', [6, 5, 1, 3])[0]
        u = rnd.choice([1, 2, FULL, FULL - 1, rnd.randrange(FULL), 2**52 + 1])
        j.add(k, a, 0, NOW0, u if k in 'FGE' else 0,
              *((1, 2, 3) if k == 'F' else (u, u - 1, (u, rnd.randrange(FULL))) if k == 'E' else (rnd.choice([0, u]), 1000, 0) if k == 'G' else (0, 0, 0)))
        if step % 40 == 39:
            for x in js:
                both.drain(x)
    for x in js:
        both.drain(x)
    both.compare(accts, js)
    a = accts[-1]                                              # 1,011 records of 2^53 - 1 pass 9.1e18: the last is refused
    left = (91 * 10**17 - int(c('HGET', akey(part, a), 'us') or 0)) // FULL + 1
    for _ in range(left + 1):
        js[1].add('F', a, 0, NOW0, FULL, 1, 0, 0)
    while True:
        got = both.apply(js[1], [], 1)
        todo = js[1].recs[got.hwm:got.hwm + 64]
        got = both.apply(js[1], todo)
        if got.status != 'OK':
            break
    assert got.status == 'BADSTATE' and got.hwm == len(js[1].recs) - 1, got
    both.compare(accts, js, complete=False)
    js[1].recs.pop()                                           # energy sums reach the same limit in C: the last is refused
    for _ in range(91 * 10**17 // FULL + 2):
        js[1].add('E', accts[-2], 1, NOW0, FULL, 1, FULL - 1, (FULL, 3))
    while got.hwm < len(js[1].recs):
        got = both.apply(js[1], js[1].recs[got.hwm:got.hwm + 64])
        if got.status != 'OK':
            break
    assert got.status == 'BADSTATE' and got.hwm == len(js[1].recs) - 1, got
    both.compare(accts, js, complete=False)
    to_the_edge(both, js, accts[0])
    both.end()
    s.end()
    return dict(records=sum(len(j.recs) for j in js), naive_lua=naive)
