"""Tiers, deadlines and green power on the plain endpoints: what is promised, what is refused, and who waits in an event."""
import json
import threading
import time
import unittest

import openai

from harness import NAME, Server, wait_for

WITH_ADMIN = {"MILLRACE_ADMIN_KEY": "adm"}
ADMIN = {"Authorization": "Bearer adm"}
METER = ("--power-sensor", "simulated", "--power-idle", "40", "--power-full", "100")


def client_of(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key="none", max_retries=0, timeout=60)


def ask(server, tier, **more):
    return client_of(server).completions.with_raw_response.create(
        model=NAME, prompt="Once", max_tokens=3, extra_body={"service_tier": tier, **more})


def plan(server):
    return json.loads(server.get("/admin/power/plan", ADMIN)[1])


def in_time(seconds):
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))


class Tiers(unittest.TestCase):
    def test_promises_and_refusals(self):
        with Server(env=WITH_ADMIN) as server:
            for tier, named in (("auto", "default"), ("priority", "priority"), ("flex", "flex"), ("batch", "batch")):
                answer = ask(server, tier)
                self.assertEqual(json.loads(answer.content)["service_tier"], named)
                self.assertEqual(answer.headers["x-mr-power"], "normal")
            self.assertEqual(json.loads(ask(server, "batch", deadline=in_time(7200), green="any").content)["service_tier"], "batch")
            wait_for(lambda: plan(server)["done"] == 3 and not plan(server)["jobs"], "the end of three jobs")
            with self.assertRaises(openai.InternalServerError) as refused:
                ask(server, "batch", deadline=in_time(60))
            self.assertEqual((refused.exception.status_code, refused.exception.code), (503, "deadline_infeasible"))
            self.assertRegex(refused.exception.message, r"20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ")
            self.assertGreater(int(refused.exception.response.headers["retry-after"]), 0)
            for wrong in ({"deadline": "soon"}, {"deadline": in_time(-60)}, {"deadline": in_time(40 * 86400)}, {"green": "very"}):
                with self.assertRaises(openai.BadRequestError) as refused:
                    ask(server, "batch", **wrong)
                self.assertIn(refused.exception.param, wrong)
            with self.assertRaises(openai.BadRequestError):
                ask(server, "default", deadline=in_time(7200))

    def test_an_event_makes_flex_wait(self):
        with Server(*METER, env=WITH_ADMIN) as server:
            server.post("/admin/power", {"shed_level": 1}, ADMIN)
            wait_for(lambda: plan(server)["event"], "the event")
            self.assertEqual(ask(server, "default").headers["x-mr-power"], "event")
            answers, lines = [], []

            def plain():
                answers.append(ask(server, "batch"))

            def stream():
                with client_of(server).completions.with_streaming_response.create(
                        model=NAME, prompt="Once", max_tokens=3, stream=True, extra_body={"service_tier": "batch"}) as answer:
                    lines.extend(answer.iter_lines())

            waiting = [threading.Thread(target=plain), threading.Thread(target=stream)]
            for thread in waiting:
                thread.start()
            wait_for(lambda: plan(server)["waiting"] == 2, "two that wait")
            time.sleep(12) # the head of a stream goes out after 10 s
            self.assertEqual((answers, plan(server)["waiting"]), ([], 2))
            server.post("/admin/power", {"shed_level": 0}, ADMIN)
            for thread in waiting:
                thread.join(30)
            self.assertEqual(json.loads(answers[0].content)["usage"]["completion_tokens"], 3)
            self.assertTrue(lines[0].startswith(": waiting for "), lines[:3])
            self.assertIn("expected start", lines[0])
            self.assertEqual([line for line in lines if line][-1], "data: [DONE]")
            wait_for(lambda: not plan(server)["jobs"], "no job is left")
            server.wait_idle()

    def test_who_leaves_or_is_drained_leaves_the_plan(self):
        with Server(*METER, env=WITH_ADMIN) as server:
            server.post("/admin/power", {"shed_level": 1}, ADMIN)
            wait_for(lambda: plan(server)["event"], "the event")
            with self.assertRaises(openai.APITimeoutError):
                client_of(server).with_options(timeout=1).completions.create(
                    model=NAME, prompt="Once", extra_body={"service_tier": "batch"})
            wait_for(lambda: plan(server)["waiting"] == 0, "nobody waits")
            refused = []

            def plain():
                try:
                    ask(server, "batch")
                except openai.InternalServerError as error:
                    refused.append((error.code, error.status_code, int(error.response.headers["retry-after"]) >= 1))

            thread = threading.Thread(target=plain)
            thread.start()
            wait_for(lambda: plan(server)["waiting"] == 1, "one that waits")
            server.process.terminate()
            thread.join(30)
            self.assertEqual(refused, [("draining", 503, True)])


if __name__ == "__main__":
    unittest.main()
