"""Faults of Redis under the ledger: memory, refusals and full disks (memory), 500 requests on one nearly empty account
(parallel), racing top-ups (orders), kill -9 with cut and exchanged AOFs (kill), the AOF cut at every kind of place (aofcut).
What is left is compared with the journals, with ledger_rules.py and, played from the log, with ledger.c."""
import collections
import os
import random
import resource
import shutil
import threading
import time

from redis_tools import LUA, VERSION, RedisError, Server
from vectors import *  # noqa: F401,F403


def place_on(c, part):
    return lambda *args: order(c, part, *args)


# ----------------------------------------------------------------------------------------------- memory
def refuse(c, j, acct, word, out):
    """All functions answer with that error and change nothing."""
    before = digest(c)
    for call in (lambda: send(c, j, []), lambda: send(c, j, j.recs[-5:]), lambda: order(c, j.part, acct, 'zz', 'inc', 'p', 5),
                 lambda: reap(c, j.part, acct, 0)):
        try:
            raise AssertionError('%s: answered %s' % (word, call()))
        except RedisError as error:
            assert str(error).startswith(word) and digest(c) == before, error
    assert c('FCALL', 'mr_version', 0) == VERSION                    # which writes nothing, and is answered
    out[word] = out.get(word, 0) + 4


def fresh(s, part, rnd, accts):
    c = s.load()
    init(c, part)
    order(c, part, accts[0], 'o', 'add', 'p', 10**7)
    return c, Journal('%016x' % rnd.getrandbits(64), part)


def until_error(c, j, rnd, accts, errors, each):
    while True:
        for _ in range(each):
            add_random(rnd, j, accts, NOW0)
        try:
            drain(c, j)
        except errors as error:
            return error


def memory_full(rnd, out):
    s, part = Server('maxmemory 6mb').start(), 1
    accts = accounts_in(part, 3)
    c, j = fresh(s, part, rnd, accts)
    hit = until_error(c, j, rnd, accts, RedisError, 64)
    assert str(hit).startswith('OOM'), hit
    used = int(c('INFO', 'memory').decode().split('used_memory:')[1].split()[0])
    c('CONFIG', 'SET', 'maxmemory', used - 300_000)            # client buffers come and go: well below
    refuse(c, j, accts[0], 'OOM', out)
    done = int(c('HGET', keys_of(part)[0], j.prod).split(b'|')[1])
    hwm, A, M, _ = snapshot(c, part, accts, multi=False)       # MULTI is refused too
    invariants([j], hwm, A, M)
    out['OOM at record'] = done
    out['log bytes a record'] = round(c('MEMORY', 'USAGE', keys_of(part)[1], 'SAMPLES', 0) / done)
    log = [fields(e) for e in c('XRANGE', keys_of(part)[1], '-', '+')]
    c('XTRIM', keys_of(part)[1], 'MAXLEN', 0)                  # what an export does
    drain(c, j)
    log += [fields(e) for e in c('XRANGE', keys_of(part)[1], '-', '+')]
    assert [int(f['s']) for f in log if f['k'] in 'FWGRE'] == list(range(1, len(j.recs) + 1))
    hwm, A, M, _ = snapshot(c, part, accts)
    invariants([j], hwm, A, M)
    replica_refusals(s, c, j, rnd, accts, out)
    s.end()


def replica_refusals(s, c, j, rnd, accts, out):
    replica = Server('replicaof 127.0.0.1 %d' % s.port, 'repl-diskless-sync-delay 0').start()
    rc = replica.conn()
    c('CONFIG', 'SET', 'maxmemory', '0')
    for _ in range(20):
        add_random(rnd, j, accts, NOW0)
    drain(c, j)
    while c('WAIT', 1, 100) < 1 or len(rc('KEYS', '*')) < 3:
        time.sleep(.05)
    refuse(rc, j, accts[0], 'READONLY', out)
    c('CONFIG', 'SET', 'min-replicas-to-write', '2')
    refuse(c, j, accts[0], 'NOREPLICAS', out)
    c('CONFIG', 'SET', 'min-replicas-to-write', '1')
    drain(c, j)
    replica.end()


def snapshot_fails(rnd, out):
    """MISCONF by a snapshot that cannot be written: its name is a directory."""
    s, part = Server('save 1 1', 'stop-writes-on-bgsave-error yes').start(), 1
    accts = accounts_in(part, 3)
    os.mkdir(s.dir + '/dump.rdb')
    c, j = fresh(s, part, rnd, accts)
    add_random(rnd, j, accts[:1], NOW0)
    end = time.time() + 30
    while b'rdb_last_bgsave_status:ok' in c('INFO', 'persistence') and time.time() < end:
        time.sleep(.1)
    refuse(c, j, accts[0], 'MISCONF', out)
    c('CONFIG', 'SET', 'save', '')
    os.rmdir(s.dir + '/dump.rdb')
    drain(c, j)
    compare(c, part, accts[:1], [j], with_driver=True)
    s.end()


def disk_full(rnd, mode, out):
    """everysec goes read-only and recovers; always ends the process, and a restart heals."""
    s, part = Server(aof=mode, fsize=200_000).start(), 1
    accts = accounts_in(part, 3)
    c, j = fresh(s, part, rnd, accts)
    why = until_error(c, j, rnd, accts, (RedisError, OSError), 16)
    if mode == 'everysec':
        assert str(why).startswith('MISCONF'), why
        refuse(c, j, accts[0], 'MISCONF', out)
        resource.prlimit(s.process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
        end = time.time() + 30
        while True:                                            # it tries again by itself, once a second
            try:
                drain(c, j)
                break
            except RedisError:
                assert time.time() < end
                time.sleep(.05)
    else:
        assert isinstance(why, OSError), why
        s.process.wait()
        out['always, AOF full'] = 'server exits %d, restart heals' % s.process.returncode
        s.fsize = None
        c = s.start().conn()
    drain(c, j)
    compare(c, part, accts, [j])
    s.kill()
    c = s.start().conn()                                       # and from that file
    drain(c, j)
    compare(c, part, accts, [j], with_driver=True)
    s.end()


def test_memory(rnd, opt):
    """maxmemory, READONLY, NOREPLICAS, MISCONF (RDB and AOF), a full AOF disk."""
    out = {}
    memory_full(rnd, out)
    snapshot_fails(rnd, out)
    for mode in ('everysec', 'always'):
        disk_full(rnd, mode, out)
    return out


# ----------------------------------------------------------------------------------------------- parallel
class Node(threading.Thread):
    """A producer that holds only within its leases: five requests open at a time, each uses at most its hold."""
    def __init__(self, s, j, acct, requests, seed, barrier):
        super().__init__(daemon=True)
        self.s, self.j, self.acct, self.requests, self.rnd, self.barrier = s, j, acct, requests, random.Random(seed), barrier
        self.head = self.total = self.since = self.served = 0
        self.open, self.fail = [], None

    def ask(self, want, least):
        rec = self.j.add('G', self.acct, 0, NOW0, want, least, 120000)
        a = agree(self.j, send(self.c, self.j, self.j.recs[self.head:]))
        self.head, self.total, self.since = len(self.j.recs), a.grants[rec.pseq][0], 0

    def room(self):
        return self.total - self.since - sum(self.open)

    def request(self):
        hold = self.rnd.randrange(100, 900)
        if self.room() < hold:
            self.ask(hold, hold)
        if self.room() >= hold:
            self.open.append(hold)
            self.served += 1
        while len(self.open) > 4 or (self.open and self.rnd.random() < .4):
            used = self.rnd.randrange(0, self.open.pop(0) + 1)
            self.j.add('F', self.acct, 0, NOW0, used, 1, 1, 1)
            self.since += used
            if self.rnd.random() < .5:
                self.ask(0, 0)

    def run(self):
        try:
            self.c = self.s.conn()
            self.barrier.wait()
            for _ in range(self.requests):
                self.request()
            while self.open:
                self.j.add('F', self.acct, 0, NOW0, self.open.pop(), 1, 1, 1)
            self.j.add('R', self.acct, 0, NOW0)
            drain(self.c, self.j)
        except BaseException as error:
            self.fail = error
            raise


def test_parallel(rnd, opt):
    """500 requests against a nearly empty account from 8 producers at once: no overspend, all leases back."""
    s, part, out, journals = Server().start(), 40, collections.Counter(), []
    c, accts = s.load(), accounts_in(40, opt.rounds)
    init(c, part)
    for acct in accts:
        balance = rnd.choice([10_000, 33_333, 7])
        for i, u in enumerate((balance // 2, balance - balance // 2)):
            assert order(c, part, acct, 'o%d' % i, 'add', 'p%d' % i, u, pr=i) == 'OK'
        js, barrier = [Journal('%016x' % rnd.getrandbits(64), part) for _ in range(8)], threading.Barrier(8)
        nodes = [Node(s, j, acct, 500 // 8 + (i < 500 % 8), rnd.random(), barrier) for i, j in enumerate(js)]
        for n in nodes:
            n.start()
        for n in nodes:
            n.join()
            assert not n.fail, n.fail
        h = hgetall(c('HGETALL', akey(part, acct)))
        assert h.get('ov', '0') == '0' and int(h.get('us', 0)) <= balance, h
        assert int(h['p0.rs']) == int(h['p1.rs']) == 0 and int(h['p0.av']) + int(h['p1.av']) + int(h.get('us', 0)) == balance
        journals += js
        out['requests'] += 500
        out['served'] += sum(n.served for n in nodes)
        out['left over'] += balance - int(h.get('us', 0))
    n, _ = compare(c, part, accts, journals, with_driver=True)
    s.end()
    return dict(out, overspend=0, records=n)


# ----------------------------------------------------------------------------------------------- orders
def test_orders(rnd, opt):
    """8 senders race the same 200 top-ups in random order, many times, through resets: each counts once."""
    s, part = Server().start(), 50
    c, acct = s.load(), accounts_in(50, 1)[0]
    init(c, part)
    order(c, part, acct, 'base', 'add', 'p', 0)
    todo = [('t%d' % i, rnd.randrange(1, 10**15)) for i in range(200)]
    cnt, lock = collections.Counter(), threading.Lock()

    def sender(seed):
        r = random.Random(seed)
        for oid, u in r.sample(todo, len(todo)) + r.sample(todo, 50):
            k = s.conn()
            if r.random() < .2:                                # reset with the answer under way: outcome unknown
                k.send('FCALL', 'mr_order', 3, *keys_of(part), akey(part, acct), UUID, oid, 'inc', 'p', u, 5, 0, 0, 0, MASK)
                k.close()
                k = s.conn()
            v = order(k, part, acct, oid, 'inc', 'p', u)
            with lock:
                cnt[v] += 1
            k.close()
    threads = [threading.Thread(target=sender, args=(rnd.random(),)) for _ in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert order(c, part, acct, todo[0][0], 'inc', 'p', todo[0][1] + 1) == 'CONFLICT'
    end = time.time() + 20
    while int(c('HGET', akey(part, acct), 'p.gr')) != sum(u for _, u in todo):  # calls whose sender has gone may be last
        assert time.time() < end
        time.sleep(.02)
    compare(c, part, [acct], [], with_driver=True)
    s.end()
    return dict(cnt, orders=len(todo))


# ----------------------------------------------------------------------------------------------- kill
class Producer(threading.Thread):
    """Writes journals and replays by HWM for ever. Any error: new connection, hello, go on from the answer."""
    def __init__(self, prod, accts, seed, connect, gate):
        super().__init__(daemon=True)
        self.prod, self.accts, self.rnd = prod, accts, random.Random(seed)   # accts: partition -> accounts
        self.connect, self.gate, self.stop, self.fail, self.flush, self.c = connect, gate, False, None, False, None
        self.j = {p: Journal(prod, p) for p in accts}
        self.acked, self.cnt = {p: 0 for p in accts}, collections.Counter()

    def hello(self):
        self.c = self.connect()
        for p, j in self.j.items():
            a = agree(j, send(self.c, j, []))
            self.cnt['acknowledged records sent again'] += max(0, self.acked[p] - a.hwm)
            self.acked[p] = a.hwm

    def unsent(self):
        return any(self.acked[p] < len(j.recs) for p, j in self.j.items())

    def round(self, t):
        if self.c is None:
            self.hello()
        p = self.rnd.choice(list(self.j))
        j = self.j[p]
        if not self.stop and len(j.recs) - self.acked[p] < 2000:
            for _ in range(self.rnd.randrange(1, 12)):
                add_random(self.rnd, j, self.accts[p], t)
        lo = max(0, self.acked[p] - self.rnd.choice([0, 0, 0, 3]))
        a = agree(j, send(self.c, j, j.recs[lo:lo + 128]))
        self.acked[p] = a.hwm
        self.cnt['calls'] += 1
        self.cnt['duplicates'] += a.dup
        time.sleep(self.rnd.random() * .004)

    def run(self):
        t0 = time.time()
        try:
            while not self.stop or (self.flush and self.unsent()):
                self.gate.wait()
                try:
                    self.round(NOW0 + int((time.time() - t0) * 100))
                except RedisError as error:
                    self.cnt[str(error).split(' ')[0]] += 1
                    if 'Function not found' in str(error):
                        self.reload()
                    else:
                        self.drop()
                except OSError:
                    self.cnt['resets'] += 1
                    self.drop()
        except BaseException as error:
            self.fail = error
            raise

    def reload(self):
        try:
            self.c('FUNCTION', 'LOAD', 'REPLACE', LUA)
        except (RedisError, OSError):
            self.drop()

    def drop(self):
        if self.c:
            self.c.close()
        self.c = None
        time.sleep(.01)


def top_up(s, rnd, accts, top, seconds):
    """A top-up now and then, each sent twice, for so long."""
    end = time.time() + seconds
    while time.time() < end:
        part = rnd.choice(list(accts))
        args = (part, rnd.choice(accts[part]), 'top%d' % len(top), 'inc', 'p0', rnd.randrange(1, 9999))
        top.append(args)
        try:
            c = s.conn()
            order(c, *args)
            order(c, *args)
            if rnd.random() < .05:
                c('BGREWRITEAOF')
            c.close()
        except (RedisError, OSError):
            pass
        time.sleep(rnd.random() * .03)


def harm(s, old, rnd, cnt):
    """What a power loss or an operator does between two starts: a third loses a tail, some go back to an old copy. Whether
    acknowledged records may be gone."""
    what = rnd.random()
    if what < .33:
        f = s.growing_aof()
        size = os.path.getsize(f)
        cut = min(size, int(10 ** rnd.uniform(0, 5.3)))
        os.truncate(f, size - cut)
        cnt['AOF tails cut'] += 1
        cnt['AOF bytes cut'] += cut
    elif what < .40 and os.path.isdir(old):
        shutil.rmtree(s.dir + '/appendonlydir')
        shutil.copytree(old, s.dir + '/appendonlydir')
        cnt['old copies restored'] += 1
    if what > .9:
        shutil.rmtree(old, ignore_errors=True)
        shutil.copytree(s.dir + '/appendonlydir', old)
    return what < .40


def audit_all(c, accts, prods, cnt, harmed):
    lost = 0
    for p, of in accts.items():
        hwm, A, M, _ = snapshot(c, p, of)
        cnt['records checked before replay'] += invariants([x.j[p] for x in prods], hwm, A, M)
        lost += sum(max(0, x.acked[p] - hwm.get(x.prod, 0)) for x in prods)
    cnt['acknowledged records lost by cut or old copy' if harmed else 'acknowledged records lost by kill -9 alone'] += lost


def kill_rounds(rnd, mode, kills):
    s, cnt, top = Server(aof=mode).start(), collections.Counter(), []
    accts = {p: accounts_in(p, 6) for p in (10, 11, 12)}
    c, gate, old = s.load(), threading.Event(), s.dir + '.old'
    for p, of in accts.items():
        assert init(c, p) == 'OK'
        packages(rnd, place_on(c, p), of)
    gate.set()
    prods = [Producer('%016x' % rnd.getrandbits(64), accts, rnd.random(), s.conn, gate) for _ in range(4)]
    for x in prods:
        x.start()
    for _ in range(kills):
        top_up(s, rnd, accts, top, rnd.uniform(.05, .35))
        s.kill()
        gate.clear()
        time.sleep(.05)
        harmed = harm(s, old, rnd, cnt)
        c = s.start().conn(timeout=20)
        cnt['restarts'] += 1
        audit_all(c, accts, prods, cnt, harmed)
        c.close()
        gate.set()
        for x in prods:
            assert not x.fail, x.fail
    cnt['AOFs repaired by redis-check-aof'] = s.repaired
    for x in prods:
        x.flush = x.stop = True
    for x in prods:
        x.join(120)
        assert not x.fail and not x.is_alive(), x.fail
        cnt.update(x.cnt)
    c = s.conn(timeout=30)
    for args in top:                                           # the sender repeats until durable
        cnt['top-up ' + order(c, *args)] += 1
    for p, of in accts.items():
        for x in prods:                                        # one that had all acknowledged before the last cut
            drain(c, x.j[p])
        n, o = compare(c, p, of, [x.j[p] for x in prods], with_driver=True)
        cnt['records'] += n
        assert all(args[0] != p or args[2] in o.accounts[args[1]].orders for args in top)
    shutil.rmtree(old, ignore_errors=True)
    s.end()
    return dict(cnt)


def test_kill(rnd, opt):
    """kill -9 of Redis at random points under 4 replaying producers and a sender of top-ups, with random AOF rewrites."""
    return {mode: kill_rounds(rnd, mode, opt.kills // 2) for mode in ('everysec', 'always')}


# ----------------------------------------------------------------------------------------------- aofcut
def start_twice(rnd, truncated, n):
    """Cut, start, replay, start again: with aof-load-truncated yes the half call of the cut comes back. How often wrong."""
    part, bad, s = 31, 0, None
    accts = accounts_in(part, 3)
    for k in range(n):
        if s is None:
            s = Server(aof='always', truncated=truncated).start()
            c, j = s.load(), Journal('%016x' % 0xcd, part)
            init(c, part)
            packages(rnd, place_on(c, part), accts)
        for _ in range(3):
            for _ in range(rnd.randrange(1, 6)):
                add_random(rnd, j, accts, NOW0 + k)
            drain(c, j)
        s.kill()
        f = s.growing_aof()
        os.truncate(f, os.path.getsize(f) - rnd.randrange(1, 600))
        c = s.start().conn()                                   # first start: half a call is left out
        drain(c, j)
        s.kill()
        c = s.start().conn()                                   # second start: is it still?
        try:
            compare(c, part, accts, [j])
        except AssertionError:
            assert truncated, 'damaged although aof-load-truncated is no'
            bad += 1
            s.end()
            s = None
    if s:
        s.end()
    return '%d of %d' % (bad, n)


def cut_everywhere(s, j, accts, ends, data, cuts):
    """Whatever the cut, the state found is that after a whole call; then replay. How many states were seen."""
    f, seen = s.growing_aof(), set()
    for cut in cuts:
        with open(f, 'wb') as out:
            out.write(data[:cut])
        c = s.start().conn()
        hwm, A, M, _ = snapshot(c, j.part, accts)
        assert hwm.get(j.prod, 0) in ends, 'half a call survived'
        seen.add(hwm.get(j.prod, 0))
        invariants([j], hwm, A, M)
        drain(c, j)
        compare(c, j.part, accts, [j])
        s.kill()
    return len(seen)


def flip_digits(rnd, s, j, accts, data, start, flips):
    """A flipped digit, which Redis does not notice (the AOF has no checksum): the comparison does, unless a later call replaced
    the value."""
    f, out = s.growing_aof(), collections.Counter()
    with open(f, 'wb') as file:
        file.write(data)
    ref = digest(s.start().conn())
    s.kill()
    for _ in range(flips):
        d = bytearray(data)
        at = d.find(b'HINCRBY', rnd.randrange(start, len(d) - 3000))
        at = d.find(b'\r\n', at + 20)
        while not (48 <= d[at] <= 57 and d[at - 1] == 10):     # first digit of a bulk text
            at += 1
        d[at] = 49 + (d[at] - 48) % 9 if d[at] != 57 else 49
        with open(f, 'wb') as file:
            file.write(d)
        try:
            c = s.start().conn()
        except AssertionError:
            out['refused by Redis'] += 1
            continue
        try:
            hwm, A, M, _ = snapshot(c, j.part, accts)
            invariants([j], hwm, A, M)
            compare(c, j.part, accts, [j], complete=False)
            assert c('HGET', keys_of(j.part)[0], j.prod).startswith(b'1|')
            out['overwritten later'] += digest(c) == ref
        except (AssertionError, KeyError, ValueError, IndexError):
            out['found'] += 1
        s.kill()
    assert sum(out.values()) == flips, (out, flips)
    return dict(out)


def test_aofcut(rnd, opt):
    """The AOF cut at many bytes of its tail, and digits of it flipped."""
    out = {}
    for truncated, name in ((True, 'yes'), (False, 'no + redis-check-aof --fix')):
        out['cut, start, replay, start: wrong with aof-load-truncated ' + name] = start_twice(rnd, truncated, opt.cuts // 2)
    s, part = Server(aof='always').start(), 30
    c, accts, j, ends = s.load(), accounts_in(part, 3), Journal('%016x' % 0xab, part), {0}
    init(c, part)
    packages(rnd, place_on(c, part), accts)
    for i in range(40):
        for _ in range(rnd.randrange(1, 9)):
            add_random(rnd, j, accts, NOW0 + i)
        ends.add(drain(c, j).hwm)
    s.kill()
    with open(s.growing_aof(), 'rb') as file:
        data = file.read()
    start = data.find(j.prod.encode())
    cuts = sorted(rnd.sample(range(start, len(data)), min(opt.cuts, len(data) - start)))
    out.update(cuts=len(cuts), states=cut_everywhere(s, j, accts, ends, data, cuts))
    out['digits flipped'] = flip_digits(rnd, s, j, accts, data, start, opt.cuts // 3)
    out['AOF bytes a record'] = round((len(data) - start) / len(j.recs))
    s.end()
    return out
