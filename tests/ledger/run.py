#!/usr/bin/env python3
"""Runs the ledger's vectors: see README.md.

  run.py [--seed N] [--quick] [TEST ...]       without TEST: all; exit 1 on the first failure, 77 without redis-server

Needs redis-server >= 7.0, redis-check-aof and ledger_driver (MILLRACE_LEDGER_DRIVER); Python's standard library."""
import argparse
import os
import random
import shutil
import sys
import time

import check_faults
import check_journal
import check_rebuild
import check_rules
from redis_tools import end_servers
from vectors import DRIVER

TESTS = {name[5:]: f for m in (check_rules, check_faults, check_journal, check_rebuild) for name, f in vars(m).items() if name.startswith('test_')}
QUICK = ('journal', 'edges', 'rebuild', 'happy', 'numbers', 'parallel', 'orders', 'memory', 'kill', 'aofcut')


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('tests', nargs='*')
    ap.add_argument('--seed', type=int, default=1)
    ap.add_argument('--quick', action='store_true', help='what CI has time for')
    ap.add_argument('--steps', type=int)
    ap.add_argument('--kills', type=int)
    ap.add_argument('--cuts', type=int)
    ap.add_argument('--rounds', type=int)
    opt = ap.parse_args()
    for name, quick, full in (('steps', 500, 2500), ('kills', 8, 240), ('cuts', 12, 300), ('rounds', 2, 12)):
        if getattr(opt, name) is None:
            setattr(opt, name, quick if opt.quick else full)
    if not shutil.which('redis-server') or not shutil.which('redis-check-aof'):
        print('skipped: no redis-server, redis-check-aof')
        return 77
    if not os.path.exists(DRIVER):
        print('no ledger_driver at %s: build it, or set MILLRACE_LEDGER_DRIVER' % DRIVER)
        return 1
    for name in opt.tests or QUICK:
        rnd, start = random.Random('%d %s' % (opt.seed, name)), time.time()
        try:
            result = TESTS[name](rnd, opt)
        finally:
            end_servers()
        print('ok %-9s seed %d  %5.1f s' % (name, opt.seed, time.time() - start), flush=True)
        for k, v in result.items():
            print('     %s: %s' % (k, v), flush=True)
    return 0


if __name__ == '__main__':
    sys.exit(main())
