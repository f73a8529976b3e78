"""A node that follows a file: edit it and the pace of tokens, /admin/power and the metrics follow; what is wrong in it, or its
end, changes nothing upwards. Rates are compared with each other on the same machine, with room for a busy one."""
import json
import os
import pathlib
import subprocess
import tempfile
import threading
import time
import unittest

from harness import Redis, Server, wait_for

WITH_ADMIN = {"MILLRACE_ADMIN_KEY": "adm"}
ADMIN = {"Authorization": "Bearer adm"}
METER = ("--power-sensor", "simulated", "--power-idle", "40", "--power-full", "100")


def power(server, body=None):
    if body is None:
        status, text = server.get("/admin/power", ADMIN)
        assert status == 200, text
        return json.loads(text)
    status, answer, _ = server.post("/admin/power", body, ADMIN)
    assert status == 200, answer
    return answer


def source(server, name="file"):
    return next(s for s in power(server)["sources"] if s["name"] == name)


def tokens(server):
    return server.metric("vllm:generation_tokens_total")


def rate(server, seconds=3):
    begin, before = time.monotonic(), tokens(server)
    time.sleep(seconds)
    return (tokens(server) - before) / (time.monotonic() - begin)


class Load:
    """Streams without end, so that watts are what limits."""

    def __init__(self, server, streams=2):
        self.server, self.stop = server, False
        self.threads = [threading.Thread(target=self.run) for _ in range(streams)]

    def run(self):
        while not self.stop:
            self.server.complete(prompt="A long story", max_tokens=60, temperature=0, ignore_eos=True)

    def __enter__(self):
        for thread in self.threads:
            thread.start()

    def __exit__(self, *_):
        self.stop = True
        for thread in self.threads:
            thread.join()


class PowerSignal(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.TemporaryDirectory()
        self.path = pathlib.Path(self.folder.name) / "power.csv"
        self.addCleanup(self.folder.cleanup)

    def write(self, text):
        """Another file under the same name, as an editor saves it."""
        other = self.path.with_suffix(".new")
        other.write_text(text)
        os.rename(other, self.path)

    def test_a_file_is_followed(self):
        self.write("cap_w,price_kwh\n100,0.31\n")
        with Server(*METER, "--power-signal", f"file:{self.path},period=1", "--power-cap", "98", env=WITH_ADMIN) as server:
            state = power(server)
            self.assertEqual((state["cap_w"], state["told"]["cap_w"], state["told"]["price_kwh"]), (98, 100, 0.31))
            self.assertEqual((source(server)["state"], source(server)["rejected"]), ("fresh", {}))
            with Load(server):
                wait_for(lambda: tokens(server) > 20, "tokens")
                free, paced = rate(server), server.metric("mr_engine_paced_seconds_total")
                self.write("cap_w\n50\n")
                wait_for(lambda: power(server)["cap_w"] == 50, "the file's cap")
                wait_for(lambda: (power(server)["setpoint_w"] or 999) <= 50, "the set point")
                wait_for(lambda: server.metric("mr_engine_paced_seconds_total") > paced + 0.5, "pauses")
                held = rate(server)
                print(f"{free:.1f} tokens/s, under 50 W {held:.1f}")
                self.assertLess(held, 0.7 * free)  # 9 of 33 W above idle are left to decode
                self.assertEqual(server.metric("mr_signal_cap_watts"), 50)
                self.path.write_text("shed_level\n3\n")  # written in place
                wait_for(lambda: power(server)["shed_level"] == 3, "the emergency")
                wait_for(lambda: (power(server)["setpoint_w"] or 999) <= 46, "the floor")
                self.write("cap_w\n100\n")
                wait_for(lambda: (power(server)["setpoint_w"] or 0) > 90, "the way up")
                self.assertGreater(rate(server), 1.2 * held)

    def test_without_a_meter_it_is_said(self):
        self.write("cap_w\n100\n")
        with Server("--power-signal", f"file:{self.path}") as server:
            self.assertRegex(server.log(), "warn .* power signals=1 note=.no meter: ")

    def test_what_is_wrong_raises_nothing(self):
        self.write("cap_w\n60\n")
        with Server(*METER, "--power-signal", f"file:{self.path},period=0.5,name=grid", env=WITH_ADMIN) as server:
            wait_for(lambda: power(server)["cap_w"] == 60, "the cap")
            self.write("time,cap_w\nnoon,90\n")
            wait_for(lambda: source(server, "grid")["rejected"].get("unreadable"), "garbage is counted")
            self.assertIn("line 2: time: \"noon\"", source(server, "grid")["message"])
            self.assertIn("line 2", server.log())
            self.assertEqual(power(server)["cap_w"], 60)
            self.write("cap_w\n-5\n")
            wait_for(lambda: source(server, "grid")["rejected"].get("negative"), "a negative cap is counted")
            self.assertEqual(server.metric("mr_signal_rejected_total", source="grid", why="negative"), 1)
            self.path.unlink()
            wait_for(lambda: source(server, "grid")["state"] == "stale", "it is stale")
            self.assertEqual(power(server)["cap_w"], 60)
            self.assertGreater(server.metric("mr_signal_age_seconds", source="grid"), 1.5)
            self.assertEqual(power(server, {"cap_w": 80, "shed_level": 1})["cap_w"], 60)  # a hand lifts nothing either
            state = power(server, {"cap_w": 50})
            self.assertEqual((state["cap_w"], state["hand"]["cap_w"], state["shed_level"]), (50, 50, 1))
            power(server, {"cap_w": None, "shed_level": 0})
            self.write("cap_w\n90\n")
            wait_for(lambda: power(server)["cap_w"] == 90 and source(server, "grid")["state"] == "fresh", "it is back")
            self.assertIsNone(source(server, "grid")["message"])

    def test_a_trace_is_played(self):
        self.write("time_local,solar_pu\n2016-04-08 00:00:00,0.1\n2016-04-08 00:15:00,0.4\n")
        trace = f"file:{self.path},scale=200,share=0.5,speed=900"
        with Server(*METER, "--power-signal", trace, "--power-signal", "fixed:gco2=380", env=WITH_ADMIN) as server:
            for watts in (10, 40, 10):
                wait_for(lambda: power(server)["told"]["green_w"] == watts, f"{watts} W")
            self.assertEqual(power(server)["told"]["gco2_kwh"], 380)
            self.assertEqual(server.metric("mr_signal_carbon_grams_per_kwh"), 380)

    def test_a_hash_in_redis_is_followed(self):
        with Redis() as redis:
            port = redis.url.rsplit(":", 1)[1]

            def cli(*words):
                return subprocess.run(["redis-cli", "-p", port, *map(str, words)], capture_output=True, text=True, check=True).stdout

            cli("HSET", "mr:power:north", "cap_w", 160, "price_kwh", 0.2)
            hub = f"redis:north,url={redis.url},share=0.5,period=3600"  # what is seen is the hint
            with Server(*METER, "--power-signal", hub, env=WITH_ADMIN) as server:
                wait_for(lambda: power(server)["cap_w"] == 80, "half of the hub's cap")
                wait_for(lambda: int(cli("PUBSUB", "NUMSUB", "mr:power:north").split()[1]) == 1, "it listens")
                cli("HSET", "mr:power:north", "cap_w", 120)
                cli("PUBLISH", "mr:power:north", "changed")
                wait_for(lambda: power(server)["cap_w"] == 60, "the change")
                cli("HSET", "mr:power:north", "cap_w", "a lot")
                cli("PUBLISH", "mr:power:north", "changed")
                wait_for(lambda: source(server, "redis")["rejected"].get("unreadable"), "garbage is counted")
                cli("DEL", "mr:power:north")
                cli("PUBLISH", "mr:power:north", "changed")
                wait_for(lambda: source(server, "redis")["rejected"].get("unreachable"), "the hash is gone")
                self.assertEqual(power(server)["cap_w"], 60)
                redis.process.kill()
                redis.process.wait()
                self.assertEqual(power(server)["cap_w"], 60)


if __name__ == "__main__":
    unittest.main()
