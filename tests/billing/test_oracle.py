"""The oracle itself: a clean run is clean, and each kind of doctored book is found."""
import collections
import sys
import types

import books
import oracle

PRICES = {"alpha": (1000000, 250000, 3000000)}
HASHES = "11" * 16 + "," + "22" * 16
LINE = oracle.Line(0, "run-1", 1, "acct", "alpha", "text", 1, 2, 2, 9, 20, "none", 0, "", 0, "whole", 200, "ab" * 16, 1, "3,4,0,2", 1, 20, 4, 9, 0, "", HASHES)


class Record:
    def __init__(self, **changed):
        self.charge_id, self.part, self.request_id, self.account = "ab" * 16, 0, oracle.request_hash("run-1"), oracle.account_number("acct")
        self.model, self.kind, self.cause, self.in_total, self.in_hit, self.out = "alpha", "F", "length", 10, 4, 7
        self.choices, self.month, self.steps, self.units, self.h_ids = 2, 202611, [2, 2, 2, 1], None, None
        self.__dict__.update(changed)
        if self.h_ids is None:
            self.h_ids = HASHES.split(",")[self.part % 2]
        if self.units is None:
            self.units = (self.in_total - self.in_hit) * 1000000 + self.in_hit * 250000 + self.out * 3000000 if self.kind == "F" else 0


def two_records():
    return [Record(), Record(part=1, in_hit=0, out=2, steps=[1, 1])]


def energy(**changed):
    fields = dict(charge_id="ab" * 16, part=0, slot_ms=1, account=oracle.account_number("acct"), model="alpha", mclass=3, month=202611, energy_uj=5,
                  idle_uj=2, green_uj=3, ugco2_loc=4, ugco2_mkt=1)
    return types.SimpleNamespace(**{**fields, **changed})


def judge(lines, records, energies=()):
    comparison = oracle.Comparison(PRICES)
    for used in energies:
        comparison.add_energy(used)
    for record in records:
        comparison.add_record(record)
    for line in lines:
        comparison.add_line(line)
    return comparison.close(), comparison


def expect(name, lines, records, fault, energies=()):
    report, comparison = judge(lines, records, energies)
    found = {kind for kind in ("lost", "double", "wrong", "foreign", "stuck") if report[kind]}
    assert (fault in found) if fault else not found, f"{name}: expected {fault}, found {found}: {comparison.messages}"
    return report, comparison


def test_clean():
    report, comparison = expect("clean", [LINE], two_records(), None)
    assert report["exact"] == 1 and sum(comparison.units.values()) == 10000000 + 6000000 + 4 * 250000 + 27000000, report


def test_energies():
    records = [Record(mclass=3), Record(part=1, in_hit=0, out=2, steps=[1, 1], mclass=3)]
    cases = [("none: a crash came first", [], None), ("of one part", [energy()], None), ("of two slots", [energy(), energy(slot_ms=2)], None),
             ("of both parts", [energy(), energy(part=1)], None), ("a slot twice", [energy(), energy(energy_uj=0)], "double"),
             ("without its final", [energy(part=2)], "foreign"), ("another charge", [energy(charge_id="cd" * 16)], "foreign"),
             ("another account", [energy(account=7)], "wrong"), ("another model", [energy(model="beta")], "wrong"), ("another class", [energy(mclass=4)], "wrong")]
    for name, energies, fault in cases:
        report, _ = expect(name, [LINE], records, fault, energies)
        assert report["energies"] == len(energies), (name, report)


def test_doctored():
    cut = LINE._replace(outcome="cut", usage_seen=0, ids="2,2,0,1")
    cases = [
        ("a record is missing", [LINE], two_records()[:1], "lost"),
        ("all are missing", [LINE], [], "lost"),
        ("a record twice", [LINE], two_records() + two_records()[:1], "double"),
        ("charged again under another id", [LINE], two_records() + [Record(charge_id="cd" * 16)], "double"),
        ("a third part", [LINE], two_records() + [Record(part=2)], "lost"),
        ("one id too many", [LINE], [Record(out=8), two_records()[1]], "wrong"),
        ("one id moved to another prompt", [LINE], [Record(out=6), Record(part=1, in_hit=0, out=3)], "wrong"),
        ("one input id too many", [LINE], [Record(in_total=11), two_records()[1]], "wrong"),
        ("hits are not told", [LINE], [Record(in_hit=0), two_records()[1]], "wrong"),
        ("other ids than arrived", [LINE], [Record(h_ids="33" * 16), two_records()[1]], "wrong"),
        ("a unit too many", [LINE], [Record(units=28000001), two_records()[1]], "wrong"),
        ("waived, though answered", [LINE], [Record(kind="W"), two_records()[1]], "lost"),
        ("of another account", [LINE], [Record(account=5), two_records()[1]], "wrong"),
        ("nobody's", [LINE], two_records() + [Record(request_id=b"?" * 16, charge_id="ee" * 16)], "foreign"),
        ("charged, though refused", [LINE._replace(outcome="refused", status=400)], two_records(), "wrong"),
        ("all charged, though broken off", [LINE._replace(outcome="refused", status=503)], two_records(), "wrong"),
        ("charged, though never sent", [LINE._replace(outcome="unsent", status=0, charge_id="")], two_records(), "wrong"),
        ("less than arrived", [cut], [Record(out=3, steps=[2, 1]), two_records()[1]], "lost"),
        ("nothing of a cut answer", [cut], [], "lost"),
        ("no byte for a minute", [LINE._replace(outcome="stuck")], two_records(), "stuck"),
        ("two bills of a retried request", [LINE._replace(retry="k"), LINE._replace(retry="k", again=1, request_id="run-2", charge_id="cd" * 16)],
         two_records() + [Record(charge_id="cd" * 16, part=i, request_id=oracle.request_hash("run-2"), out=o, in_hit=h)
                    for i, o, h in ((0, 7, 4), (1, 2, 0))], "double"),
    ]
    for name, lines, records, fault in cases:
        expect(name, lines, records, fault)


def test_what_is_recorded_beyond_a_cut():
    cut = LINE._replace(outcome="cut", fault="half", usage_seen=0, ids="3,2,0,1")
    report, _ = expect("cut", [cut], two_records(), None)
    assert report["steps_beyond"] == {"cut_half:1": 1, "cut_half:2": 1}, report
    expect("nothing seen, nothing recorded", [cut._replace(charge_id="", ids="0,0,0,0", status=0)], [], None)


def test_broken_off():
    refused = LINE._replace(outcome="refused", status=503, usage_seen=0, ids="")
    report, _ = expect("one prompt had ended, the other is waived", [refused], [two_records()[0], Record(part=1, kind="W", cause="platform_cancel")],
                       None)
    assert report["partly"] == 1, report


def test_retry_is_billed_once():
    first, second = LINE._replace(retry="k"), LINE._replace(retry="k", again=1, request_id="run-2")
    report, comparison = expect("joined", [first, second], two_records(), None)
    assert report["retried"] == 1 and report["exact"] == 2, report
    assert sum(comparison.units.values()) == sum(record.units for record in two_records())


def ledger():
    """What a ledger holds of one charged and one waived record: (dump, log, journal, records, the clients' units)."""
    number, month = oracle.account_number("acct"), f"m:202611:{oracle.account_number('acct')}"
    records = [Record(mclass=3), Record(part=1, mclass=3, kind="W", in_hit=0, out=2)]
    dump = {("hwm:007", "uuid"): "u", ("hwm:007", f"{5:016x}"): "2|2|00ff00ff00ff00ff",
            (f"a:{number}", "us"): "28000000", (f"a:{number}", "ov"): "8000000", (f"a:{number}", "p.gr"): "50000000", (f"a:{number}", "p.av"): "20000000",
            (f"a:{number}", "p.rs"): "10000000", (f"a:{number}", "p.us"): "20000000", (f"a:{number}", f"L:{5:016x}:p"): "10000000",
            (month, "c3.im"): "6", (month, "c3.ih"): "4", (month, "c3.ou"): "7", (month, "c3.un"): "28000000", (month, "c3.n"): "1",
            (month, "c3.wi"): "10", (month, "c3.wo"): "2", (month, "c3.wn"): "1",
            (month, "c3.en"): "10", (month, "c3.ei"): "4", (month, "c3.eg"): "6", (month, "c3.cl"): "8", (month, "c3.cm"): "2", (month, "c3.ne"): "2"}
    log = collections.Counter({("log", b"5", b"1"): 1, ("log", b"5", b"2"): 1})
    journal = types.SimpleNamespace(marks={7: (2, "00ff00ff00ff00ff")}, producer=5, folder="node", energies=[energy(), energy(slot_ms=2)])
    return dump, log, journal, records, {(number, 202611): 28000000}


def test_doctored_ledgers():
    def faults(change=lambda dump, log, journal: None, units=0):
        dump, log, journal, records, owed = ledger()
        change(dump, log, journal)
        return books.compare_ledger([(dump, log)], [journal], records, {name: n + units for name, n in owed.items()})

    def put(field, value):
        def change(dump, log, journal):
            name = next(name for name in dump if name[1] == field)
            dump[name] = value
        return change

    assert faults() == [], faults()
    cases = [put("us", "28000001"), put("ov", "8000001"), put("p.av", "19999999"), put("p.rs", "9999999"), put("c3.im", "5"), put("c3.n", "2"), put("c3.en", "11"), put("c3.ei", "5"), put("c3.eg", "7"),
             put("c3.cl", "7"), put("c3.cm", "1"), put("c3.ne", "1"),
             put("c3.wn", "0"), put("c3.wo", "3"), put(f"{5:016x}", "2|1|00ff00ff00ff00ff"), put(f"{5:016x}", "2|2|00ff00ff00ff00fe"),
             put(f"L:{5:016x}:p", "9999999"), lambda dump, log, journal: log.update([("log", b"5", b"2")]),
             lambda dump, log, journal: log.pop(("log", b"5", b"2")), lambda dump, log, journal: dump.pop(("hwm:007", f"{5:016x}")),
             lambda dump, log, journal: journal.marks.update({8: (1, "0" * 16)})]
    for i, change in enumerate(cases):
        assert faults(change), f"case {i} was not found"
    assert faults(units=1), "the clients' sum differs, and nobody says so"


if __name__ == "__main__":
    for name, function in list(globals().items()):
        if name.startswith("test_"):
            function()
            print("ok  ", name)
    sys.exit(0)
