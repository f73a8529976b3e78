"""The alert rules and the dashboard of docker/: promtool takes them, each alert fires when it must (alerts_test.yml), each name that
they ask for is in a running server's /metrics, each query of a dashboard has data in a Prometheus, and each alert has its part in the operator's guide."""
import contextlib
import json
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import unittest
import urllib.parse
import urllib.request

from harness import NAME, Server, free_port, wait_for

DOCKER = pathlib.Path(__file__).resolve().parents[2] / "docker"
RULES = DOCKER / "prometheus/alerts.yml"
PROMTOOL, PROMETHEUS = shutil.which("promtool"), shutil.which("prometheus")
SERIES = re.compile(r"\b(?:mr_|vllm:)[a-z0-9_]+")


@contextlib.contextmanager
def serving():
    """A server with all that the rules and the dashboards look at: a journal, a meter, a signal, terms of cost."""
    with tempfile.TemporaryDirectory(prefix="millrace-alarms-") as folder:
        signal = pathlib.Path(folder, "power.csv")
        signal.write_text("cap_w,price_kwh,gco2_kwh,green_w\n95,0.5,300,50\n")
        with Server("--journal", f"{folder}/journal", "--power-sensor", "simulated", "--power-idle", "40", "--power-full", "100",
                    "--power-signal", f"file:{signal}", "--power-cost", "capex=20000,years=5") as server:
            yield server


@unittest.skipUnless(PROMTOOL, "no promtool (server/setup.sh test-packages installs Debian's prometheus)")
class Promtool(unittest.TestCase):
    def run_promtool(self, *arguments, **more):
        done = subprocess.run([PROMTOOL, *arguments], capture_output=True, text=True, timeout=60, **more)
        self.assertEqual(done.returncode, 0, done.stdout + done.stderr)

    def test_rules_and_scrape_are_taken(self):
        self.run_promtool("check", "rules", str(RULES))
        self.run_promtool("check", "config", str(DOCKER / "prometheus/prometheus.yml"))

    def test_each_alert_fires_when_it_must(self):
        self.run_promtool("test", "rules", str(DOCKER / "prometheus/alerts_test.yml"))


class Names(unittest.TestCase):
    def test_each_alert_is_tested_and_explained(self):
        alerts = re.findall(r"alert: (\w+)", RULES.read_text())
        tested = (DOCKER / "prometheus/alerts_test.yml").read_text()
        self.assertGreater(len(alerts), 10)
        for alert in alerts:
            self.assertIn(f'alertname="{alert}"', tested)
        headings = {h.lower().replace(" ", "-") for h in re.findall(r"(?m)^#+ (.+)$", (DOCKER / "README.md").read_text())}
        anchors = re.findall(r'runbook: "docker/README.md#([a-z-]+)"', RULES.read_text())
        self.assertEqual(len(anchors), len(alerts))
        self.assertEqual(set(anchors) - headings, set())

    def test_each_name_is_in_metrics(self):
        asked = set(SERIES.findall(" ".join(re.findall(r"(?m)^ *expr: (.+)$", RULES.read_text()))))
        for board in (DOCKER / "grafana").glob("*.json"):
            asked |= set(SERIES.findall(" ".join(re.findall(r'"expr": "(.+)"', board.read_text()))))
        asked |= set(SERIES.findall((DOCKER / "kubernetes/prometheus-adapter.yaml").read_text()))
        self.assertGreater(len(asked), 30)
        with serving() as server:
            server.complete(model=NAME, prompt="A mill race", max_tokens=8)

            def absent():
                return asked - set(re.findall(r"(?m)^([a-z][a-z0-9_:]+)", server.get("/metrics")[1]))

            end = time.monotonic() + 30  # shares and costs have no value before the first watts are booked
            while absent() and time.monotonic() < end:
                time.sleep(0.1)
            self.assertEqual(absent(), set())


@unittest.skipUnless(PROMETHEUS, "no prometheus (server/setup.sh test-packages installs it)")
class Queries(unittest.TestCase):
    """The dashboards' and the alerts' queries, put to a Prometheus that has scraped a server at work."""

    def ask(self, path, **parameters):
        url = f"http://127.0.0.1:{self.port}{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def values(self, query):
        return [sample["value"][1] for sample in self.ask("/api/v1/query", query=query)["result"]]

    @contextlib.contextmanager
    def scraping(self, server):
        self.port = free_port()
        with tempfile.TemporaryDirectory(prefix="millrace-prometheus-") as folder:
            config = (DOCKER / "prometheus/prometheus.yml").read_text()
            self.assertIn('["millrace:8000"]', config)
            config = config.replace("millrace:8000", f"127.0.0.1:{server.port}").replace("5s", "1s")
            pathlib.Path(folder, "prometheus.yml").write_text(config)
            shutil.copy(RULES, folder)
            process = subprocess.Popen([PROMETHEUS, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                                        f"--web.listen-address=127.0.0.1:{self.port}", "--log.level=error"])
            try:
                yield
            finally:
                process.terminate()
                process.wait(30)

    def scraped(self, times):
        try:
            counts = self.values('count_over_time(up{job="millrace"}[5m])')
        except OSError:
            return False
        return bool(counts) and int(counts[0]) >= times

    def test_each_query_of_the_dashboards_has_data(self):
        with serving() as server, self.scraping(server):
            for _ in range(1000):
                server.complete(model=NAME, prompt="A mill race", max_tokens=32)
                if self.scraped(5):
                    break
            queries = [json.loads(f'"{q}"') for b in sorted((DOCKER / "grafana").rglob("*.json")) for q in re.findall(r'"expr": "(.+)"', b.read_text())]
            self.assertGreater(len(queries), 20)
            empty = []
            for query in queries:
                values = self.values(query.replace("$instance", ".+").replace("$__rate_interval", "30s").replace("[1h]", "[30s]"))
                if not [v for v in values if v != "NaN"]:
                    empty.append(query)
            self.assertEqual(empty, [])

    def test_a_server_at_work_raises_no_alarm(self):
        with serving() as server, self.scraping(server):
            server.complete(model=NAME, prompt="A mill race", max_tokens=32)
            wait_for(lambda: self.scraped(3), "three scrapes")
            rules = [r for g in self.ask("/api/v1/rules")["groups"] for r in g["rules"]]
            self.assertEqual([r["name"] for r in rules if r["health"] == "err"], [])
            wait_for(lambda: all(r["health"] == "ok" for g in self.ask("/api/v1/rules")["groups"] for r in g["rules"]), "the rules' first evaluation")
            self.assertEqual([a["labels"]["alertname"] for a in self.ask("/api/v1/alerts")["alerts"] if a["state"] == "firing"], [])
            server.process.terminate()
            wait_for(lambda: "MillraceNodeGone" in {a["labels"]["alertname"] for a in self.ask("/api/v1/alerts")["alerts"]}, "the alert of a node that is gone")


if __name__ == "__main__":
    unittest.main()
