"""Billing records as bytes, written from the table in server/billing/record.h and from no code: XXH64 partitions, encoding,
decoding, the hash chain. Standard library only."""
import collections
import hashlib
import struct

PARTITIONS, ZERO_CHAIN = 256, bytes(32)
UNITS_MAX = 2**53 - 1
MASK = 2**64 - 1
PRIMES = (0x9E3779B185EBCA87, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0x85EBCA77C2B2AE63, 0x27D4EB2F165667C5)


def xxh64_of_8(data):
    """XXH64, seed 0, of exactly eight bytes (xxHash specification, algorithm XXH64)."""
    p1, p2, p3, p4, p5 = PRIMES

    def rotate(x, r):
        return (x << r | x >> (64 - r)) & MASK
    acc = (p5 + 8) & MASK
    lane = rotate(int.from_bytes(data, 'little') * p2 & MASK, 31) * p1 & MASK
    acc = (rotate(acc ^ lane, 27) * p1 + p4) & MASK
    acc = (acc ^ acc >> 33) * p2 & MASK
    acc = (acc ^ acc >> 29) * p3 & MASK
    return acc ^ acc >> 32


def partition_of(account):
    return xxh64_of_8(account.to_bytes(8, 'little')) % PARTITIONS


def account_number(name):
    number = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], 'big') & (2**63 - 1)
    return number or 1


HEAD = struct.Struct('<BBHQQq')
COUNTS = ('in_total', 'in_hit', 'out', 'out_reasoning', 'out_trimmed', 'forced', 'choices', 'recomputed', 'spec_draft',
          'spec_rejected')
CHARGE_FIELDS = ('charge_id', 'part', 'request_id', 'idempotency', 'key', 'tenant', 'model', 'price_version', 'weight_in_ppm',
                 'weight_hit_ppm', 'weight_out_ppm')
USAGE_FIELDS = ('cause', 'flags', 'month', 'boot', 'opened_us', 'first_us', 'ended_us', 'duration_us', 'units',
                'h_ids') + COUNTS
CAUSES = ('STOP', 'LENGTH', 'QUOTA_END', 'ACCOUNT_STOP', 'CLIENT_GONE', 'PLATFORM_CANCEL', 'PLATFORM_ERROR', 'NODE_CRASH')


ENERGY_AMOUNTS = ('deferral_ms', 'uj_prefill', 'uj_decode', 'uj_host', 'uj_idle_share', 'green_uj', 'ugco2_loc', 'ugco2_mkt')


class Record:
    """Fields as attributes, `raw` its bytes with the chain, `hash8` the first eight bytes of its chain in hex."""
    def __init__(self, **fields):
        self.__dict__.update(fields)

    @property
    def in_miss(self):
        return self.in_total - self.in_hit

    @property
    def energy_uj(self):
        return self.uj_prefill + self.uj_decode + self.uj_host

    @property
    def hash8(self):
        return self.raw[-32:-24].hex()

    def __repr__(self):
        return 'Record(%s)' % ', '.join('%s=%r' % x for x in self.__dict__.items() if x[0] != 'raw')


def text8(text):
    data = text.encode()
    return bytes([len(data)]) + data


USAGE_DEFAULTS = dict(charge_id=b'c' * 16, part=0, request_id=b'r' * 16, idempotency=bytes(16), key=7, tenant='acme',
                      model='tiny', price_version=1, weight_in_ppm=10**6, weight_hit_ppm=10**5, weight_out_ppm=3 * 10**6,
                      cause=0, flags=0, month=202611, boot=1, opened_us=1, first_us=2, ended_us=3, duration_us=2, units=0,
                      h_ids=b'h' * 16, in_total=0, in_hit=0, out=0, out_reasoning=0, out_trimmed=0, forced=0, choices=1,
                      recomputed=0, spec_draft=0, spec_rejected=0)
ENERGY_DEFAULTS = dict(charge_id=b'c' * 16, part=0, key=7, tenant='acme', model='tiny', month=202611, slot_ms=1_793_000_000_000,
                       pue_ppm=10**6, flags=0, **dict.fromkeys(ENERGY_AMOUNTS, 0))


def encode(previous, kind, mclass, pseq, account, t_ms, **fields):
    """The sealed bytes of a record, `previous` being the chain of the one before it."""
    raw = HEAD.pack(ord(kind), mclass, partition_of(account), pseq, account, t_ms)
    if kind in 'FW':
        f = dict(USAGE_DEFAULTS, **fields)
        raw += f['charge_id'] + struct.pack('<I', f['part']) + f['request_id'] + f['idempotency'] + struct.pack('<Q', f['key'])
        raw += text8(f['tenant']) + text8(f['model'])
        raw += struct.pack('<IQQQ', *(f[n] for n in CHARGE_FIELDS[7:]))
        raw += struct.pack('<BHIIqqqqQ', *(f[n] for n in USAGE_FIELDS[:9])) + f['h_ids']
        raw += struct.pack('<10I', *(f[n] for n in COUNTS))
    elif kind == 'G':
        raw += struct.pack('<QQQ', fields['want'], fields['least'], fields['valid_ms'])
    elif kind == 'E':
        f = dict(ENERGY_DEFAULTS, **fields)
        raw += f['charge_id'] + struct.pack('<IQ', f['part'], f['key']) + text8(f['tenant']) + text8(f['model'])
        raw += struct.pack('<Iq8QIH', f['month'], f['slot_ms'], *(f[n] for n in ENERGY_AMOUNTS), f['pue_ppm'], f['flags'])
    return raw + hashlib.sha256(previous + raw).digest()


class Reader:
    def __init__(self, data, offset=0):
        self.data, self.offset = data, offset

    def take(self, n):
        if self.offset + n > len(self.data):
            raise ValueError('ends in byte %d of %d' % (len(self.data), self.offset + n))
        self.offset += n
        return self.data[self.offset - n:self.offset]

    def unpack(self, form):
        return struct.unpack('<' + form, self.take(struct.calcsize('<' + form)))

    def text8(self):
        return self.take(self.unpack('B')[0]).decode()


def decode_charge(r):
    f = {'charge_id': r.take(16), 'part': r.unpack('I')[0], 'request_id': r.take(16), 'idempotency': r.take(16),
         'key': r.unpack('Q')[0], 'tenant': r.text8(), 'model': r.text8()}
    f.update(zip(CHARGE_FIELDS[7:], r.unpack('IQQQ')))
    return f


def decode(raw):
    r = Reader(raw)
    kind, mclass, partition, pseq, account, t_ms = r.unpack('BBHQQq')
    f = dict(kind=chr(kind), mclass=mclass, partition=partition, pseq=pseq, account=account, t_ms=t_ms)
    if f['kind'] in 'FW':
        f.update(decode_charge(r))
        f.update(zip(USAGE_FIELDS[:9], r.unpack('BHIIqqqqQ')), h_ids=r.take(16))
        f.update(zip(COUNTS, r.unpack('10I')))
    elif f['kind'] == 'G':
        f.update(zip(('want', 'least', 'valid_ms'), r.unpack('QQQ')))
    elif f['kind'] == 'E':
        f.update(charge_id=r.take(16), part=r.unpack('I')[0], key=r.unpack('Q')[0], tenant=r.text8(), model=r.text8())
        f.update(zip(('month', 'slot_ms') + ENERGY_AMOUNTS + ('pue_ppm', 'flags'), r.unpack('Iq8QIH')))
    elif f['kind'] != 'R':
        raise ValueError('kind %d' % kind)
    r.take(32)
    if r.offset != len(raw) or partition != partition_of(account):
        raise ValueError('length or partition')
    return Record(raw=raw, **f)


def sealed(raw, previous):
    return hashlib.sha256(previous + raw[:-32]).digest() == raw[-32:]


Order = collections.namedtuple('Order', 'account id op package units priority effective_ms expires_ms created_ms class_mask')
