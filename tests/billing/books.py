"""The two sides of the books in Python integers: journals read from their files, and ledgers as {(key, field): value}.

The reader knows the format from server/billing/README.md and frame.h alone. It checks what needs no key: segments in order, LSNs without
gaps, one OPEN and one FINAL a charge (J2), pseq without gaps and the hash chain of every partition. CRCs are left to `millrace bill audit`."""
import collections
import hashlib
import os
import struct
import subprocess
import time

import oracle
from harness import PRICES
from oracle import CAUSES, CHARGED_CAUSES

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
CHECKPOINT, OPEN, STEP, FINAL, GRANT, RELEASE, ORDER, ACCOUNT, ACK, RECOVER, ENERGY = range(1, 12)
SEGMENT = struct.Struct("<8sII36sIQQQQQq16s")
FRAME = struct.Struct("<IIQIBBHqq")
HEAD = struct.Struct("<BBHQQq")
MIDDLE = struct.Struct("<IQQQBHIIqqqqQ16s10I")
AMOUNTS = struct.Struct("<Iq8QIH")  # month, slot, deferral and seven amounts, PUE, flags
PARTITIONS = 256


class Record:
    """A final, with what its frames told before."""

    __slots__ = ("kind", "mclass", "partition", "pseq", "account", "t_ms", "charge_id", "part", "request_id", "idempotency", "key", "tenant", "model",
                 "weights", "cause", "flags", "month", "boot", "units", "in_total", "in_hit", "out", "choices", "h_ids", "steps", "place", "step_places")


class Energy:
    """What a charge used in a price slot: microjoules, micrograms."""

    __slots__ = ("kind", "mclass", "partition", "pseq", "account", "t_ms", "charge_id", "part", "key", "tenant", "model", "month", "slot_ms",
                 "energy_uj", "idle_uj", "green_uj", "ugco2_loc", "ugco2_mkt", "flags")


class Broken(Exception):
    pass


def text8(data, at):
    end = at + 1 + data[at]
    return data[at + 1:end].decode(), end


def read_charge(data, at):
    """(charge_id, part, request_id, idempotency, key, tenant, model), and where it ends in front of the price's version."""
    charge_id, part = data[at:at + 16].hex(), struct.unpack_from("<I", data, at + 16)[0]
    request_id, idempotency = bytes(data[at + 20:at + 36]), bytes(data[at + 36:at + 52])
    key = struct.unpack_from("<Q", data, at + 52)[0]
    tenant, at = text8(data, at + 60)
    model, at = text8(data, at)
    return (charge_id, part, request_id, idempotency, key, tenant, model), at


def read_final(data):
    record = Record()
    kind, record.mclass, record.partition, record.pseq, record.account, record.t_ms = HEAD.unpack_from(data)
    record.kind = chr(kind)
    if record.kind not in "FW":
        return record
    (record.charge_id, record.part, record.request_id, record.idempotency, record.key, record.tenant, record.model), at = read_charge(data, HEAD.size)
    fields = MIDDLE.unpack_from(data, at)
    if at + MIDDLE.size + 32 != len(data):
        raise Broken(f"a record of {len(data)} bytes")
    record.weights, record.cause = fields[1:4], CAUSES[fields[4]]
    record.flags, record.month, record.boot, record.units = fields[5], fields[6], fields[7], fields[12]
    record.h_ids, record.in_total, record.in_hit, record.out = fields[13].hex(), *fields[14:17]
    record.choices = fields[20]
    return record


def read_energy(data):
    energy = Energy()
    kind, energy.mclass, energy.partition, energy.pseq, energy.account, energy.t_ms = HEAD.unpack_from(data)
    energy.kind = chr(kind)
    energy.charge_id = data[HEAD.size:HEAD.size + 16].hex()
    energy.part, energy.key = struct.unpack_from("<IQ", data, HEAD.size + 16)
    energy.tenant, at = text8(data, HEAD.size + 28)
    energy.model, at = text8(data, at)
    fields = AMOUNTS.unpack_from(data, at)
    if energy.kind != "E" or at + AMOUNTS.size + 32 != len(data):
        raise Broken(f"an ENERGY of kind {energy.kind} and {len(data)} bytes")
    energy.month, energy.slot_ms, energy.energy_uj, energy.flags = fields[0], fields[1], sum(fields[3:6]), fields[11]
    energy.idle_uj, energy.green_uj, energy.ugco2_loc, energy.ugco2_mkt = fields[6:10]
    return energy


def varints(data):
    values, value, shift = [], 0, 0
    for byte in data:
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            values.append(value)
            value = shift = 0
    return values


class Journal:
    """One folder at rest. records() reads it once; after that faults, opens, marks and counts are there."""

    def __init__(self, folder, places=False):
        self.folder, self.places = folder, places # places: keep where each STEP stands
        self.faults, self.opens, self.finals, self.epochs = [], 0, 0, set()
        self.marks = {}   # partition -> (pseq, hash8)
        self.orders = []  # raw ORDER and ACCOUNT frames
        self.energies = []
        self.kinds = collections.Counter()

    def segments(self):
        found = []
        for name in os.listdir(self.folder):
            if not name.endswith(".mrj"):
                continue
            with open(os.path.join(self.folder, name), "rb") as file:
                head = SEGMENT.unpack_from(file.read(SEGMENT.size))
            if head[0] == b"MRJRNL1\n":
                found.append({"name": name, "version": head[1], "salt": head[2], "uuid": head[3].decode(), "producer": head[5], "epoch": head[6], "base": head[7],
                              "serial": head[8]})
        found.sort(key=lambda s: (s["base"], s["serial"]))
        return found

    def frames(self):
        segments, lsn = self.segments(), None
        for i, segment in enumerate(segments):
            self.epochs.add(segment["epoch"])
            self.producer, self.uuid = segment["producer"], segment["uuid"]
            limit = segments[i + 1]["base"] if i + 1 < len(segments) else None
            with open(os.path.join(self.folder, segment["name"]), "rb") as file:
                data = file.read()
            if lsn is not None and lsn + 1 != segment["base"]:
                self.faults.append(f"{self.folder}/{segment['name']}: base {segment['base']} after LSN {lsn}")
            at = 4096
            while at + FRAME.size <= len(data):
                _, length, frame_lsn, salt, kind, version, _, wall_us, _ = FRAME.unpack_from(data, at)
                if length < FRAME.size or salt != segment["salt"] or (limit and frame_lsn >= limit and kind != CHECKPOINT):
                    break
                if version != segment["version"] or (kind == ENERGY and version != 2):
                    self.faults.append(f"{self.folder}/{segment['name']}: a frame {kind} of version {version} in a segment of {segment['version']}")
                if kind != CHECKPOINT:
                    if lsn is not None and frame_lsn != lsn + 1:
                        self.faults.append(f"{self.folder}/{segment['name']}: LSN {frame_lsn} after {lsn}")
                    lsn = frame_lsn
                yield kind, data[at + FRAME.size:at + length], (segment["name"], at, length)
                at += length + 7 & ~7

    def records(self):
        """Finals of charges in order. Grants and releases are checked and counted."""
        chains, handles, by_charge, closed = {}, {}, {}, set()
        for kind, data, place in self.frames():
            self.kinds[kind] += 1
            if kind == OPEN:
                handle, account = struct.unpack_from("<IQ", data)
                charge = read_charge(data, 13)[0][:2]
                if charge in by_charge or charge in closed:
                    self.faults.append(f"{charge[0]} part {charge[1]}: two OPENs")
                handles[handle] = by_charge[charge] = ([], [] if self.places else None)
                self.opens += 1
            elif kind == STEP:
                values, told = varints(data), collections.Counter()
                for handle, ids in zip(values[::2], values[1::2]):
                    told[handle] += ids
                for handle, ids in told.items():
                    entry = handles.get(handle)
                    if entry is None:
                        self.faults.append(f"{place}: a STEP of handle {handle} without an OPEN")
                        continue
                    entry[0].append(ids)
                    if self.places:
                        entry[1].append(place)
            elif kind in (FINAL, GRANT, RELEASE):
                record = read_final(data)
                self.check_chain(record, data, chains)
                if kind != FINAL:
                    continue
                charge = record.charge_id, record.part
                entry = by_charge.pop(charge, None)
                if entry is None:
                    self.faults.append(f"{charge[0]} part {charge[1]}: a FINAL without an OPEN, or a second one")
                    entry = ([], [])
                closed.add(charge)
                self.finals += 1
                record.steps, record.step_places = entry
                record.place = place
                self.check_counts(record)
                yield record
            elif kind == ENERGY:
                self.energies.append(read_energy(data))
                self.check_chain(self.energies[-1], data, chains)
            elif kind in (ORDER, ACCOUNT):
                self.orders.append((kind, data))
        for charge in by_charge:
            self.faults.append(f"{charge[0]} part {charge[1]}: an OPEN without a FINAL")
        self.marks = {partition: (pseq, chain[:8].hex()) for partition, (pseq, chain) in chains.items()}

    def check_chain(self, record, data, chains):
        pseq, chain = chains.get(record.partition, (0, bytes(32)))
        if record.pseq != pseq + 1:
            self.faults.append(f"partition {record.partition}: pseq {record.pseq} after {pseq}")
        if hashlib.sha256(chain + data[:-32]).digest() != data[-32:]:
            self.faults.append(f"partition {record.partition} pseq {record.pseq}: the chain is broken")
        chains[record.partition] = record.pseq, data[-32:]

    def check_counts(self, record):
        ahead = sum(record.steps) - record.out # STEPs count the id that the device computes next: one a choice that still runs
        if not 0 <= ahead <= (0 if record.cause == "node_crash" else record.choices):
            self.faults.append(f"{record.charge_id} part {record.part}: STEPs tell {sum(record.steps)} ids, the final {record.out} ({record.cause})")
        if record.flags & 1:
            self.faults.append(f"{record.charge_id} part {record.part}: flagged as a mismatch of the counts")
        if (record.kind == "F") != (record.cause in CHARGED_CAUSES):
            self.faults.append(f"{record.charge_id} part {record.part}: {record.cause} is {record.kind}")
        weight_in, weight_hit, weight_out = record.weights
        units = (record.in_total - record.in_hit) * weight_in + record.in_hit * weight_hit + record.out * weight_out
        if record.units != (units if record.kind == "F" else 0):
            self.faults.append(f"{record.charge_id} part {record.part}: {record.units} units instead of {units}")


# ---- ledgers ----

def init_ledger(redis, uuid="6f1d2c3b-0000-4000-8000-00000000beef"):
    """A new ledger in every partition of Redis, by the Functions themselves."""
    with open(os.path.join(ROOT, "server", "billing", "ledger.lua"), "rb") as file:
        lua = file.read()
    with redis.connect() as c:
        c("FUNCTION", "LOAD", "REPLACE", lua)
        for partition in range(PARTITIONS):
            answer = c("FCALL", "mr_init", 2, f"mr:{{b{partition:03d}}}:hwm", f"mr:{{b{partition:03d}}}:log", uuid)
            assert answer[0] in (b"OK", b"DUP"), answer


def marks_of(c):
    """{(partition, producer): pseq} as Redis has them."""
    replies = c.many([("HGETALL", f"mr:{{b{partition:03d}}}:hwm") for partition in range(PARTITIONS)])
    return {(partition, flat[i]): int(flat[i + 1].split(b"|")[1]) for partition, flat in enumerate(replies) for i in range(0, len(flat), 2)
            if b"|" in flat[i + 1]}


def dump_redis(c):
    """{(key without its prefix, field): text} of all accounts, months and marks; and every (producer, pseq) of the logs once."""
    dump, cursor, keys = {}, b"0", set()
    while True:
        cursor, some = c("SCAN", cursor, "MATCH", "mr:{b*", "COUNT", 1000)
        keys.update(key.decode() for key in some)
        if cursor == b"0":
            break
    logged = collections.Counter()
    for key in sorted(keys):
        short = key.split(":", 2)[2]
        if short == "log":
            last = "-"
            while True:
                entries = c("XRANGE", key, last, "+", "COUNT", 5000)
                for _, fields in entries:
                    entry = {fields[i]: fields[i + 1] for i in range(0, len(fields), 2)}
                    if entry[b"k"] in (b"F", b"W", b"G", b"R", b"E"):
                        logged[key, entry[b"p"], entry[b"s"]] += 1
                if len(entries) < 5000:
                    break
                last = "(" + entries[-1][0].decode()
        else:
            name = f"hwm:{int(key[5:8]):03d}" if short == "hwm" else short
            for field, value in c.hash(key).items():
                dump[name, field] = value
    return dump, logged


def dump_folder(binary, folder):
    done = subprocess.run([binary, folder], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert done.returncode == 0, f"{folder}: {done.stderr}"
    dump = {}
    for line in done.stdout.splitlines():
        key, field, value = line.split(" ", 2)
        dump[key, field] = value
    return dump, None


def expected_sums(records, energies=()):
    """What a ledger must hold of these records: {(key, field): number}."""
    sums = collections.Counter()
    for r in records:
        month, c = f"m:{r.month:06d}:{r.account}", f"c{r.mclass}"
        if r.kind == "F":
            sums[f"a:{r.account}", "us"] += r.units
            for field, value in ((".im", r.in_total - r.in_hit), (".ih", r.in_hit), (".ou", r.out), (".un", r.units), (".n", 1)):
                sums[month, c + field] += value
        else:
            for field, value in ((".wi", r.in_total), (".wo", r.out), (".wn", 1)):
                sums[month, c + field] += value
    for e in energies:
        month, c = f"m:{e.month:06d}:{e.account}", f"c{e.mclass}"
        for field, value in ((".en", e.energy_uj), (".ei", e.idle_uj), (".eg", e.green_uj), (".cl", e.ugco2_loc), (".cm", e.ugco2_mkt), (".ne", 1)):
            sums[month, c + field] += value
    return sums


def compare_ledger(dumps, journals, records, units):
    """Faults in words. dumps: of one shared ledger, or of one ledger a journal. units: (account, month) -> what the clients' lines add up to."""
    faults, got = [], collections.Counter()
    for dump, logged in dumps:
        faults += check_invariants(dump)
        for (key, field), value in dump.items():
            if (key.startswith("a:") and field == "us") or key.startswith("m:"):
                got[key, field] += int(value)
        if logged is not None:
            faults += [f"the log has {name} {n} times" for name, n in logged.items() if n != 1][:5]
            written = sum(sum(pseq for pseq, _ in journal.marks.values()) for journal in journals)
            if len(logged) != written:
                faults.append(f"the log has {len(logged)} records, the journals {written}")
    expected = expected_sums(records, [energy for journal in journals for energy in journal.energies])
    for name in sorted(set(expected) | set(got)):
        if expected[name] != got[name]:
            faults.append(f"{name[0]} {name[1]}: the ledger says {got[name]}, the journals {expected[name]}")
    by_account = collections.Counter()
    for (account, _), n in units.items():
        by_account[f"a:{account}", "us"] += n
    for name in set(by_account) | {name for name in got if name[1] == "us"}:
        if by_account[name] != got[name]:
            faults.append(f"{name[0]}: the ledger says {got[name]} units, the clients {by_account[name]}")
    for i, journal in enumerate(journals):
        faults += check_marks(dumps[i if len(dumps) > 1 else 0][0], journal)
    return faults


def check_marks(dump, journal):
    """The ledger has seen exactly this journal's last record of every partition."""
    faults = []
    for partition, (pseq, hash8) in journal.marks.items():
        found = dump.get((f"hwm:{partition:03d}", f"{journal.producer:016x}"), "")
        if found.split("|")[1:] != [str(pseq), hash8]:
            faults.append(f"{journal.folder}: partition {partition} ends at {pseq} {hash8}, the ledger says {found!r}")
    return faults


def check_invariants(dump):
    faults, accounts = [], collections.defaultdict(dict)
    for (key, field), value in dump.items():
        if key.startswith("a:"):
            accounts[key][field] = value
    for account, fields in accounts.items():
        def number(field):
            return int(fields.get(field, 0))
        packages = {field[:-3] for field in fields if field.endswith(".gr")}
        for package in packages:
            parts = [number(package + end) for end in (".av", ".rs", ".us", ".xp")]
            if sum(parts) != number(package + ".gr") or min(parts) < 0:
                faults.append(f"{account} {package}: granted {number(package + '.gr')}, parts {parts}")
            leases = sum(int(v) for f, v in fields.items() if f.startswith("L:") and f.endswith(":" + package))
            if leases != number(package + ".rs"):
                faults.append(f"{account} {package}: leased {number(package + '.rs')}, leases {leases}")
        if number("us") != number("ov") + sum(number(package + ".us") for package in packages):
            faults.append(f"{account}: used {number('us')} is not its packages' and overage {number('ov')}")
    return faults


def judge(nodes, clients, ledger, dump_binary):
    """The whole verdict on nodes at rest: their journals against the clients' file and against the ledger (None: each node's own)."""
    began = time.monotonic()
    comparison = oracle.Comparison(PRICES)
    journals = [Journal(node.journal) for node in nodes]
    records = [record for journal in journals for record in journal.records()]
    for record in records:
        comparison.add_record(record)
    for energy in (energy for journal in journals for energy in journal.energies):
        comparison.add_energy(energy)
    for line in oracle.lines(clients):
        comparison.add_line(line)
    report = comparison.close()
    if ledger:
        with ledger.connect() as c:
            dumps = [dump_redis(c)]
    else:
        dumps = [dump_folder(dump_binary, node.journal) for node in nodes]
    faults = [fault for journal in journals for fault in journal.faults]
    faults += compare_ledger(dumps, journals, records, comparison.units)
    report.update(messages=comparison.messages, ledger_faults=faults[:40], ledger_faults_count=len(faults), nodes=len(nodes),
                  opens=sum(journal.opens for journal in journals), kills=sum(node.kills for node in nodes),
                  starts=sum(node.starts for node in nodes), checked_in_s=round(time.monotonic() - began, 1), dump=dumps[0][0])
    report["clean"] = report["clean"] and not faults
    return report
