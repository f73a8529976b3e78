"""reference.py against the C sources: journals of journal_writer, written over several kills, read by both; and books that are
wrong on purpose, in which reference.py must find the mistake."""
import collections
import json
import os
import shutil
import struct
import subprocess
import tempfile

import records
import reference
from vectors import DRIVER

BINARY = os.environ.get('MILLRACE_BINARY') or os.path.join(
    os.path.dirname(os.path.abspath(__file__)), '..', '..', 'build', 'release', 'millrace')
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


def bill(*words):
    return subprocess.run([BINARY, 'bill', *words], check=True, stdout=subprocess.PIPE, text=True, timeout=120).stdout


def decimal(millionths):
    return '%d.%06d' % divmod(millionths, 10**6)


def same_energy(folder, books):
    """What `millrace bill` tells of energy: each record, and sums by account, model and month, to the last microjoule."""
    lines = [json.loads(line, parse_float=str) for line in bill('export', folder).splitlines()]
    told = {(e['charge_id'], e['part'], e['lsn']): e for e in lines if e['kind'] == 'E'}
    assert len(told) == len(books.energies) == books.records['E'] > 0
    sums = collections.defaultdict(collections.Counter)
    by_pseq = {(r.partition, r.pseq): r for r in books.energies.values()}
    for e in told.values():
        r = by_pseq[e['partition'], e['pseq']]
        assert (e['charge_id'], e['part'], e['tenant'], e['model'], e['month']) == (r.charge_id.hex(), r.part, r.tenant, r.model, r.month)
        for name, value in (('energy_joules', r.energy_uj), ('prefill_joules', r.uj_prefill), ('decode_joules', r.uj_decode),
                            ('host_joules', r.uj_host), ('idle_share_joules', r.uj_idle_share), ('green_joules', r.green_uj),
                            ('gco2_location', r.ugco2_loc), ('gco2_market', r.ugco2_mkt), ('pue', r.pue_ppm)):
            assert e[name] == decimal(value), (name, e[name], value)
        assert e['deferral_ms'] == r.deferral_ms
        sums[r.account, r.model, r.month].update(energy_records=1, energy_uj=r.energy_uj, idle_share_uj=r.uj_idle_share,
                                                 green_uj=r.green_uj, ugco2_location=r.ugco2_loc, ugco2_market=r.ugco2_mkt)
    rows = json.loads(bill('usage', folder, '--by', 'account,model,month', '--json'), parse_float=str)['data']
    for row in rows:
        want = sums.pop((int(row['account_id'][3:]), row['model'], int(row['month'].replace('-', ''))), collections.Counter())
        names = ('energy_records', 'energy_uj', 'idle_share_uj', 'green_uj', 'ugco2_location', 'ugco2_market')
        assert [row[n] for n in names] == [want[n] for n in names], row
        assert (row['energy_joules'], row['gco2_market']) == (decimal(want['energy_uj']), decimal(want['ugco2_market'])), row
    assert not sums, sums
    assert not any('energy_joules' in row for row in json.loads(bill('usage', folder, '--by', 'cause', '--json'))['data'])
    report = json.loads(bill('audit', folder, '--journal', folder, '--json'), parse_float=str)
    assert report['verdict'] == 'clean' and report['energies'] == len(told), report
    assert report['energy_joules'] == decimal(sum(r.energy_uj for r in books.energies.values())), report


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
        same_energy(folder, books)
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
