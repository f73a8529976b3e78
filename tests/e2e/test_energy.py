"""Whose joules: the simulated meter driven by the real engine on the real model. Sum of requests + idle + paced + nobody's is
the meter; what usage says provisionally is near what the books say in the end; notes reach the bill; CO2 by both methods."""
import concurrent.futures
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.request

from harness import BINARY, NAME, Server, wait_for

METER = ("--power-sensor", "simulated", "--power-idle", "40", "--power-full", "100", "--usage-extras")
WITH_ADMIN = {"MILLRACE_ADMIN_KEY": "adm"}
ADMIN = {"Authorization": "Bearer adm"}
PUE, GRAMS = 1.25, 400
FIXED = ("--power-signal", f"fixed:pue={PUE},gco2={GRAMS},price=0.5")
PHASES = ("prefill", "decode", "idle", "paced", "unattributed")


def samples(server):
    """[(name, labels, value)] of /metrics."""
    found = []
    for line in server.get("/metrics")[1].splitlines():
        match = re.match(r"([a-zA-Z0-9_:]+)(?:\{(.*)\})? (\S+)$", line)
        if match:
            found.append((match[1], dict(re.findall(r'(\w+)="([^"]*)"', match[2] or "")), float(match[3])))
    return found


def total(all_samples, name, **labels):
    return sum(v for n, l, v in all_samples if n == name and all(l.get(k) == w for k, w in labels.items()))


def ask(server, number, stream=False, **more):
    """usage of a completion."""
    body = {"model": NAME, "prompt": f"Story {number}: " + "word " * (7 * (number % 9)), "max_tokens": 5 + number % 24,
            "temperature": 0, "ignore_eos": True, **more}
    if not stream:
        status, answer, _ = server.post("/v1/completions", body)
        assert status == 200, answer
        return answer["usage"]
    body |= {"stream": True, "stream_options": {"include_usage": True}}
    request = urllib.request.Request(server.url + "/v1/completions", json.dumps(body).encode(), {"Content-Type": "application/json"})
    usage = None
    with urllib.request.urlopen(request, timeout=300) as answer:
        for line in answer:
            if line.startswith(b"data: ") and not line.startswith(b"data: [DONE]"):
                usage = json.loads(line[6:]).get("usage") or usage
    return usage


class Energy(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="millrace-energy-")
        self.addCleanup(shutil.rmtree, self.folder)

    def load(self, server, count):
        with concurrent.futures.ThreadPoolExecutor(6) as pool:
            usages = list(pool.map(lambda i: ask(server, i, stream=i % 2, service_tier="flex" if i % 5 == 0 else "auto"), range(count)))
        wait_for(lambda: total(samples(server), "mr_energy_requests_open") == 0, "the last windows")
        return usages

    def test_every_joule_is_somebodys(self):
        with Server(*METER, *FIXED, "--journal", self.folder, "--numerics", "exact") as server:
            usages = self.load(server, 60)
            told = sum(usage["energy_joules"] for usage in usages)
            now = samples(server)
            tiers = {l["tier"] for n, l, v in now if n == "mr_energy_joules_total" and v > 0}
            self.assertEqual(tiers, {"", "default", "flex"})
            self.assertEqual({l["model"] for n, l, _ in now if n == "mr_energy_joules_total" and l["tier"]}, {NAME})
            requests = total(now, "mr_energy_joules_total", phase="prefill") + total(now, "mr_energy_joules_total", phase="decode")
            self.assertGreater(requests, 1)
            self.assertLess(abs(told / requests - 1), 0.25, (told, requests))  # provisional
            self.assertEqual(total(now, "mr_power_steps_lost_total"), 0)
            self.assertEqual(total(now, "mr_energy_requests_total"), 60)
            phases = {phase: total(now, "mr_energy_joules_total", phase=phase) for phase in PHASES}
            # the books' sum is the meter: energy x PUE x factor is the CO2 of the same joules, to the microgram
            meter = sum(phases.values())
            self.assertAlmostEqual(total(now, "mr_co2_grams_total", method="location"), meter * PUE * GRAMS / 3.6e6, delta=1e-5)
            self.assertAlmostEqual(total(now, "mr_co2_grams_total", method="market"), meter * PUE * GRAMS / 3.6e6, delta=1e-5)
            self.assertLess(phases["unattributed"], 0.01 * meter)
            # and both are what the meter has counted, but for the window that is open
            self.assertLess(abs(total(samples(server), "mr_power_meter_joules_total") / meter - 1), 0.1)
        done = subprocess.run([BINARY, "bill", "usage", self.folder, "--json"], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        rows = json.loads(done.stdout)["data"]
        billed = sum(row["energy_uj"] for row in rows)
        self.assertEqual(sum(row["energy_records"] for row in rows), 60)
        self.assertAlmostEqual(billed * 1e-6, requests, delta=1e-4) # every one of them, to what /metrics has digits for
        grams = sum(row["ugco2_location"] for row in rows) * 1e-6
        self.assertAlmostEqual(grams, requests * PUE * GRAMS / 3.6e6, delta=1e-3)
        audit = subprocess.run([BINARY, "bill", "audit", self.folder], capture_output=True, text=True, timeout=60)
        self.assertEqual(audit.returncode, 0, audit.stdout + audit.stderr)

    def test_cost_and_the_dashboard(self):
        terms = ("--power-cost", "capex=8760,years=1,opex-hour=2,currency=EUR")
        green = ("--power-signal", "file:" + self.folder + "/signal.json", "--power-target", "95", "--power-residual-co2", "600")
        with open(self.folder + "/signal.json", "w") as file:
            now = int(time.time()) * 1000
            json.dump({"slots": [{"t0_ms": now - now % 900000, "dur_s": 1800, "green_w": 10}]}, file)
        with Server(*METER, *green, *FIXED, *terms, env=WITH_ADMIN) as server:
            wait_for(lambda: total(samples(server), "mr_green_offered_joules_total") > 0, "green power")
            self.load(server, 12)
            status, text = server.get("/admin/cost", ADMIN)
            self.assertEqual(status, 200, text)
            answer = json.loads(text)
            books, cost = answer["energy"], answer["cost"]
            self.assertEqual(books["meter_uj"], sum(books[f"{phase}_uj"] for phase in PHASES))  # residual 0
            self.assertEqual(sum(m["prefill_uj"] + m["decode_uj"] for m in answer["models"]), books["prefill_uj"] + books["decode_uj"])
            tenants = answer["tenants"]
            self.assertEqual(sum(t["requests"] for t in tenants), 12)
            self.assertEqual(sum(t["prefill_uj"] + t["decode_uj"] for t in tenants), books["prefill_uj"] + books["decode_uj"])
            tokens_hour = 3600 * (cost["input_tokens"] + cost["output_tokens"]) / cost["seconds"]
            energy_hour = books["meter_uj"] * PUE * 0.5 / 3.6e12 * 3600 / cost["seconds"]
            self.assertAlmostEqual(cost["per_million_tokens"] / (1e6 * (1 + 2 + energy_hour) / tokens_hour), 1, delta=1e-3)
            self.assertEqual((cost["currency"], cost["priced_share"]), ("EUR", 1))
            self.assertIn("C = 10^6 * H / N", cost["explain"])
            self.assertEqual(server.get("/admin/cost")[0], 401)
            now = samples(server)
            parts = {l["part"]: v for n, l, v in now if n == "mr_cost_per_million_tokens"}
            self.assertAlmostEqual(sum(parts[p] for p in ("hardware", "site", "opex", "energy", "income")) / parts["total"], 1, delta=1e-4)
            self.assertGreater(parts["output"], parts["total"])
            green, market = total(now, "mr_green_joules_total"), total(now, "mr_co2_grams_total", method="market")
            meter = sum(total(now, "mr_energy_joules_total", phase=phase) for phase in PHASES)
            self.assertGreater(green, 0)
            self.assertAlmostEqual(market, (meter * PUE - green) * 600 / 3.6e6, delta=1e-4)
            self.assertAlmostEqual(total(now, "mr_co2_grams_total", method="location"), meter * PUE * GRAMS / 3.6e6, delta=1e-4)
            self.assertAlmostEqual(total(now, "mr_self_use_ratio"), green / total(now, "mr_green_offered_joules_total"), delta=1e-3)
            self.check_dashboard({name for name, _, _ in now})
            self.check_history(server)

    def check_history(self, server):
        """Minutes and quarters of an hour add up to what /metrics and the books say; they are looked at once a second."""
        now = samples(server)
        tokens = {kind: total(now, "mr_usage_tokens_total", kind=kind) for kind in ("in_total", "out")}
        history = lambda: json.loads(server.get("/admin/history", ADMIN)[1])
        wait_for(lambda: sum(m["output_tokens"] for m in history()["minutes"]) == tokens["out"], "the last minute")
        minutes = history()["minutes"]
        self.assertEqual(sum(m["prompt_tokens"] for m in minutes), tokens["in_total"] - total(now, "mr_usage_tokens_total", kind="in_hit"))
        self.assertTrue(any(m["watts"] and 40 <= m["watts"] <= 100 and m["output_tokens_s"] > 0 for m in minutes), minutes)
        self.assertTrue(all(m["budget_w"] and 40 < m["budget_w"] <= 95 for m in minutes[-1:]), minutes)
        self.assertTrue(0 <= minutes[-1]["queue"] <= 12 and 0 <= minutes[-1]["kv_share"] < 1, minutes)
        answer = json.loads(server.get("/admin/cost", ADMIN)[1])
        slots = answer["slots"]
        self.assertEqual(sum(s["input_tokens"] for s in slots), tokens["in_total"])
        self.assertEqual(sum(s["output_tokens"] for s in slots), tokens["out"])
        for part in ("meter_uj", "green_uj", "ugco2_location"): # books at most 2 s later, at no more than 100 W
            held = sum(s[part] for s in slots)
            self.assertLessEqual(held, answer["energy"][part])
            if part == "meter_uj":
                self.assertGreater(held, answer["energy"][part] - 200e6)
        self.assertAlmostEqual(slots[-1]["price_kwh"], 0.5)
        for name in ("hour_cost", "day_cost"): # younger than both
            self.assertAlmostEqual(answer[name]["per_million_tokens"] / answer["cost"]["per_million_tokens"], 1, delta=0.2)
            self.assertEqual(answer[name]["input_tokens"], tokens["in_total"])
        weight = json.loads(server.get("/admin/power", ADMIN)[1])["balancer_weight"]
        self.assertTrue(50 <= weight <= 100 and abs(total(samples(server), "mr_balancer_weight") - weight) <= 10, weight)
        self.assertEqual(server.get("/admin/history")[0], 401)

    def check_dashboard(self, names):
        """Every metric that an expression or a variable asks for is one that the server has, and so is every label."""
        dashboard = json.loads((pathlib.Path(__file__).resolve().parents[2] / "docker/grafana/power.json").read_text())
        expressions = [target["expr"] for panel in dashboard["panels"] for target in panel["targets"]]
        expressions += [variable["query"]["query"] for variable in dashboard["templating"]["list"] if variable["type"] == "query"]
        asked = {name for text in expressions for name in re.findall(r"\b(?:mr_|vllm:)[a-z0-9_]+", text)}
        self.assertGreater(len(asked), 20)
        self.assertEqual(asked - names, set())

    def test_books_close_under_a_meter_with_faults(self):
        library = pathlib.Path(BINARY).resolve().parent / "tests/fake_nvml/new"
        if not (library / "libnvidia-ml.so.1").exists():
            self.skipTest("no fake libnvidia-ml.so.1 beside this binary")
        steer = pathlib.Path(self.folder) / "steer.txt"
        steer.write_text("gpus 2\nnoise 0.01\nwork 150\nlag 0\n")
        faults = ["off_mj 900000 0", "off_mj 0 0", "frozen 1 1", "frozen 0 1", "counter_mj 0", "energy_result 999", "energy_result 0",
                  "wrap_mj 50000", "lost 1 1", "lost 0 1"]
        env = dict(WITH_ADMIN, LD_LIBRARY_PATH=str(library), FAKE_NVML_FILE=str(steer))
        journal = self.folder + "/journal"
        with Server("--power-sensor", "nvml", "--power-idle", "180", "--journal", journal, env=env) as server:
            count, stop = [0], threading.Event()

            def keep_asking(worker):
                while not stop.is_set():
                    ask(server, worker)
                    count[0] += 1

            with concurrent.futures.ThreadPoolExecutor(3) as pool:
                workers = [pool.submit(keep_asking, i) for i in range(3)]
                try:
                    for fault in faults:
                        steer.write_text(fault + "\n")
                        time.sleep(0.6)
                        self.check_books(json.loads(server.get("/admin/cost", ADMIN)[1]))
                finally:
                    stop.set()
                for worker in workers:
                    worker.result()
            wait_for(lambda: total(samples(server), "mr_energy_requests_open") == 0, "the last windows")
            answer = json.loads(server.get("/admin/cost", ADMIN)[1])
            self.check_books(answer)
            books = answer["energy"]
            self.assertGreater(books["decode_uj"], 0)
            self.assertEqual(total(samples(server), "mr_energy_requests_total"), count[0])
        done = subprocess.run([BINARY, "bill", "usage", journal, "--json"], capture_output=True, text=True, timeout=60)
        billed = sum(row["energy_uj"] for row in json.loads(done.stdout)["data"])
        self.assertEqual(billed, books["prefill_uj"] + books["decode_uj"])  # no joule twice, none lost

    def check_books(self, answer):
        books = answer["energy"]
        self.assertEqual(books["meter_uj"], sum(books[f"{phase}_uj"] for phase in PHASES), books)
        self.assertEqual(sum(m["prefill_uj"] + m["decode_uj"] for m in answer["models"]), books["prefill_uj"] + books["decode_uj"])
        self.assertTrue(all(0 <= value < 1 << 62 for value in books.values()), books)

    def test_a_record_tells_how_long_a_request_was_held_back(self):
        with Server(*METER, "--journal", self.folder, env=WITH_ADMIN) as server:
            server.post("/admin/power", {"shed_level": 1, "until": int(time.time()) + 3}, ADMIN)
            wait_for(lambda: total(samples(server), "mr_shed_level") == 1, "the event")
            ask(server, 1)
            began = time.monotonic()
            ask(server, 2, service_tier="flex")
            held_ms = (time.monotonic() - began) * 1000
            self.assertGreater(held_ms, 500)
            wait_for(lambda: total(samples(server), "mr_energy_requests_total") == 2, "the last windows")
        done = subprocess.run([BINARY, "bill", "export", self.folder], capture_output=True, text=True, timeout=60)
        self.assertEqual(done.returncode, 0, done.stderr)
        told = sorted(record["deferral_ms"] for record in map(json.loads, done.stdout.splitlines()) if float(record["pue"]) > 0)
        self.assertEqual((len(told), told[0]), (2, 0))
        self.assertGreater(told[1], 500)
        self.assertLessEqual(told[1], held_ms)

    def test_usage_without_extras_and_without_a_meter(self):
        with Server(*METER[:-1]) as server:
            self.assertNotIn("energy_joules", ask(server, 1))
        with Server("--usage-extras", "--power-sensor", "none") as server:
            self.assertNotIn("energy_joules", ask(server, 1))

    def test_a_stream_and_many_prompts_tell_it_once(self):
        with Server(*METER) as server:
            one = ask(server, 3, stream=True)["energy_joules"]
            body = {"model": NAME, "prompt": ["a b c", "d e f g"], "n": 2, "max_tokens": 20, "ignore_eos": True}
            status, answer, _ = server.post("/v1/completions", body)
            self.assertEqual(status, 200, answer)
            self.assertGreater(one, 0)
            self.assertGreater(answer["usage"]["energy_joules"], 0)


if __name__ == "__main__":
    unittest.main()
