"""`millrace bill rebuild --log`: a ledger in Redis made again from its exported log, every stored field the same; a log of which
any entry is missing or says something else is refused."""
import json
import os
import shutil
import subprocess
import tempfile

from redis_tools import Server
from vectors import *  # noqa: F401,F403

BINARY = os.environ.get('MILLRACE_BINARY') or os.path.join(
    os.path.dirname(os.path.abspath(__file__)), '..', '..', 'build', 'release', 'millrace')
PARTS, PAST = (17, 200), 1_000_000                             # a package that ended in 1970


def bill(server, *words, code=0):
    r = subprocess.run([BINARY, 'bill', *words, '--redis', 'redis://127.0.0.1:%d' % server.port], capture_output=True, text=True,
                       timeout=120)
    assert r.returncode == code, (words, r.returncode, r.stdout, r.stderr)
    return r.stderr


def start():
    s = Server().start()
    return s, s.load()


def traffic(rnd, c, places, js, epoch, steps, tag):
    """Records, orders, changed accounts, short leases and expiries."""
    for step in range(steps):
        j = rnd.choice(js)
        accts = places[j.part]
        for _ in range(rnd.randrange(6)):
            add_random(rnd, j, accts, NOW0 + step)
        if step % 7 == 0:
            j.add('G', rnd.choice(accts), 0, NOW0 + step, 700, 0, 1)
        drain(c, j, epoch)
        if step % 9 == 0:
            a = rnd.choice(accts)
            order(c, j.part, a, '%s.%d' % (tag, step), rnd.choice(['inc', 'inc', 'void']), 'p%d' % rnd.randrange(4), 5000)
            order(c, j.part, a, '%s-gone%d' % (tag, step), 'add', 'g%d' % step, 3, ex=PAST, cr=step)
            account(c, j.part, rnd.choice(accts), '%s:%d' % (tag, step), rnd.choice(['open', 'close']))
        if step % 11 == 0:
            reap(c, j.part, rnd.choice(accts), rnd.choice([0, 0, 10**9]))


def stored(c):
    """Everything but logs and the directory; a counter of 0 is none, but a package has all of its fields."""
    out = {}
    for key in sorted(c('KEYS', 'mr:{b*')):
        if key.endswith(b':log'):
            continue
        h = hgetall(c('HGETALL', key))
        out[key] = {f: v for f, v in h.items() if v not in ('0', '') or ('.' in f and ':' not in f and b':a:' in key)}
    return {key: h for key, h in out.items() if h}


def spoilt(rnd, lines):
    """(what, the lines with one entry gone or changed)."""
    entries = [i for i, line in enumerate(lines) if json.loads(line)['kind'] != 'M']
    funded = [i for i in entries if json.loads(lines[i])['kind'] in 'FG' and json.loads(lines[i])['funding']]
    records = [i for i in entries if json.loads(lines[i])['kind'] in 'FWGRE']
    for i in rnd.sample(records, 12) + [records[-1]]:
        yield 'gone', lines[:i] + lines[i + 1:]
    for i in rnd.sample(funded, 6):
        yield 'funding', lines[:i] + [lines[i].replace('"funding":"', '"funding":"x')] + lines[i + 1:]
    for i in rnd.sample(records, 6):
        at = lines[i].index('"raw":"') + 7 + 2 * rnd.randrange(8, 60)
        flipped = '%02x' % (int(lines[i][at:at + 2], 16) ^ 1 << rnd.randrange(8))
        yield 'bit', lines[:i] + [lines[i][:at] + flipped + lines[i][at + 2:]] + lines[i + 1:]
    used = next(i for i in funded if json.loads(lines[i])['kind'] == 'F')
    package = json.loads(lines[used])['funding'].split(':')[0]
    for i in entries:
        e = json.loads(lines[i])
        if e['kind'] == 'O' and e['account_id'] == json.loads(lines[used])['account_id'] and e['terms'].startswith('add|%s|' % package):
            yield 'order', lines[:i] + lines[i + 1:]
    yield 'cut', lines[:-1] + [lines[-1][:-5]]


def test_rebuild(rnd, opt):
    (first, c), (second, d), (third, e) = start(), start(), start()
    folder, places = tempfile.mkdtemp(prefix='mr-rebuild-'), {}
    try:
        for part in range(256):
            assert init(c, part) == 'OK'
        for part in PARTS:
            places[part] = accounts_in(part, 5)
            packages(rnd, lambda *args, part=part: order(c, part, *args), places[part])
        js = [Journal('%016x' % rnd.getrandbits(64), part) for part in PARTS for _ in range(3)]
        logs = [os.path.join(folder, name) for name in ('one', 'two', 'three')]
        traffic(rnd, c, places, js, 1, 120, 'a')
        bill(first, 'export', '--output', logs[0], '--trim')
        traffic(rnd, c, places, js, 2, 60, 'b')
        bill(first, 'export', '--output', logs[1])             # these stay, so the next one has them again
        for j in js:
            drain(c, j, 7)                                     # a start that writes nothing
        traffic(rnd, c, places, js[:3], 7, 60, 'c')
        bill(first, 'export', '--output', logs[2])
        text = ''.join(open(log).read() for log in logs)
        whole = os.path.join(folder, 'whole')
        with open(whole, 'w') as f:
            f.write(text)

        bill(second, 'rebuild', '--log', logs[1], code=1)
        assert not d('KEYS', 'mr:*')                           # refused: nothing was written
        bill(second, 'rebuild', '--log', whole)
        assert stored(c) == stored(d), {k: difference(stored(c).get(k, {}), stored(d).get(k, {})) for k in stored(c)
                                        if stored(c)[k] != stored(d).get(k)}
        assert 'not empty' in bill(second, 'rebuild', '--log', whole, code=1)
        assert stored(c) == stored(d)

        # cut off on the way: no partition is a ledger that begins at 0, and what is half there is not built upon
        e('ACL', 'SETUSER', 'default', 'resetkeys', '%R~*', '%RW~mr:{b[01]*')
        bill(third, 'rebuild', '--log', whole, code=1)
        e('ACL', 'SETUSER', 'default', 'allkeys')
        assert e('KEYS', 'mr:{b017}:a:*') and not e('KEYS', 'mr:*:hwm'), e('KEYS', '*')
        assert [send(e, j, j.recs[:1]).status for j in js] == ['NOLEDGER'] * len(js)
        assert 'not empty' in bill(third, 'rebuild', '--log', whole, code=1)
        e('FLUSHALL')

        # both go on alike
        for j in js:
            add_random(rnd, j, places[j.part], NOW0 + 5000)
            j.add('F', rnd.choice(places[j.part]), 0, NOW0 + 5001, 900, 5, 0, 5)
            assert send(c, j, j.recs[-2:], 8) == send(d, j, j.recs[-2:], 8)
        kinds = {k: text.count('"kind":"%s"' % k) for k in 'FWGREOSXM'}
        assert all(kinds.values()), kinds
        refused = 0
        lines = open(logs[0]).read().splitlines(keepends=True)
        for what, left in spoilt(rnd, lines):
            path = os.path.join(folder, 'spoilt')
            with open(path, 'w') as f:
                f.writelines(left)
            bill(third, 'rebuild', '--log', path, code=1)
            assert not e('KEYS', 'mr:*'), what
            refused += 1
    finally:
        shutil.rmtree(folder)
    return dict(kinds, refused=refused, fields=sum(map(len, stored(c).values())))
