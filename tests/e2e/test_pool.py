"""Lines of batches that wait in Redis for a server with green power to spare: they go to the one that has some, and
whoever is killed or restarted on the way, each has one answer and one charge."""
import json
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import unittest

from harness import BINARY, NAME, Server, free_port, wait_for
from test_batches import client_of, results, upload

LINES, TOKENS = 24, 24
KEY = ("--api-key", "alice-key")


class Pool:
    """A Redis that can be killed and started again in its folder."""

    def __init__(self, case):
        self.folder, self.port = tempfile.mkdtemp(prefix="millrace-pool-"), free_port()
        case.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        case.addCleanup(self.kill)
        self.url = f"redis://127.0.0.1:{self.port}"
        self.start()

    def start(self):
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--dir", self.folder, "--appendonly", "yes",
             "--appendfsync", "always", "--aof-load-truncated", "no", "--maxmemory-policy", "noeviction"],
            stdout=subprocess.DEVNULL)
        wait_for(lambda: self("ping") == "PONG", "Redis answers")

    def kill(self):
        self.process.kill()
        self.process.wait()

    def __call__(self, *words):
        return subprocess.run(["redis-cli", "-p", str(self.port), *words], capture_output=True, text=True, timeout=30).stdout.strip()

    def keys(self, kind):
        return self("--scan", "--pattern", f"mr:{{pool:*}}:{kind}:*").split()


class PoolSet:
    """Two Redis, of which one follows the other, and a Sentinel."""

    def __init__(self, case):
        self.folder, self.ports, self.sentinel = tempfile.mkdtemp(prefix="millrace-pool-"), (free_port(), free_port()), free_port()
        case.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.url = f"redis-sentinel://127.0.0.1:{self.sentinel}/m"
        conf = pathlib.Path(self.folder, "sentinel.conf")
        conf.write_text(f"port {self.sentinel}\nbind 127.0.0.1\ndir {self.folder}\nsentinel monitor m 127.0.0.1 {self.ports[0]} 1\n"
                        "sentinel down-after-milliseconds m 500\nsentinel failover-timeout m 3000\n")
        common = ("--bind", "127.0.0.1", "--dir", self.folder, "--save", "", "--repl-diskless-sync-delay", "0")
        self.processes = [self.run(case, "redis-server", "--port", str(self.ports[0]), *common),
                          self.run(case, "redis-server", "--port", str(self.ports[1]), *common, "--replicaof", "127.0.0.1", str(self.ports[0]))]
        wait_for(lambda: "master_link_status:up" in self.ask(self.ports[1], "info", "replication"), "the replica follows")
        self.run(case, "redis-sentinel", str(conf))
        wait_for(lambda: "slaves=1" in self.ask(self.sentinel, "info", "sentinel"), "the Sentinel knows it")

    def run(self, case, *words):
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL)
        case.addCleanup(process.wait)
        case.addCleanup(process.kill)
        return process

    def ask(self, port, *words):
        return subprocess.run(["redis-cli", "-p", str(port), *words], capture_output=True, text=True, timeout=30).stdout.strip()

    def kill_master(self):
        self.processes[0].kill()
        wait_for(lambda: self.ask(self.ports[1], "role").startswith("master"), "the replica is the master")


def bill(*words):
    return subprocess.run([BINARY, "bill", *words], capture_output=True, text=True, check=True, timeout=60).stdout


class Hub(Server):
    """One with a journal of its own in a shared ledger; green: whether it has green power."""

    def __init__(self, case, redis, name, green, *options, pool=None):
        self.home = os.path.join(case.home, name)
        os.makedirs(self.home, exist_ok=True)
        self.signal = os.path.join(self.home, "power.csv")
        self.shine(green)
        super().__init__("--batch-dir", os.path.join(self.home, "batches"), "--journal", os.path.join(self.home, "journal"),
                         "--redis", redis.url, "--enforce", "off", "--pool", pool or redis.url, "--power-signal",
                         f"file:{self.signal},period=1", "--limit-pool-reclaim-ms", "2000", *KEY, *options,
                         env={"MILLRACE_POOL_PASSWORD": "hunter2"} if pool and "@" in pool else None)

    def shine(self, green):
        with open(self.signal + ".new", "w") as file:
            file.write(f"green_w\n{1000 if green else 0}\n")
        os.replace(self.signal + ".new", self.signal)

    def done(self):
        return self.metric("mr_pool_done_total")

    def computed(self):
        return self.metric("mr_pool_output_tokens_total"), self.metric("vllm:iteration_tokens_total_sum")

    def kill(self):
        self.process.kill()
        self.process.wait()
        self.expect_exit = self.process.returncode


@unittest.skipUnless(shutil.which("redis-server"), "redis-server is not installed")
class Pooled(unittest.TestCase):
    def setUp(self):
        self.home = tempfile.mkdtemp(prefix="millrace-hubs-")
        self.addCleanup(shutil.rmtree, self.home, ignore_errors=True)
        self.redis = Pool(self)
        bill("init", "--redis", self.redis.url)

    def hub(self, name, green, *options, **more):
        return Hub(self, self.redis, name, green, *options, **more)

    def submit(self, server, tokens=TOKENS):
        lines = []
        for i in range(LINES):
            body = {"model": NAME, "prompt": f"Story {i}: " + "word " * (1 + i % 7), "max_tokens": tokens, "temperature": 0,
                    "ignore_eos": True}
            lines.append(json.dumps({"custom_id": f"line-{i}", "method": "POST", "url": "/v1/completions", "body": body}))
        client = client_of(server)
        file = upload(client, "\n".join(lines).encode())
        return client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h")

    def check(self, server, batch, tokens=TOKENS):
        """All answers are there once, as this model gives them, and each has one charge, in the ledger too."""
        client = client_of(server)
        wait_for(lambda: client.batches.retrieve(batch.id).status == "completed", "the batch", 240)
        batch = client.batches.retrieve(batch.id)
        self.assertEqual((batch.request_counts.completed, batch.request_counts.failed), (LINES, 0))
        self.assertLessEqual(batch.completed_at, batch.expires_at)
        answers = results(client, batch.output_file_id)
        self.assertEqual(sorted(a["custom_id"] for a in answers), sorted(f"line-{i}" for i in range(LINES)))
        for answer in answers:
            body = answer["response"]["body"]
            self.assertEqual((answer["response"]["status_code"], body["usage"]["completion_tokens"]), (200, tokens))
            self.assertTrue(body["choices"][0]["text"])
            self.assertEqual((body["object"], body["service_tier"], body["choices"][0]["finish_reason"]),
                             ("text_completion", "batch", "length"))
        rows = lambda: [row for row in map(json.loads, bill("export", "--redis", self.redis.url).splitlines()) if row["kind"] == "F"]
        wait_for(lambda: len(rows()) >= LINES, "the ledger has all charges")
        ids = [a["response"]["body"]["id"].removeprefix("cmpl-") for a in answers]  # the charges' too
        self.assertEqual([sum(charge in row["raw"] for row in rows()) for charge in ids], [1] * LINES)
        self.assertEqual(len(rows()), LINES)
        tokens = sum(a["response"]["body"]["usage"]["total_tokens"] for a in answers)
        self.assertEqual(sum(row["charged_units"] for row in rows()), tokens * 1000000)
        wait_for(lambda: not self.redis.keys("r") and not self.redis.keys("j"), "nothing is left in the pool")
        return answers

    def audit(self, name):
        told = subprocess.run([BINARY, "bill", "audit", os.path.join(self.home, name, "journal"), "--json"], capture_output=True,
                              text=True, timeout=60)
        self.assertEqual((told.returncode, json.loads(told.stdout)["verdict"]), (0, "clean"), told.stdout)

    def test_work_goes_to_who_has_green(self):
        with self.hub("dark", False) as dark, self.hub("dusk", False) as dusk, self.hub("sun", True) as sun:
            answers = self.check(dark, self.submit(dark))
            self.assertEqual((sun.done(), dusk.done(), dark.done()), (LINES, 0, 0))
            self.assertEqual(dark.metric("mr_pool_results_total"), LINES)
            self.assertEqual(dark.metric("vllm:iteration_tokens_total_count"), 0)  # not one step
            self.assertEqual((sun.metric("mr_pool_wasted_total"), dark.metric("mr_pool_misfits_total")), (0, 0))
            self.assertEqual(sun.metric("mr_pool_output_tokens_total"), LINES * TOKENS)
            for answer in answers[:4]:
                i = int(answer["custom_id"].split("-")[1])
                status, own, _ = dark.post("/v1/completions",
                                           {"model": NAME, "prompt": f"Story {i}: " + "word " * (1 + i % 7), "max_tokens": TOKENS,
                                            "temperature": 0, "ignore_eos": True}, {"Authorization": "Bearer alice-key"})
                self.assertEqual((status, own["choices"][0]["text"]), (200, answer["response"]["body"]["choices"][0]["text"]))
            for log in (dark.log(), dusk.log(), sun.log()):
                self.assertNotIn("Story", log)
        self.audit("dark")

    def test_rights(self):
        """A user with the rights that the README lists, and no other."""
        text = pathlib.Path(__file__).parents[2].joinpath("server", "pool", "README.md").read_text()
        rights = re.search(r"Its user: (.*?)\. Password", text, re.S)[1].replace("`", " ").replace(",", " ").split()
        self.assertEqual(self.redis("acl", "setuser", "hub", "on", ">hunter2", "resetchannels", "-@all", *rights), "OK")
        url = self.redis.url.replace("//", "//hub@")
        with self.hub("dark", False, pool=url) as dark, self.hub("sun", True, pool=url) as sun:
            self.check(dark, self.submit(dark))
            self.assertEqual((sun.done(), sun.metric("mr_pool_wasted_total")), (LINES, 0))

    def test_killed_puller(self):
        with self.hub("dark", False) as dark:
            with self.hub("first", True) as first:
                batch = self.submit(dark, 150)
                wait_for(lambda: first.done() > 0 and first.metric("mr_pool_running") > 0, "it is in the middle")
                first.kill()
            self.assertEqual(client_of(dark).batches.retrieve(batch.id).status, "in_progress")
            with self.hub("second", True) as second:
                self.check(dark, batch, 150)
                self.assertGreater(second.done(), 0)
                self.assertLess(second.done(), LINES)
                self.assertEqual(dark.metric("vllm:iteration_tokens_total_count"), 0)
        self.audit("dark")

    def test_killed_redis(self):
        with self.hub("dark", False) as dark, self.hub("sun", True) as sun:
            batch = self.submit(dark, 100)
            wait_for(lambda: sun.done() > 0 and sun.metric("mr_pool_running") > 0, "it is in the middle")
            self.redis.kill()
            wait_for(lambda: not dark.metric("mr_pool_up") and not sun.metric("mr_pool_up"), "both have seen it")
            self.redis.start()
            self.check(dark, batch, 100)
            self.assertEqual(dark.metric("mr_pool_up"), 1)
        self.audit("dark")

    def test_master_killed_behind_a_sentinel(self):
        pool = PoolSet(self)
        with self.hub("dark", False, pool=pool.url) as dark, self.hub("sun", True, pool=pool.url) as sun:
            batch = self.submit(dark, 100)
            wait_for(lambda: sun.done() > 0 and sun.metric("mr_pool_running") > 0, "it is in the middle")
            pool.kill_master()
            self.check(dark, batch, 100)
            self.assertEqual((dark.metric("mr_pool_up"), sun.metric("mr_pool_up")), (1, 1))
            self.assertGreater(sun.done(), LINES // 2)
            wait_for(lambda: pool.ask(pool.ports[1], "--scan", "--pattern", "mr:{pool:*}:[jr]:*") == "", "nothing is left")
        self.audit("dark")

    def test_killed_and_taken_up_again(self):
        """Who has accepted is killed while others work: the answers wait for it."""
        with self.hub("dark", False, "--pool-concurrency", "0") as dark:
            batch = self.submit(dark)
            wait_for(lambda: len(self.redis.keys("j")) == LINES, "all are offered")
            dark.kill()
        with self.hub("sun", True) as sun:
            wait_for(lambda: sun.done() == LINES, "all are done", 120)
        with self.hub("dark", False, "--pool-concurrency", "0") as dark:
            self.check(dark, batch)
            self.assertEqual(dark.metric("vllm:iteration_tokens_total_count"), 0)
        self.audit("dark")

    def test_taken_back(self):
        """Nobody has green power; then it comes to who has accepted."""
        with self.hub("dark", False) as dark, self.hub("dusk", False) as dusk:
            batch = self.submit(dark)
            wait_for(lambda: len(self.redis.keys("j")) == LINES, "all are offered")
            self.assertEqual(dark.metric("mr_batch_lines", state="away"), LINES)
            self.assertEqual(int(self.redis("xlen", self.redis.keys("j")[0].rsplit(":", 2)[0] + ":jobs")), LINES)
            dark.shine(True)
            self.check(dark, batch)
            self.assertEqual(dusk.done(), 0)
            self.assertGreater(dark.metric("vllm:iteration_tokens_total_count"), 0)
        self.audit("dark")

    def test_garbage_in_the_pool(self):
        """What others put there is refused, and harms nobody."""
        with self.hub("dark", False) as dark:
            batch = self.submit(dark)
            wait_for(lambda: len(self.redis.keys("j")) == LINES, "all are offered")
            jobs = sorted(self.redis.keys("j"))
            self.redis("hset", jobs[0], "b", "MRP1garbage")
            self.redis("set", jobs[1].replace(":j:", ":r:"), "MRR1garbage")
            self.redis("del", jobs[2])
            self.redis("xadd", jobs[0].rsplit(":", 2)[0] + ":jobs", "*", "nonsense", "x" * 1000)
            with self.hub("sun", True) as sun:
                wait_for(lambda: sun.done() >= LINES - 3, "what is good is done", 120)
                wait_for(lambda: dark.metric("mr_pool_gone_total") >= 2 and dark.metric("mr_pool_misfits_total") == 1,
                         "what is not runs at home")
                self.assertEqual(sun.metric("mr_pool_up"), 1)
                dark.shine(True)
                self.check(dark, batch)
        self.audit("dark")

    def test_refused_settings(self):
        for options, words in ((("--pool", "http://x"), "--pool"), (("--pool", self.redis.url, "--pool-group", "a b"), "--pool-group")):
            done = subprocess.run([BINARY, "serve", os.environ["MILLRACE_TEST_MODEL"], "--port", str(free_port()), *options],
                                  capture_output=True, text=True, timeout=60)
            self.assertNotEqual(done.returncode, 0)
            self.assertIn(words, done.stderr + done.stdout)


if __name__ == "__main__":
    unittest.main()
