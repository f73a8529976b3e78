#!/usr/bin/env python3
"""Records a second that ledger.lua applies, over one connection to a redis-server of its own, packed beforehand.

  bench_ledger.py [--rounds N] [--records N] [--json FILE] [--lua FILE ...]

Cells: appendfsync everysec and always; batch 64; 1, 3, 8, 64 packages an account, of which the first pays; 50 accounts; and with
three packages a lease that pays, batches of 16 and 128, 16 partitions pipelined, and an account whose first 61 of 64 packages are
used up (before and after mr_reap). Rounds are interleaved; each figure is best, median and worst of them. --lua compares other
versions of the file in the same rounds. Needs redis-server and Python's standard library."""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time

ROOT = os.path.join(os.path.dirname(os.path.abspath(__file__)), '..')
sys.path.insert(0, os.path.join(ROOT, 'tests', 'ledger'))
from redis_tools import LUA_PATH, Server, end_servers, pack  # noqa: E402
from vectors import Journal, accounts_in, akey, ans, apply_args, init, keys_of, NOW0, order, UUID  # noqa: E402

#        name, packages, leased, batch, partitions, used up, reaped
CELLS = [('1 package', 1, False, 64, 1, 0, False), ('3 packages', 3, False, 64, 1, 0, False),
         ('3 packages, leased', 3, True, 64, 1, 0, False), ('8 packages', 8, False, 64, 1, 0, False),
         ('64 packages', 64, False, 64, 1, 0, False), ('64 packages, 61 used up', 64, False, 64, 1, 61, False),
         ('64 packages, 61 used up, reaped', 64, False, 64, 1, 61, True), ('3 packages, batch 1', 3, False, 1, 1, 0, False),
         ('3 packages, batch 16', 3, False, 16, 1, 0, False), ('3 packages, batch 128', 3, False, 128, 1, 0, False),
         ('3 packages, 16 partitions', 3, False, 64, 16, 0, False)]
ACCOUNTS = 50


def prepare(c, j, accts, packages, leased, used_up, reaped):
    """Accounts with their packages; returns how many records are applied already."""
    for a in accts:
        for i in range(packages):
            order(c, j.part, a, 'o%d' % i, 'add', 'p%03d' % i, 1 if i < used_up else 10**12, pr=i)
        if used_up:
            j.add('F', a, 0, NOW0, used_up, 1, 1, 1)
        if leased:
            j.add('G', a, 0, NOW0, 10**11, 0, 10**7)
    for i in range(0, len(j.recs), 64):
        assert ans(c(*apply_args(j.prod, 1, j.part, j.recs[i:i + 64]))).status == 'OK'
    if reaped:
        for a in accts:
            assert c('FCALL', 'mr_reap', 3, *keys_of(j.part), akey(j.part, a), UUID, 0)[0] == b'OK'
    return len(j.recs)


def measure(lua, mode, cell, records):
    _, packages, leased, batch, partitions, used_up, reaped = cell
    s = Server(aof=mode).start()
    c = s.conn(timeout=60)
    c('FUNCTION', 'LOAD', 'REPLACE', lua)
    calls = []
    for part in range(partitions):
        accts, j, one = accounts_in(part, ACCOUNTS), Journal('%016x' % (part + 1), part), []
        init(c, part)
        done = prepare(c, j, accts, packages, leased, used_up, reaped)
        for i in range(max(records // partitions // batch, 1) * batch):
            j.add('F', accts[i * 7 % ACCOUNTS], 0, NOW0, 1000, 10, 20, 30)
        for i in range(done, len(j.recs), batch):
            one.append(pack(apply_args(j.prod, 1, part, j.recs[i:i + batch])))
        calls.append(one)
    n, start = 0, time.perf_counter()
    for i in range(len(calls[0])):                             # one call a partition in flight
        c.socket.sendall(b''.join(x[i] for x in calls))
        for _ in calls:
            a = c.read()
            assert a[0] == b'OK' and a[3] == b'0', a
            n += batch
    seconds = time.perf_counter() - start
    end_servers()
    return n / seconds


def busy():
    with open('/proc/stat') as f:
        v = list(map(int, f.readline().split()[1:]))
    return v[3] + v[4], sum(v)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('--rounds', type=int, default=5)
    ap.add_argument('--records', type=int, default=6400)
    ap.add_argument('--cells', default='')
    ap.add_argument('--modes', default='everysec,always')
    ap.add_argument('--json')
    ap.add_argument('--lua', nargs='*', default=[LUA_PATH])
    opt = ap.parse_args()
    cells = [x for x in CELLS if not opt.cells or x[0] in opt.cells.split(';')]
    figures, before = {}, busy()
    for _ in range(opt.rounds):
        for mode in opt.modes.split(','):
            for cell in cells:
                for path in opt.lua:
                    with open(path, 'rb') as f:
                        lua = f.read()
                    records = opt.records // 4 if cell[3] == 1 or cell[1] == 64 else opt.records
                    figures.setdefault((mode, cell[0], path), []).append(measure(lua, mode, cell, records))
    after, rows = busy(), []
    for (mode, name, path), v in figures.items():
        rows.append(dict(appendfsync=mode, cell=name, records_s_best=round(max(v)), records_s_median=round(statistics.median(v)),
                         records_s_worst=round(min(v)), **({'lua': path} if len(opt.lua) > 1 else {})))
        print('%-9s %-32s best %6d  median %6d  worst %6d  %s' % (
            mode, name, max(v), statistics.median(v), min(v), path if len(opt.lua) > 1 else ''))
    if opt.json:
        commit = subprocess.run(['git', '-C', ROOT, 'rev-parse', '--short', 'HEAD'], stdout=subprocess.PIPE, text=True).stdout.strip()
        with open('/proc/cpuinfo') as f:
            cpu = next(line.split(':')[1].strip() for line in f if line.startswith('model name'))
        version = subprocess.run(['redis-server', '--version'], stdout=subprocess.PIPE, text=True).stdout.split()[2]
        with open(opt.json, 'w') as f:
            json.dump(dict(date=time.strftime('%Y-%m-%d'), commit=commit, machine='%s, %d processors' % (cpu, os.cpu_count()),
                           redis=version, processors_busy=round(1 - (after[0] - before[0]) / max(after[1] - before[1], 1), 2),
                           command=' '.join(['bench/bench_ledger.py'] + [
                               x for x in sys.argv[1:] if not x.startswith('/')]), rounds=opt.rounds, rows=rows), f, indent=1)
            f.write('\n')
    return 0


if __name__ == '__main__':
    sys.exit(main())
