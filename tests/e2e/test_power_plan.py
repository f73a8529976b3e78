"""The plan of deferrable jobs as an operator sees it: the admin call and the metrics, with and without a meter."""
import json
import unittest

from harness import Server, wait_for

WITH_ADMIN = {"MILLRACE_ADMIN_KEY": "adm"}
ADMIN = {"Authorization": "Bearer adm"}


def plan(server, query=""):
    status, text = server.get("/admin/power/plan" + query, ADMIN)
    return status, json.loads(text)


class PowerPlan(unittest.TestCase):
    def test_it_is_there_without_a_meter(self):
        with Server(env=WITH_ADMIN) as server:
            status, shown = plan(server)
            self.assertEqual((status, shown["object"], shown["policy"], shown["event"]), (200, "power.plan", "free", False))
            self.assertEqual((shown["waiting"], shown["jobs"], shown["slots"]), (0, [], []))
            self.assertEqual(set(shown["missed"]), {"cap", "event", "green", "late"})
            self.assertEqual(plan(server, "?jobs=5")[0], 200)
            self.assertEqual(plan(server, "?jobs=many")[1]["error"]["param"], "jobs")
            self.assertEqual(server.get("/admin/power/plan")[0], 401)
            for name in ["mr_deferred_jobs", "mr_deferral_seconds_count", "mr_deadline_misses_total", "mr_flex_down_watts"]:
                self.assertIn(name, server.get("/metrics")[1])

    def test_an_event_is_seen_at_once(self):
        with Server("--power-sensor", "simulated", "--power-idle", "40", "--power-full", "100", env=WITH_ADMIN) as server:
            server.post("/admin/power", {"shed_level": 1}, ADMIN)
            wait_for(lambda: plan(server)[1]["event"], "the event")
            server.post("/admin/power", {"shed_level": 0}, ADMIN)
            wait_for(lambda: not plan(server)[1]["event"], "its end")


if __name__ == "__main__":
    unittest.main()
