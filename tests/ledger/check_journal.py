"""reference.py against the C sources: journals of journal_writer, written over several kills, read by both; and books that are
wrong on purpose, in which reference.py must find the mistake."""
import collections
import os
import shutil
import struct
import subprocess
import tempfile

import records
import reference
from vectors import DRIVER

WRITER = os.environ.get('MILLRACE_JOURNAL_WRITER') or os.path.join(os.path.dirname(DRIVER), 'journal_writer')


def write(folder, seed, rounds):
    """Runs journal_writer; what its ledger holds at the end."""
    text = subprocess.run([WRITER, folder, str(seed), str(rounds)], check=True, stdout=subprocess.PIPE, text=True).stdout
    out = collections.defaultdict(dict)
    for line in text.splitlines():
        key, field, value = line.split(' ', 2)
        out[key][field] = value
    return {k: v for k, v in out.items() if k.startswith(('a:', 'm:'))}, {k: v for k, v in out.items() if k.startswith('hwm:')}


def marks_of(books):
    out = collections.defaultdict(dict)
    for (producer, partition), (pseq, chain) in books.chains.items():
        if pseq:
            out['hwm:%03d' % partition]['%016x' % producer] = '%d|%s' % (pseq, chain[:8].hex())
    return out


def without_epoch(marks):
    return {k: {p: v.split('|', 1)[1] for p, v in h.items() if not v.split('|')[1] == '0'} for k, h in marks.items()}


def same_books(folder, fields, marks):
    books = reference.read(folder)
    unfinished = [p for p in books.problems if 'no final yet' in p]
    assert books.problems == unfinished, books.problems[:5]
    mine = books.dump()
    for key in set(mine) | set(fields):
        a, b = mine.get(key, {}), fields.get(key, {})
        assert a == b, (key, {f: (a.get(f), b.get(f)) for f in set(a) | set(b) if a.get(f) != b.get(f)})
    assert without_epoch(marks) == dict(marks_of(books)), 'marks'
    return books


def last_frame(folder, kind):
    """(path, offset, length) of the last frame of a kind in the last segment."""
    s, found = reference.segments_of([folder])[-1], None
    with open(s.path, 'rb') as f:
        data = f.read()
    at = 4096
    while True:
        _, length, lsn, salt, number, *_ = reference.FRAME.unpack_from(data, at)
        if length == 0 or salt != s.salt:
            return found
        if reference.TYPES[number] == kind:
            found = (s.path, at, length)
        at += (length + 7) // 8 * 8


def forge(folder, kind, change):
    """Changes the payload of a frame and gives it a good checksum."""
    path, at, length = last_frame(folder, kind)
    with open(path, 'r+b') as f:
        f.seek(at)
        frame = bytearray(f.read(length))
        payload = bytearray(frame[40:])
        change(payload)
        frame[40:] = payload
        frame[:4] = struct.pack('<I', reference.crc32c(bytes(frame[4:])))
        f.seek(at)
        f.write(frame)


def more_units(raw):
    r = records.decode(bytes(raw))
    at = bytes(raw).index(struct.pack('<Q', r.units), 80) if r.units else len(raw) - 32 - 40 - 16 - 8
    raw[at] ^= 1


MISTAKES = (('FINAL', more_units, 'breaks the chain'), ('FINAL', more_units, 'its counts make'),
            ('GRANT', lambda raw: raw.__setitem__(28, raw[28] ^ 1), 'breaks the chain'),
            ('ENERGY', lambda raw: raw.__setitem__(-32 - 14, raw[-32 - 14] ^ 1), 'breaks the chain'),
            ('ENERGY', lambda raw: raw.__setitem__(28, raw[28] ^ 1), 'has energy and is not there'),
            ('OPEN', lambda raw: raw.__setitem__(4 + 8 + 1 + 16, raw[29] ^ 1), 'was never opened'))


def test_journal(rnd, opt):
    """Balances, months, leases, orders and marks of reference.py and of ledger.c from the same journal, after every kill."""
    total, runs = collections.Counter(), opt.rounds * 3
    folder = tempfile.mkdtemp(prefix='mr-journal-') + '/j'
    try:
        for run in range(runs):
            fields, marks = write(folder, rnd.randrange(10**6), rnd.randrange(50, 400))
            books = same_books(folder, fields, marks)
            total['requests left open by a kill'] += len(books.opens) - len(books.requests)
        fields, marks = write(folder, 1, 0)
        books = same_books(folder, fields, marks)
        assert not books.problems, books.problems
        total.update(runs=runs, frames=books.frames, segments=len(reference.segments_of([folder])), requests=len(books.requests),
                     **{'records ' + k: n for k, n in books.records.items()}, **{'orders ' + k: n for k, n in books.answers.items()})
        for kind, change, want in MISTAKES:
            shutil.rmtree(folder + '.bad', ignore_errors=True)
            shutil.copytree(folder, folder + '.bad')
            if last_frame(folder, kind) is None:
                continue
            forge(folder + '.bad', kind, change)
            found = reference.read(folder + '.bad').problems
            assert any(want in p for p in found), (kind, want, found[:3])
            total['mistakes found'] += 1
    finally:
        shutil.rmtree(os.path.dirname(folder), ignore_errors=True)
    return dict(total)
