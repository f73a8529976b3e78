"""What the clients know against what the books say. Shares no code with the server: own hashes, own prices, own sums.

A client's line (load.c) and a record of the journal meet by the request's id: the record has the first 16 bytes of its
SHA-256. So every record must belong to a request that was really sent, also when its sender never saw an answer.

  whole   the answer ended: as many records as prompts, with exactly the client's counts
  cut     the client left, or the server died: at most as many; delivered <= recorded, and how many STEPs more is counted
  energy  of a charge: once for a price slot, of a charge that has a final, its account's and model's; none is fine (a crash came first)
  refused, unsent: none; or, when the server broke a begun call off, at least one of its prompts is not charged
"""
import collections
import hashlib

COLUMNS = ("number", "request_id", "port", "account", "model", "kind", "stream", "prompts", "choices", "max_tokens", "in_total", "fault", "bad",
           "retry", "again", "outcome", "status", "charge_id", "ids_seen", "ids", "usage_seen", "prompt", "cached", "completion", "running", "error", "hashes")
NUMBERS = {"number", "port", "stream", "prompts", "choices", "max_tokens", "in_total", "bad", "again", "status", "ids_seen", "usage_seen", "prompt",
           "cached", "completion", "running"}
Line = collections.namedtuple("Line", COLUMNS)
CAUSES = ("stop", "length", "quota_end", "account_stop", "client_gone", "platform_cancel", "platform_error", "node_crash")
CHARGED_CAUSES = {"stop", "length", "quota_end", "account_stop", "client_gone"}


def lines(path):
    convert = [int if name in NUMBERS else str for name in COLUMNS]
    with open(path) as file:
        for line in file:
            fields = line.rstrip("\n").split("\t")
            yield Line(*[f(x) for f, x in zip(convert, fields)])


def account_number(name):
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:8], "big") & (1 << 63) - 1


def request_hash(request_id):
    return hashlib.sha256(request_id.encode()).digest()[:16]


def delivered(line):
    """Output ids that the client holds, by prompt; None where only their sum is known."""
    if line.ids_seen:
        ids = [int(x) for x in line.ids.split(",")]
        return [sum(ids[i * line.choices:(i + 1) * line.choices]) for i in range(line.prompts)]
    return None


class Comparison:
    """One run: feed it all records, then all lines; `report` is the verdict.

    A record here has charge_id (hex), part, request_id (16 bytes), account, model, kind ("F" or "W"), cause (a name), in_total,
    in_hit, out, choices, units, month, h_ids (hex), steps (ids of each STEP, in order).
    prices: model -> (input, hit, output) in ppm.
    """

    def __init__(self, prices):
        self.prices = prices
        self.by_request = collections.defaultdict(list)
        self.seen_charges = {}
        self.energies = {} # (charge_id, part, slot) -> energy
        self.counts = collections.Counter()
        self.outcomes = collections.Counter()
        self.causes = collections.Counter()
        self.excess = collections.Counter()
        self.excess_worst = collections.Counter()
        self.units = collections.Counter()    # (account number, month) -> what the clients owe by their own count
        self.messages = []
        self.retries = collections.defaultdict(list)

    def fault(self, kind, text):
        self.counts[kind] += 1
        if len(self.messages) < 40:
            self.messages.append(f"{kind}: {text}")

    def add_record(self, record):
        self.counts["records"] += 1
        self.counts["charged" if record.kind == "F" else "waived"] += 1
        self.causes[record.cause] += 1
        key = record.charge_id, record.part
        if key in self.seen_charges:
            self.fault("double", f"{record.charge_id} part {record.part} has two finals")
        self.seen_charges[key] = record
        self.by_request[record.request_id].append(record)

    def add_energy(self, energy):
        """charge_id (hex), part, slot_ms, account, model, mclass, energy_uj."""
        self.counts["energies"] += 1
        key = energy.charge_id, energy.part, energy.slot_ms
        if key in self.energies:
            self.fault("double", f"{energy.charge_id} part {energy.part} has energy of slot {energy.slot_ms} twice")
        self.energies[key] = energy

    def compare_energies(self):
        for energy in self.energies.values():
            charge = self.seen_charges.get((energy.charge_id, energy.part))
            if charge is None:
                self.fault("foreign", f"{energy.charge_id} part {energy.part} has energy and no final")
            elif (charge.account, charge.model, charge.mclass) != (energy.account, energy.model, energy.mclass):
                self.fault("wrong", f"{energy.charge_id} part {energy.part}: its energy is of another account, model or class")

    def add_line(self, line):
        self.counts["requests"] += 1
        self.outcomes[line.outcome] += 1
        records = self.by_request.pop(request_hash(line.request_id), [])
        if line.retry:
            self.retries[line.retry].append((line, records))
        else:
            self.compare(line, records)
            self.owe(records)

    def compare(self, line, records):
        number = account_number(line.account)
        for record in records:
            if (record.account, record.model) != (number, line.model):
                self.fault("wrong", f"{record.charge_id} is of another account or model than {line.request_id}")
        if len({record.charge_id for record in records}) > 1:
            self.fault("double", f"{line.request_id} has several charges")
        if line.charge_id and any(record.charge_id != line.charge_id for record in records):
            self.fault("wrong", f"{line.request_id}: answered as {line.charge_id}, recorded as {records[0].charge_id}")
        if line.outcome == "whole":
            self.compare_whole(line, records)
        elif line.outcome in ("refused", "unsent"):
            charged = sum(record.kind == "F" for record in records)
            broken_off = line.status >= 500 and charged < line.prompts # the prompts that had ended are charged, if not all had
            self.counts["partly"] += broken_off and charged > 0
            if records and not broken_off:
                self.fault("wrong", f"{line.request_id} was {line.outcome} ({line.status} {line.error}) and has {len(records)} records")
        elif line.outcome == "stuck":
            self.fault("stuck", f"{line.request_id}: no byte for a minute")
        else:
            self.compare_cut(line, records)

    def owe(self, records):
        for record in records:
            if record.kind == "F":
                self.units[record.account, record.month] += self.price(record.model, record.in_total, record.in_hit, record.out)

    def price(self, model, in_total, in_hit, out):
        weight_in, weight_hit, weight_out = self.prices[model]
        return (in_total - in_hit) * weight_in + in_hit * weight_hit + out * weight_out

    def compare_whole(self, line, records):
        if sorted(record.part for record in records) != list(range(line.prompts)):
            self.fault("lost", f"{line.request_id} ({line.charge_id}): answered whole, {len(records)} of {line.prompts} records")
            return
        if any(record.kind != "F" for record in records):
            self.fault("lost", f"{line.request_id}: answered whole, and waived")
        got = [sum(getattr(record, name) for record in records) for name in ("in_total", "in_hit", "out")]
        if line.in_total and got[0] != line.in_total:
            self.fault("wrong", f"{line.request_id}: {line.in_total} input ids sent, {got[0]} recorded")
        if line.usage_seen and got != [line.prompt, line.cached, line.completion]:
            self.fault("wrong", f"{line.request_id}: usage says {[line.prompt, line.cached, line.completion]}, records {got}")
        parts = delivered(line)
        if parts:
            for record in records:
                if line.hashes and record.h_ids != line.hashes.split(",")[record.part]:
                    self.fault("wrong", f"{line.request_id} part {record.part}: the ids that arrived are not those that were recorded")
                if record.out != parts[record.part]:
                    self.fault("wrong", f"{line.request_id} part {record.part}: {parts[record.part]} ids arrived, {record.out} recorded")
        units = sum(record.units for record in records)
        if units != self.price(line.model, *got):
            self.fault("wrong", f"{line.request_id}: {units} units, by the clients' prices {self.price(line.model, *got)}")
        self.counts["exact"] += 1

    def compare_cut(self, line, records):
        if line.charge_id and not records:
            self.fault("lost", f"{line.request_id} ({line.charge_id}): part of an answer came, and there is no record")
        if len(records) > line.prompts:
            self.fault("double", f"{line.request_id}: {len(records)} records for {line.prompts} prompts")
        if line.in_total and sum(record.in_total for record in records) > line.in_total:
            self.fault("wrong", f"{line.request_id}: more input recorded than sent")
        parts = delivered(line)
        if parts is None: # without ids in the answer only the running usage tells, and that of all prompts together
            recorded = sum(record.out for record in records)
            if line.running > recorded:
                self.fault("lost", f"{line.request_id}: {line.running} ids arrived, {recorded} recorded")
            return
        by_part = {record.part: record for record in records}
        for part, count in enumerate(parts):
            record = by_part.get(part)
            if count and not record:
                self.fault("lost", f"{line.request_id} part {part}: {count} ids arrived, no record")
            elif record:
                self.compare_excess(line, record, count)

    def compare_excess(self, line, record, count):
        if record.out < count:
            self.fault("lost", f"{line.request_id} part {record.part}: {count} ids arrived, {record.out} recorded ({record.cause})")
        if not line.stream or line.retry: # all or nothing; or it goes on without its client
            return
        steps = told = 0 # STEPs that tell of recorded ids which did not arrive
        for ids in record.steps:
            steps += told < record.out and told + ids > count
            told += ids
        where = "cut_" + line.fault if line.outcome == "cut" else line.outcome + ("_slow" if line.fault == "slow" else "")
        self.excess[where, min(steps, 50)] += 1
        self.excess_worst[where] = max(self.excess_worst[where], steps)

    def compare_retries(self):
        """A retried request is answered from, or joined to, the first one: whoever saw an answer saw that one's, and at most one is
        charged."""
        for retry, group in self.retries.items():
            records = [record for _, found in group for record in found]
            if len({record.charge_id for record in records if record.kind == "F"}) > 1:
                self.fault("double", f"retry {retry}: several charges")
            self.counts["retried"] += len(group) > 1
            self.owe(records)
            for line, found in group:
                self.compare(line, [record for record in records if record.charge_id == line.charge_id] if line.charge_id else found)

    def close(self):
        self.compare_retries()
        self.compare_energies()
        for found in self.by_request.values():
            for record in found:
                self.fault("foreign", f"{record.charge_id}: nobody sent such a request")
        return self.report()

    def report(self):
        names = ("lost", "double", "wrong", "foreign", "stuck")
        return {"requests": self.counts["requests"], "records": self.counts["records"], "charged": self.counts["charged"],
                "waived": self.counts["waived"], "exact": self.counts["exact"], "retried": self.counts["retried"], "partly": self.counts["partly"],
                "energies": self.counts["energies"], "energy_uj": sum(energy.energy_uj for energy in self.energies.values()),
                **{name: self.counts[name] for name in names}, "outcomes": dict(self.outcomes), "causes": dict(self.causes),
                "units": sum(self.units.values()), "steps_beyond_worst": dict(self.excess_worst),
                "steps_beyond": {f"{where}:{steps}": n for (where, steps), n in sorted(self.excess.items())},
                "clean": not any(self.counts[name] for name in names)}
