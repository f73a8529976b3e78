#!/usr/bin/env python3
"""A second implementation of the journal and the ledger: reads a journal folder and works out every account's balance, every
month's totals and every request's record, sharing no code with the C sources. Standard library only.

  reference.py FOLDER [FALLBACK] [--no-crc] [--json]        exit 1: the books have problems; 2: damage

As a module:
  books = reference.read(folder)               or read(folder, fallback, crc=False): the checksums take most of the time
  books.problems                               what is wrong, as text; empty: nothing
  books.requests[charge_id_hex, part]          records.Record of a charge (cause, units, in_total, out, ...)
  books.ledger.accounts[number].used           units; .overage, .packages[id].av/.rs/.us/.xp/.gr, .state
  books.ledger.months[number, yyyymm, mclass]  counters im ih ou un n, waived wi wo wn, energy en ei eg cl cm ne
  books.energies[charge_id_hex, part, slot_ms] records.Record of what a charge used in a price slot
  books.steps[charge_id_hex, part]             ids that STEP frames have counted
  books.dump()                                 {key: {field: value}}, comparable with ledger_dump
Account numbers of names: records.account_number(name).

The format is that of server/billing/frame.h, record.h and README.md there. A torn tail (bytes behind the last valid frame of
the last segment) is told in books.tail_bytes and is no problem: the next start cuts it."""
import argparse
import collections
import json
import os
import struct
import sys

import records
from ledger_rules import Ledger
from records import Order, Reader

TYPES = ('', 'CHECKPOINT', 'OPEN', 'STEP', 'FINAL', 'GRANT', 'RELEASE', 'ORDER', 'ACCOUNT', 'ACK', 'RECOVER', 'ENERGY')
VERSION_TYPES = {1: 10, 2: 11}                                 # the last of TYPES that a segment of the version may hold
OPS = ('add', 'inc', 'void', 'reap')
HEADER_BYTES, FRAME = 4096, struct.Struct('<IIQIBBHqq')


class Damage(Exception):
    pass


def make_table():
    table = []
    for n in range(256):
        for _ in range(8):
            n = n >> 1 ^ 0x82F63B78 if n & 1 else n >> 1
        table.append(n)
    return table


TABLE = make_table()


def crc32c(data):
    """RFC 3720, appendix B.4: reflected, polynomial 0x1EDC6F41."""
    crc, table = 0xFFFFFFFF, TABLE
    for byte in data:
        crc = table[(crc ^ byte) & 255] ^ crc >> 8
    return crc ^ 0xFFFFFFFF


class Segment:
    def __init__(self, path):
        self.path = path
        with open(path, 'rb') as f:
            head = f.read(HEADER_BYTES)
        if len(head) != HEADER_BYTES or head[:8] != b'MRJRNL1\n' or crc32c(head[:4092]) != struct.unpack('<I', head[4092:])[0]:
            raise Damage('%s: its header is damaged' % path)
        r = Reader(head, 8)
        self.version, self.salt = r.unpack('II')
        if self.version not in VERSION_TYPES:
            raise Damage('%s: version %d is newer than this' % (path, self.version))
        self.uuid = r.take(36).rstrip(b'\0').decode()
        (self.flags,) = r.unpack('I')
        self.producer, self.epoch, self.base_lsn, self.serial, self.bytes, self.created_us = r.unpack('QQQQQq')
        self.end_lsn = None                                    # frames from here on are void: a later segment has them

    def frames(self, crc):
        """(lsn, type, wall_us, mono_us, payload) up to the first that is not valid; then .tail_bytes is what stands behind."""
        with open(self.path, 'rb') as f:
            data = f.read()
        at = HEADER_BYTES
        while at + FRAME.size <= len(data):
            checksum, length, lsn, salt, kind, version, _, wall_us, mono_us = FRAME.unpack_from(data, at)
            end = at + (length + 7) // 8 * 8
            if (length < FRAME.size or end > len(data) or salt != self.salt or version != self.version
                    or not 0 < kind <= VERSION_TYPES[version]
                    or any(data[at + length:end]) or (crc and crc32c(data[at + 4:at + length]) != checksum)):
                break
            if self.end_lsn is not None and lsn >= self.end_lsn:
                break
            yield lsn, TYPES[kind], wall_us, mono_us, data[at + FRAME.size:at + length]
            at = end
        self.tail_bytes = len(data[at:].rstrip(b'\0'))


def segments_of(folders):
    """By base LSN; those that a later one with their base made void are left out."""
    found = []
    for folder in folders:
        for name in os.listdir(folder) if os.path.isdir(folder) else ():
            if len(name) == 20 and name.endswith('.mrj'):
                found.append(Segment(os.path.join(folder, name)))
    kept = []
    for s in sorted(found, key=lambda s: s.serial, reverse=True):
        if not kept or s.base_lsn < kept[-1].base_lsn:
            s.end_lsn = kept[-1].base_lsn if kept else None
            kept.append(s)
    return kept[::-1]


class Books:
    def __init__(self):
        self.ledger, self.problems, self.requests, self.energies = Ledger(), [], {}, {}
        self.steps, self.opens = collections.Counter(), {}     # (charge id, part) -> ids; -> open frame
        self.handles, self.chains = {}, {}                     # handle -> (charge id, part); (producer, partition) -> chain
        self.records = collections.Counter()                   # by kind
        self.answers = collections.Counter()                   # of orders
        self.frames = self.tail_bytes = self.last_lsn = 0
        self.uuid = self.producer = self.epoch = None

    def problem(self, lsn, text):
        self.problems.append('LSN %d: %s' % (lsn, text))

    # ------------------------------------------------------------------------------------------- frames
    def frame(self, segment, lsn, kind, payload):
        self.frames += 1
        if kind == 'CHECKPOINT':
            self.checkpoint(segment, lsn, Reader(payload))
            return
        if lsn != self.last_lsn + 1 and self.last_lsn:
            self.problem(lsn, 'follows LSN %d' % self.last_lsn)
        self.last_lsn = lsn
        if segment.uuid != self.uuid and kind not in ('OPEN', 'STEP'):
            return                                             # before an adopt, for another ledger
        if kind in ('FINAL', 'GRANT', 'RELEASE', 'ENERGY'):
            self.record(segment, lsn, kind, payload)
        elif kind in ('OPEN', 'STEP', 'ORDER', 'ACCOUNT'):
            getattr(self, kind.lower())(lsn, Reader(payload))

    def checkpoint(self, segment, lsn, r):
        """The journal's own idea of where each partition stands: must be ours. An oldest segment tells where to begin."""
        r.unpack('Q')
        for _ in range(r.unpack('H')[0]):
            partition, pseq = r.unpack('HQ')
            chain, key = r.take(32), (segment.producer, partition)
            if key not in self.chains:
                if self.last_lsn and pseq:
                    self.problem(lsn, 'the checkpoint knows records of partition %d that are not here' % partition)
                self.chains[key] = (pseq, chain)
            elif self.chains[key] != (pseq, chain):
                self.problem(lsn, 'the checkpoint has partition %d at record %d, its records end at %d' % (
                    partition, pseq, self.chains[key][0]))
        for _ in range(r.unpack('H')[0]):
            r.take(18)
        for _ in range(r.unpack('I')[0]):
            handle, charge = self.open_payload(r)
            r.unpack('Qqqq')
            self.handles.setdefault(handle, charge)
        if not self.last_lsn:
            self.last_lsn = lsn

    def open_payload(self, r):
        handle, account, mclass = r.unpack('IQB')
        charge = records.decode_charge(r)
        charge.update(zip(('in_total', 'in_hit', 'choices', 'opened_us', 'opened_ns'), r.unpack('IIIqQ')),
                      account=account, mclass=mclass)
        key = charge['charge_id'].hex(), charge['part']
        self.opens.setdefault(key, charge)
        return handle, key

    def open(self, lsn, r):
        before = len(self.opens)
        handle, key = self.open_payload(r)
        if len(self.opens) == before:
            self.problem(lsn, 'charge %s.%d is opened twice' % key)
        self.handles[handle] = key

    def step(self, lsn, r):
        while r.offset < len(r.data):
            handle, ids = varint(r), varint(r)
            if handle in self.handles:
                self.steps[self.handles[handle]] += ids
            else:
                self.problem(lsn, 'a step of handle %d, which is not open' % handle)

    def record(self, segment, lsn, kind, raw):
        r = records.decode(raw)
        key = segment.producer, r.partition
        pseq, chain = self.chains.get(key, (0, records.ZERO_CHAIN))
        if r.pseq != pseq + 1:
            self.problem(lsn, 'record %d of partition %d follows %d' % (r.pseq, r.partition, pseq))
        if not records.sealed(raw, chain):
            self.problem(lsn, 'record %d of partition %d breaks the chain' % (r.pseq, r.partition))
        if {'F': 'FINAL', 'W': 'FINAL', 'G': 'GRANT', 'R': 'RELEASE', 'E': 'ENERGY'}[r.kind] != kind:
            self.problem(lsn, 'a %s with a record of kind %s' % (kind, r.kind))
        self.chains[key] = r.pseq, raw[-32:]
        self.records[r.kind] += 1
        if r.kind in 'FW':
            self.final(lsn, r)
        if r.kind == 'E':
            self.energy(lsn, r)
        self.ledger.record('%016x' % segment.producer, r, r.t_ms + r.valid_ms if r.kind == 'G' else 0)

    def final(self, lsn, r):
        key = r.charge_id.hex(), r.part
        if key in self.requests:
            self.problem(lsn, 'charge %s.%d has two finals' % key)
        self.requests[key] = r
        opened = self.opens.get(key)
        if opened is None:
            self.problem(lsn, 'charge %s.%d was never opened' % key)
        else:
            for name in ('in_total', 'in_hit', 'account', 'mclass', 'tenant', 'model', 'key', 'price_version', 'weight_in_ppm',
                         'weight_hit_ppm', 'weight_out_ppm'):
                if opened[name] != getattr(r, name):
                    self.problem(lsn, 'charge %s.%d: %s is %r, opened with %r' % (*key, name, getattr(r, name), opened[name]))
        units = r.in_miss * r.weight_in_ppm + r.in_hit * r.weight_hit_ppm + r.out * r.weight_out_ppm
        if r.units != (units if r.kind == 'F' else 0):
            self.problem(lsn, 'charge %s.%d: %d units, its counts make %d' % (*key, r.units, units))

    def energy(self, lsn, r):
        key = r.charge_id.hex(), r.part, r.slot_ms
        if key in self.energies:
            self.problem(lsn, 'charge %s.%d has energy of slot %d twice' % key)
        self.energies[key] = r

    def order(self, lsn, r):
        order_id, (account, op), package = r.text8(), r.unpack('QB'), r.text8()
        units, priority, effective, expires, created, mask = r.unpack('6Q')
        if OPS[op] == 'reap':
            answer = self.ledger.reap(account, units, created)[0]
        else:
            answer = self.ledger.order(
                Order(account, order_id, OPS[op], package, units, priority, effective, expires, created, mask), created)
        self.answers[answer] += 1

    def account(self, lsn, r):
        account, opens = r.unpack('QB')
        self.answers[self.ledger.account_set(account, r.text8(), 'open' if opens else 'close')] += 1

    # ------------------------------------------------------------------------------------------- at the end
    def finish(self):
        for key in self.opens.keys() - self.requests.keys():
            self.problem(self.last_lsn, 'charge %s.%d has no final yet' % key)
        for key, r in self.requests.items():
            if r.out > self.steps[key] and key in self.opens:
                self.problem(self.last_lsn, 'charge %s.%d: %d out, its steps count %d' % (*key, r.out, self.steps[key]))
        for (charge_id, part, slot_ms), r in self.energies.items():  # a charge without energy is none: a crash came first
            opened = self.opens.get((charge_id, part))
            if opened is None or opened['account'] != r.account:
                self.problem(self.last_lsn, 'charge %s.%d has energy and is %s' % (
                    charge_id, part, 'not there' if opened is None else "another account's"))
        try:
            self.ledger.check()
        except AssertionError as error:
            self.problem(self.last_lsn, 'an invariant of the ledger: %s' % error)

    def dump(self):
        out = collections.defaultdict(dict)
        for number in self.ledger.accounts:
            out['a:%d' % number] = self.ledger.account_fields(number)
        for (number, month, mclass), n in self.ledger.months.items():
            out['m:%06d:%d' % (month, number)].update({'c%d.%s' % (mclass, f): str(v) for f, v in n.items() if v})
        return {k: v for k, v in out.items() if v}


def varint(r):
    value = shift = 0
    while True:
        (byte,) = r.unpack('B')
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value


def read(folder, fallback=None, crc=True):
    """The books of a journal that begins with its first frame (with segments already retired, balances begin at 0)."""
    books, all_segments = Books(), segments_of([folder] + ([fallback] if fallback else []))
    if not all_segments:
        raise Damage('%s: no segment' % folder)
    books.uuid, books.producer, books.epoch = all_segments[-1].uuid, all_segments[-1].producer, all_segments[-1].epoch
    for segment in all_segments:
        for lsn, kind, _, _, payload in segment.frames(crc):
            try:
                books.frame(segment, lsn, kind, payload)
            except ValueError as error:
                books.problem(lsn, '%s: %s' % (kind, error))
        if segment.end_lsn is not None and books.last_lsn + 1 != segment.end_lsn:
            books.problem(books.last_lsn, '%s ends here, the next segment begins at %d' % (segment.path, segment.end_lsn))
        if segment is all_segments[-1]:
            books.tail_bytes = segment.tail_bytes
    books.finish()
    return books


def tables(books):
    accounts = {}
    for number, a in sorted(books.ledger.accounts.items()):
        accounts[str(number)] = dict(
            state=a.state, used=a.used, overage=a.overage,
            packages={i: dict(granted=p.gr, free=p.av, leased=p.rs, used=p.us, expired=p.xp) for i, p in a.packages.items()})
    months = [dict(account=a, month=m, model_class=c, **n) for (a, m, c), n in sorted(books.ledger.months.items())]
    return dict(uuid=books.uuid, producer='%016x' % books.producer, epoch=books.epoch, frames=books.frames,
                last_lsn=books.last_lsn, tail_bytes=books.tail_bytes, records=dict(books.records), orders=dict(books.answers),
                requests=len(books.requests), accounts=accounts, months=months, problems=books.problems)


def main():
    ap = argparse.ArgumentParser()
    ap.add_argument('folder')
    ap.add_argument('fallback', nargs='?')
    ap.add_argument('--no-crc', action='store_true')
    ap.add_argument('--json', action='store_true')
    opt = ap.parse_args()
    try:
        books = read(opt.folder, opt.fallback, not opt.no_crc)
    except Damage as error:
        print(error, file=sys.stderr)
        return 2
    t = tables(books)
    if opt.json:
        print(json.dumps(t, indent=1))
        return 1 if books.problems else 0
    print('%d frames to LSN %d, %d requests, records %s, orders %s, epoch %d, tail %d bytes' % (
        t['frames'], t['last_lsn'], t['requests'], t['records'], t['orders'], t['epoch'], t['tail_bytes']))
    for number, a in t['accounts'].items():
        print('account %s %s used %d overage %d' % (number, a['state'] or '-', a['used'], a['overage']))
        for i, p in a['packages'].items():
            print('  package %s' % i, ' '.join('%s %d' % x for x in p.items()))
    for m in t['months']:
        print('month', ' '.join('%s %s' % x for x in m.items()))
    for p in books.problems:
        print('PROBLEM', p)
    return 1 if books.problems else 0


if __name__ == '__main__':
    sys.exit(main())
