"""A watt budget over the real model with the simulated meter: a cap slows an answer down, an operator lifts it, and what is
wrong is refused. Nothing here depends on how fast the machine is: paces are compared by what the engine says it waited."""
import concurrent.futures
import json
import pathlib
import subprocess
import tempfile
import time
import unittest

from harness import BINARY, MODEL, Server, wait_for

WITH_ADMIN = {"MILLRACE_ADMIN_KEY": "adm"}
ADMIN = {"Authorization": "Bearer adm"}
METER = ("--power-sensor", "simulated", "--power-idle", "40", "--power-full", "100")


def power(server, body=None):
    if body is None:
        status, text = server.get("/admin/power", ADMIN)
        return status, json.loads(text)
    return server.post("/admin/power", body, ADMIN)[:2]


def ids(server):
    answer = server.complete(prompt="A long story", max_tokens=60, temperature=0, ignore_eos=True, return_token_ids=True)
    return answer["choices"][0]["token_ids"]


def paced(server):
    return server.metric("mr_engine_paced_seconds_total")


class Power(unittest.TestCase):
    def test_a_cap_paces_and_an_operator_lifts_it(self):
        with Server(*METER, "--numerics", "exact", env=WITH_ADMIN) as server:
            self.assertIn("watts are an estimate", server.log())
            free = ids(server)
            self.assertEqual(paced(server), 0)
            self.assertEqual(server.metric("mr_power_setpoint_watts"), 0) # not there
            status, state = power(server, {"cap_w": 50})
            self.assertEqual((status, state["cap_w"], state["shed_level"], state["estimated"]), (200, 50, 0, True))
            wait_for(lambda: power(server)[1]["setpoint_w"], "the set point")
            self.assertEqual(ids(server), free) # slower, and the same
            held = paced(server)
            self.assertGreater(held, 0)
            self.assertLessEqual(server.metric("mr_power_setpoint_watts"), 49) # 2 % in hand, more after noise
            self.assertGreater(server.metric("mr_power_setpoint_watts"), 0)
            wait_for(lambda: server.metric("mr_power_watts", scope="devices") > 0, "a window")
            self.assertEqual(server.metric("mr_power_meter_estimated"), 1)
            power(server, {"cap_w": None})
            wait_for(lambda: power(server)[1]["work_w"] is None, "the way back up") # a fifth of the range a second
            held = paced(server)
            self.assertEqual(ids(server), free)
            self.assertEqual(paced(server), held)

    def test_nothing_runs_below_idle_and_a_goal_ends(self):
        with Server(*METER, "--power-cap", "90", env=WITH_ADMIN) as server:
            until = int(time.time()) + 3
            status, state = power(server, {"cap_w": 10, "shed_level": 3, "until": until})
            self.assertEqual((status, state["until"], state["shed_level"]), (200, until, 3))
            wait_for(lambda: power(server)[1]["work_w"] == 0, "the cap")
            self.assertEqual(len(ids(server)), 60)
            self.assertGreaterEqual(time.time(), until) # it waited for the end
            state = power(server)[1]
            self.assertEqual((state["cap_w"], state["shed_level"], state["until"]), (90, 0, None))

    def test_intervals_over_their_limit_hold_flex(self):
        """No token of the model comes within 1 ms: beside an answer flex has no row, and has them all when it is over."""
        with Server(*METER, "--slo-itl-ms", "1", env=WITH_ADMIN) as server, concurrent.futures.ThreadPoolExecutor(2) as pool:
            story = {"prompt": "A long story", "temperature": 0, "ignore_eos": True}
            flex = pool.submit(lambda: server.complete(**story, max_tokens=400, service_tier="flex"))
            long = pool.submit(lambda: server.complete(**story, max_tokens=800))
            wait_for(lambda: power(server)[1]["deferrable_rows"] == 0, "the guard")
            self.assertGreater(power(server)[1]["itl_p95_ms"], 1)
            self.assertEqual(long.result()["usage"]["completion_tokens"], 800)
            self.assertEqual(flex.result()["usage"]["completion_tokens"], 400)
            wait_for(lambda: power(server)[1]["deferrable_rows"] is None, "that it lets go")
            self.assertIsNone(power(server)[1]["work_w"]) # the allowance was not touched

    def test_what_is_refused(self):
        with Server(*METER, env=WITH_ADMIN) as server:
            before = power(server, {"target_w": 80})[1]
            for body, param in [({"cap_w": -1}, None), ({"cap_w": 1e12}, None), ({"cap_w": "60"}, "cap_w"),
                                ({"shed_level": 4}, "shed_level"), ({"shed_level": 1.5}, "shed_level"),
                                ({"until": 5}, None), ({"until": "soon"}, "until"), ({"watts": 5}, "watts"), (b"[]", None),
                                (b"{", None), ({"cap_w": 50, "shed_level": -1}, "shed_level")]:
                status, answer = power(server, body)
                self.assertEqual((status, answer["error"]["param"]), (400, param), body)
                self.assertEqual({k: power(server)[1][k] for k in ("cap_w", "target_w", "shed_level", "until")},
                                 {k: before[k] for k in ("cap_w", "target_w", "shed_level", "until")})
            self.assertEqual(server.get("/admin/power")[0], 401)
        with Server("--power-sensor", "none", env=WITH_ADMIN) as server:
            status, answer = power(server)
            self.assertEqual((status, answer["error"]["code"]), (409, "no_power_meter"))
        for options, word in [(("--power-sensor", "none", "--power-cap", "60"), "--power-full"), (("--power-sensor", "sun"), "--power-sensor"),
                              (("--power-sensor", "simulated"), "--power-full"),
                              (("--power-idle", "90", "--power-full", "80"), "--power-full")]:
            ended = subprocess.run([BINARY, "serve", MODEL, "--port", "0", *options], capture_output=True, text=True, timeout=60)
            self.assertEqual(ended.returncode, 1)
            self.assertIn(word, ended.stderr)


    def test_nvml_is_the_meter(self):
        library = pathlib.Path(BINARY).resolve().parent / "tests/fake_nvml/new"
        if not (library / "libnvidia-ml.so.1").exists():
            self.skipTest("no fake libnvidia-ml.so.1 beside this binary")
        with tempfile.NamedTemporaryFile("w", suffix=".txt") as steer:
            steer.write("gpus 2\nnoise 0\nwork 100\n")
            steer.flush()
            env = dict(WITH_ADMIN, LD_LIBRARY_PATH=str(library), FAKE_NVML_FILE=steer.name)
            with Server("--power-sensor", "nvml", env=env) as server:
                state = power(server)[1]
                self.assertIn("NVML", state["meter"])
                self.assertFalse(state["estimated"])
                self.assertNotIn("estimate", server.log())
                self.assertGreater(state["full_w"], 0)
                wait_for(lambda: server.metric("mr_power_watts") > 100, "a window")
                before = server.metric("mr_power_watts")
                steer.write("work 300\n")
                steer.flush()
                wait_for(lambda: server.metric("mr_power_watts") > before + 2 * 150, "the work of two GPUs")


if __name__ == "__main__":
    unittest.main()
