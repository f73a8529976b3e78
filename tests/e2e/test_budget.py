"""Budgets of keys, as an operator uses them: two servers on one ledger, or one by itself; a key may use so many tokens of its
account's package and not one more, whatever servers are asked, restarted or killed."""
import concurrent.futures
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import openai

from harness import BINARY, NAME, Redis, Server, wait_for
from test_batches import ended, lines_of, results, run

BUDGET = 400  # tokens


def bill(*arguments):
    done = subprocess.run([BINARY, "bill", *arguments], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"bill {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout) if "--json" in arguments else done.stdout


class Budgets(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="budget-"))
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)

    def account(self, *ledger):
        bill("account", "create", "acme", *ledger)
        bill("topup", "acme", "--tokens", "1M", "--order", "o1", *ledger)

    def key(self, *more, ledger):
        return bill("key", "create", "--account", "acme", *more, "--json", *ledger)

    def row(self, key, ledger):
        return next(row for row in bill("key", "list", "--json", *ledger)["data"] if row["id"] == key["id"])

    def ask(self, server, key, tokens=16):
        return server.post("/v1/completions", {"model": NAME, "prompt": "A mill", "max_tokens": tokens, "ignore_eos": True, "temperature": 0},
                           {"Authorization": f"Bearer {key['key']}"})

    def ask_until_empty(self, servers, key, clients=4, tokens=16):
        """The tokens of all answers, the longest last wish of one that was cut, the refusals."""
        def client(number):
            used, cut = 0, 0
            for i in range(BUDGET):
                status, answer, _ = self.ask(servers[(number + i) % len(servers)], key, tokens)
                if status != 200:
                    return used, cut, (status, answer["error"]["code"])
                used += answer["usage"]["total_tokens"]
                cut += answer["usage"]["completion_tokens"] < tokens
            raise AssertionError("the budget never ended")
        with concurrent.futures.ThreadPoolExecutor(clients) as pool:
            told = list(pool.map(client, range(clients)))
        return sum(t[0] for t in told), sum(t[1] for t in told), [t[2] for t in told]

    def serve(self, name, *options):
        return Server("--journal", str(self.folder / name), "--enforce", "prepaid", *options)

    @unittest.skipUnless(shutil.which("redis-server"), "redis-server is not installed")
    def test_two_servers(self):
        with Redis() as redis:
            ledger = ("--redis", redis.url)
            bill("init", *ledger)
            self.account(*ledger)
            key = self.key("--budget", str(BUDGET), ledger=ledger)
            free = self.key(ledger=ledger)
            self.assertEqual(key["budget"], {"units": BUDGET * 10**6, "period": "month"})
            with self.serve("one", *ledger) as one, self.serve("two", *ledger) as two:
                used, _, refusals = self.ask_until_empty([one, two], key)
                self.assertEqual(set(refusals), {(402, "key_budget_exhausted")})
                self.assertGreaterEqual(one.metric("mr_billing_refused_budget_total") + two.metric("mr_billing_refused_budget_total"), 4)
                self.assertEqual(one.metric("mr_billing_refused_quota_total"), 0)
                # what is left could not pay for a prompt and a token
                self.assertLessEqual(used, BUDGET)
                self.assertGreater(used, BUDGET - 8)
                self.assertEqual(self.ask(one, free)[0], 200)  # the account has more
                bill("key", "limits", key["id"], "--budget", str(2 * BUDGET), *ledger)
                wait_for(lambda: self.ask(one, key)[0] == 200, "the raised budget")
                bill("key", "limits", key["id"], "--budget", "0", *ledger)
                wait_for(lambda: "budget" not in self.row(key, ledger), "no budget")
                wait_for(lambda: all(self.ask(two, key, 100)[0] == 200 for _ in range(8)), "no budget any more", 60)
            proof = bill("audit", str(self.folder / "one"), str(self.folder / "two"), *ledger, "--json")
            self.assertEqual(proof["verdict"], "clean")

    @unittest.skipUnless(shutil.which("redis-server"), "redis-server is not installed")
    def test_drain_and_kill(self):
        """After a drain the ledger has what was used, to the token; after a kill no less, and the budget holds."""
        with Redis() as redis:
            ledger = ("--redis", redis.url)
            bill("init", *ledger)
            self.account(*ledger)
            key = self.key("--budget", "40k", "--budget-period", "total", ledger=ledger)
            with self.serve("one", *ledger) as one:
                used = sum(self.ask(one, key)[1]["usage"]["total_tokens"] for _ in range(3))
                self.assertGreater(self.row(key, ledger)["budget"]["taken_units"], used * 10**6)
            self.assertEqual(self.row(key, ledger)["budget"], {"units": 40000 * 10**6, "period": "total", "taken_units": used * 10**6})
            with self.serve("one", *ledger) as one:
                used += self.ask(one, key)[1]["usage"]["total_tokens"]
                one.process.kill()
                one.process.wait()
                one.expect_exit = one.process.returncode
            with self.serve("one", *ledger) as one:
                status, answer, _ = self.ask(one, key)
                self.assertEqual(status, 200)
                used += answer["usage"]["total_tokens"]
            taken = self.row(key, ledger)["budget"]["taken_units"]
            self.assertGreaterEqual(taken, used * 10**6)
            self.assertLess(taken, (used + 40000 // 64 + 600) * 10**6)  # a reserve and a hold are what a kill costs

    def test_without_redis(self):
        with self.serve("one", "--admin-port", "0") as _:
            pass
        ledger = ("--journal", str(self.folder / "one"))
        self.account(*ledger)
        key = self.key("--budget", str(BUDGET), "--budget-period", "day", ledger=ledger)
        with self.serve("one") as one:
            used, _, refusals = self.ask_until_empty([one], key, clients=3)
            self.assertEqual(set(refusals), {(402, "key_budget_exhausted")})
            self.assertTrue(BUDGET - 8 < used <= BUDGET, used)
        self.assertEqual(self.row(key, ledger)["budget"]["taken_units"], used * 10**6)
        with self.serve("one") as one:
            self.assertEqual(self.ask(one, key)[0], 402)
        table = bill("key", "list", *ledger)
        self.assertIn("400 a day", table)
        self.assertEqual(bill("audit", str(self.folder / "one"), "--json")["verdict"], "clean")

    def test_batch(self):
        """Lines of a batch are the key's own calls: those beyond its budget say so, and the rest is there."""
        with self.serve("one") as _:
            pass
        ledger = ("--journal", str(self.folder / "one"))
        self.account(*ledger)
        key = self.key("--budget", "100", "--budget-period", "total", ledger=ledger)
        with self.serve("one", "--batch-dir", str(self.folder / "batches")) as one:
            client = openai.OpenAI(base_url=one.url + "/v1", api_key=key["key"], max_retries=0)
            batch = ended(client, run(client, lines_of(20, max_tokens=8, ignore_eos=True)), 120)
            answers, errors = results(client, batch.output_file_id), results(client, batch.error_file_id)
            self.assertEqual((batch.status, len(answers) + len(errors)), ("completed", 20))
            self.assertEqual({line["response"]["body"]["error"]["code"] for line in errors}, {"key_budget_exhausted"})
            used = sum(line["response"]["body"]["usage"]["total_tokens"] for line in answers)
            self.assertTrue(100 - 10 < used <= 100, used)
        self.assertEqual(self.row(key, ledger)["budget"]["taken_units"], used * 10**6)

    def test_outage(self):
        """Without Redis a key has what its node has of lease and budget, then 503; with Redis again, the rest."""
        with Redis() as redis:
            ledger = ("--redis", redis.url)
            bill("init", *ledger)
            self.account(*ledger)
            key = self.key("--budget", "2k", ledger=ledger)
            with self.serve("one", *ledger) as one:
                self.assertEqual(self.ask(one, key)[0], 200)
                redis.process.kill()
                redis.process.wait()
                wait_for(lambda: self.ask(one, key, 500)[0] == 503, "what was left is used", 60)
                redis.process = subprocess.Popen(redis.process.args, stdout=subprocess.DEVNULL)
                wait_for(lambda: self.ask(one, key)[0] == 200, "it serves again", 60)
                self.assertIn("a key's budget cannot be asked for", one.log())

    def test_long_answer_ends_at_the_budget(self):
        """An answer that is longer than a hold goes on until the budget ends, and not a token further."""
        with self.serve("one") as _:
            pass
        ledger = ("--journal", str(self.folder / "one"))
        self.account(*ledger)
        key = self.key("--budget", "700", "--budget-period", "day", ledger=ledger)
        with self.serve("one") as one:
            status, answer, _ = self.ask(one, key, 1500)
            self.assertEqual((status, answer["usage"]["total_tokens"], answer["choices"][0]["finish_reason"]), (200, 700, "length"))
            self.assertEqual(self.ask(one, key)[0], 402)


if __name__ == "__main__":
    unittest.main()
