"""millrace bill as a new user meets it: against a running server, a folder at rest, and Redis; what is told must agree
everywhere, and nobody sees another's bill."""
import csv
import http.server
import io
import json
import os
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import unittest

from harness import BINARY, NAME, Redis, Server, free_port, wait_for

ADMIN = "admin-secret"
METER = ("--power-sensor", "simulated", "--power-idle", "40", "--power-full", "100", "--power-signal", "fixed:pue=1.25,gco2=400")
KEYLESS = {k: v for k, v in os.environ.items() if not k.startswith("MILLRACE_") or k.startswith("MILLRACE_TEST_")}


def bill(*words, expect=0, env=None):
    """(stdout, stderr) of one call."""
    done = subprocess.run([BINARY, "bill", *map(str, words)], capture_output=True, text=True, timeout=120,
                          env={**KEYLESS, "MILLRACE_ADMIN_KEY": ADMIN, **(env or {})})
    if done.returncode != expect:
        raise AssertionError(f"bill {words}: {done.returncode}, expected {expect}\n{done.stdout}\n{done.stderr}")
    return done.stdout, done.stderr


def bill_json(*words, **more):
    return json.loads(bill(*words, "--json", **more)[0])


def chat(server, key, tokens=8, text="Say hi.", **more):
    return server.post("/v1/chat/completions", {"model": NAME, "max_tokens": tokens, "temperature": 0,
                                                "messages": [{"role": "user", "content": text}], **more},
                       {"Authorization": f"Bearer {key}"})


class Billed(Server):
    """A server that bills into folder, with an admin port."""

    def __init__(self, folder, *options, **more):
        self.admin_port = free_port()
        self.at = ("--server", f"http://127.0.0.1:{self.admin_port}")
        super().__init__("--journal", folder, "--admin-port", str(self.admin_port), "--enforce", "prepaid", "--journal-segment-bytes",
                         "1Mi", *METER, *options, env={"MILLRACE_ADMIN_KEY": ADMIN}, **more)

    def new_key(self, account):
        bill("account", "create", account, *self.at)
        key = bill("key", "create", "--account", account, *self.at)[0].strip()
        wait_for(lambda: self.get("/v1/models", {"Authorization": f"Bearer {key}"})[0] == 200, "the key is known")
        return key


class Bill(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="millrace-bill-")
        self.addCleanup(shutil.rmtree, self.folder)
        self.journal = os.path.join(self.folder, "journal")

    def used(self, balance):
        return balance["used_units"]

    def test_a_new_user(self):
        """Account, key, package; chat until it is used up; read, audit and export the bill, live and at rest."""
        with Billed(self.journal) as server:
            ada, bob = server.new_key("ada"), server.new_key("bob")
            self.assertRegex(ada, r"^mr-[A-Za-z0-9_-]{43}$")
            self.assertEqual(chat(server, ada)[0], 402)  # nothing yet
            order = ("topup", "ada", "--tokens", "200", "--order", "o-1", *server.at)
            self.assertEqual(bill_json(*order)["answer"], "OK")
            self.assertEqual(bill_json(*order)["answer"], "DUP")
            bill("topup", "ada", "--tokens", "201", "--order", "o-1", *server.at, expect=1)
            bill("topup", "bob", "--tokens", "0.05k", "--order", "o-2", *server.at)
            self.no_package_for_a_typo(server.at)
            told = {"prompt_tokens": 0, "completion_tokens": 0, "requests": 0}
            while True:
                status, reply, _ = chat(server, ada)
                if status != 200:
                    break
                told["requests"] += 1
                for name in ("prompt_tokens", "completion_tokens"):
                    told[name] += reply["usage"][name]
            self.assertEqual((status, reply["error"]["code"]), (402, "insufficient_quota"))
            self.assertGreater(told["requests"], 2)
            units = (told["prompt_tokens"] + told["completion_tokens"]) * 1000000
            self.assertLessEqual(units, 200 * 1000000)

            balance = bill_json("balance", "ada", *server.at)
            self.assertEqual((balance["used_units"], balance["overage_units"]), (units, 0))
            month = bill_json("usage", "--account", "ada", *server.at)["data"][0]
            self.assertEqual((month["input_tokens"], month["output_tokens"], month["num_model_requests"]),
                             (told["prompt_tokens"], told["completion_tokens"], told["requests"]))
            status, own = server.get("/v1/usage", {"Authorization": f"Bearer {ada}"})
            own = json.loads(own)
            self.assertEqual((status, own["balance"]["used_units"], own["usage"]["data"][0]["charged_units"]), (200, units, units))
            self.energy_is_told(server, ada, told["requests"])
            self.nobody_elses_bill(server, ada, bob)
            self.assertEqual(bill_json("audit", self.journal, *server.at)["verdict"], "clean")

            # a top-up lets the next request in
            bill("topup", "ada", "--tokens", "1k", "--order", "o-3", *server.at)
            self.assertEqual(chat(server, ada)[0], 200)
            # a closed account and a revoked key
            bill("account", "close", "ada", "--order", "c-1", *server.at)
            wait_for(lambda: chat(server, ada)[0] == 403, "the account is closed")
            bill("account", "open", "ada", "--order", "c-2", *server.at)
            wait_for(lambda: chat(server, ada)[0] == 200, "it is open again")
            key_id = next(k["id"] for k in bill_json("key", "list", "--account", "ada", *server.at)["data"])
            bill("key", "revoke", key_id, *server.at)
            wait_for(lambda: chat(server, ada)[0] == 401, "the key is revoked")
            bill("balance", "ada", "--journal", self.journal, expect=1)  # a server has the folder
            live = bill_json("balance", "ada", *server.at)
            log = server.log()
        for secret in (ada, bob, ADMIN):
            self.assertNotIn(secret, log)
            for name in os.listdir(self.journal):
                with open(os.path.join(self.journal, name), "rb") as file:
                    self.assertNotIn(secret.encode(), file.read())
        self.at_rest(live)

    def no_package_for_a_typo(self, at):
        self.assertIn("account create", bill("topup", "adda", "--tokens", "1", "--order", "typo", *at, expect=1)[1])
        self.assertEqual(bill_json("balance", "adda", *at)["packages"], [])
        output, message = bill("topup", "tenant-of-a-file", "--tokens", "1", "--order", "file", "--force", *at)
        self.assertIn("not in the directory", message)
        self.assertEqual(len(bill_json("balance", "tenant-of-a-file", *at)["packages"]), 1)

    def energy_is_told(self, server, key, requests):
        """Joules and grams of each answer, alike wherever they are asked for, once the meter has closed their windows."""
        def own():
            return json.loads(server.get("/v1/usage", {"Authorization": f"Bearer {key}"})[1])["usage"]["data"][0]
        wait_for(lambda: own()["energy_records"] >= requests, "the energy of each answer")
        usage = own()
        self.assertGreater(usage["energy_uj"], 0)
        self.assertAlmostEqual(usage["energy_joules"], usage["energy_uj"] * 1e-6, delta=1e-6)
        self.assertAlmostEqual(usage["gco2_location"], usage["energy_joules"] * 1.25 * 400 / 3.6e6, delta=1e-6 * requests)
        billed = bill_json("usage", "--account", "ada", *server.at)["data"][0]
        told = [name for name in usage if re.search("energy|joules|gco2|_uj", name)]
        self.assertEqual([billed[name] for name in told], [usage[name] for name in told])

    def nobody_elses_bill(self, server, mine, other):
        number = bill_json("balance", "ada", *server.at)["account_id"]
        for form in ("ada", number, number[3:], "ADA", "*", "..", "%61da"):
            for query in (f"?account={form}", f"?tenant={form}", f"?month=2026-01&account={form}", f"?account={form}&month=2026-01",
                          f"/{form}"):
                status, text = server.get("/v1/usage" + query, {"Authorization": f"Bearer {other}"})
                self.assertIn(status, (400, 404), query)
                self.assertNotIn("used_units", text)
        status, text = server.get("/v1/usage", {"Authorization": f"Bearer {other}"})
        self.assertEqual((status, json.loads(text)["balance"]["account"]), (200, "bob"))
        self.assertEqual(server.get("/v1/usage")[0], 401)
        for path in ("/admin/billing/accounts/ada", "/admin/billing/usage?account=ada", "/admin/billing/directory"):
            self.assertEqual(server.get(path, {"Authorization": f"Bearer {mine}"})[0], 404)
            self.assertEqual(server.get(path, {"Authorization": f"Bearer {ADMIN}"})[0], 401)

    def at_rest(self, live):
        """The same, from the folder alone."""
        rest = ("--journal", self.journal)
        balance = bill_json("balance", "ada", *rest)
        self.assertEqual({**balance, "packages": 0, "leased_units": 0, "available_units": 0},
                         {**live, "packages": 0, "leased_units": 0, "available_units": 0})
        self.assertEqual(balance["leased_units"], 0)  # given back at the end
        for package in balance["packages"]:
            self.assertEqual(package["granted_units"], package["available_units"] + package["leased_units"] + package["used_units"]
                             + package["expired_units"])
        audit = bill_json("audit", self.journal, *rest)
        self.assertEqual((audit["verdict"], audit["lost"], audit["double"], audit["unapplied"], audit["findings"]),
                         ("clean", 0, 0, 0, []))
        self.assertTrue(bill_json("rebuild", self.journal)["identical"])
        rows = [json.loads(line, parse_float=str) for line in bill("export", self.journal)[0].splitlines()]
        charged = [row for row in rows if row["kind"] == "F" and row["tenant"] == "ada"]
        self.assertEqual(sum(row["charged_units"] for row in charged), balance["used_units"])
        self.assertEqual(len({(row["producer"], row["partition"], row["pseq"]) for row in rows}), len(rows))
        table = list(csv.DictReader(io.StringIO(bill("export", self.journal, "--format", "csv")[0])))
        self.assertEqual([{k: str(v) for k, v in row.items()} for row in rows], table)
        sums = bill_json("usage", self.journal, "--by", "tenant,model,day")["data"]
        self.assertEqual(sum(row["charged_units"] for row in sums if row["tenant"] == "ada"), balance["used_units"])
        self.assertEqual(bill_json("usage", "--journal", self.journal, "--by", "tenant,model,day")["data"], sums)
        named = bill_json("usage", *rest, "--by", "account,cause")["data"]
        self.assertEqual({row["account"] for row in named}, {"ada"})
        self.assertEqual({row["account_id"] for row in named}, {balance["account_id"]})
        self.assertIn("\nada ", bill("usage", "--account", "ada", *rest)[0])
        self.assertEqual(bill_json("balance", balance["account_id"], *rest), balance)
        target = os.path.join(self.folder, "records.jsonl")
        bill("export", self.journal, "--output", target)
        bill("export", self.journal, "--output", target, expect=1)  # never over another file
        with open(target) as file:
            self.assertEqual(file.read(), bill("export", self.journal)[0])
        self.assertEqual(sorted(os.listdir(self.folder)), ["journal", "records.jsonl"])
        self.damage(balance)

    def damage(self, balance):
        segments = sorted(name for name in os.listdir(self.journal) if name.endswith(".mrj"))
        path = os.path.join(self.journal, segments[0])
        with open(path, "r+b") as file:
            file.seek(4096 + 200)
            byte = file.read(1)
            file.seek(4096 + 200)
            file.write(bytes([byte[0] ^ 4]))
        self.assertEqual(json.loads(bill("audit", self.journal, "--json", expect=2)[0])["verdict"], "damage")
        bill("usage", self.journal, expect=3)
        with open(path, "r+b") as file:
            file.seek(4096 + 200)
            file.write(byte)
        self.assertEqual(bill_json("balance", "ada", "--journal", self.journal), balance)

    def test_redis(self):
        """Shared ledger: what a killed node leaves is replayed; a lost Redis is rebuilt to equal totals."""
        if not shutil.which("redis-server"):
            self.skipTest("redis-server is not installed")
        with Redis() as redis, Redis() as second:
            at = ("--redis", redis.url)
            uuid = bill_json("init", *at)["uuid"]
            bill("init", *at, expect=1)
            bill("account", "create", "ada", *at)
            orders = [bill("topup", "ada", "--tokens", "100k", "--order", "o-1", *at, "--json")[0]]
            key = bill("key", "create", "--account", "ada", *at)[0].strip()
            server = Billed(self.journal, "--redis", redis.url)
            with server:
                wait_for(lambda: chat(server, key)[0] == 200, "the first answer")
                units = lambda: bill_json("balance", "ada", *at)["used_units"]
                told = sum(chat(server, key, text=f"Say {i}.")[1]["usage"]["total_tokens"] for i in range(5)) * 1000000
                wait_for(lambda: units() >= told, "records in Redis")
                self.assertEqual(bill_json("balance", "ada", *server.at)["used_units"], units())
                probe = bill_json("probe", server.url, "--account", "ada", "--count", "10", *at, env={"MILLRACE_API_KEY": key})
                self.assertEqual((probe["equal"], probe["lost"], probe["double"]), (True, 0, 0))
                server.expect_exit = -signal.SIGKILL
                server.process.kill()
                server.process.wait()
            replay = bill_json("replay", self.journal, *at)
            self.assertEqual(replay["unapplied"], 0)
            audit = bill_json("audit", self.journal, *at)
            self.assertEqual((audit["verdict"], audit["lost"], audit["double"], audit["unapplied"]), ("clean", 0, 0, 0))
            self.assertEqual(audit["charged_units"], units())
            self.assertGreater(audit["energies"], 0)  # what the killed process had noted, and no more
            # names of accounts are in no journal: rebuilt ledgers know the number alone
            used = lambda where: [{**row, "account": ""} for row in bill_json("usage", "--account", "ada", *where)["data"]]
            month = used(at)

            # the log has each record once; it goes only after the file is there, and what came later stays
            bill("export", "--redis", redis.url, "--trim", expect=2)
            target = os.path.join(self.folder, "log.jsonl")
            bill("export", "--redis", redis.url, "--output", target, "--trim")
            with open(target) as file:
                log = [json.loads(line) for line in file]
            kept = [json.loads(line) for line in bill("export", self.journal)[0].splitlines()]
            name = lambda row: (row["producer"], row["partition"], row["pseq"], row["charged_units"])
            self.assertEqual(sorted(name(r) for r in log if "raw" in r), sorted(name(r) for r in kept))
            self.assertEqual([r["order"] for r in log if r["kind"] == "O"], ["o-1"])
            left = [json.loads(line) for line in bill("export", "--redis", redis.url)[0].splitlines()]
            self.assertEqual([line for line in left if line["kind"] != "M"], [])
            self.assertEqual(units(), audit["charged_units"])  # balances need no log

            lines = os.path.join(self.folder, "orders.jsonl")
            with open(lines, "w") as file:
                file.writelines(orders)
            other = ("--redis", second.url)
            rebuilt = bill_json("rebuild", self.journal, "--orders", lines, *other)
            self.assertEqual((rebuilt["uuid"], rebuilt["orders"]), (uuid, 1))
            self.assertEqual(used(other), month)
            self.assertEqual(bill_json("balance", "ada", *other)["used_units"], units())
            self.assertEqual(bill_json("audit", self.journal, *other)["verdict"], "clean")
            again = bill_json("rebuild", self.journal, "--orders", lines, *other)
            self.assertEqual(used(other), month)  # nothing twice
            self.assertEqual(again["uuid"], uuid)
            # without folders: from the exported log, balances and all
            with Redis() as third:
                logged = ("--redis", third.url)
                self.assertEqual(bill_json("rebuild", "--log", target, *logged)["uuid"], uuid)
                self.assertEqual(bill_json("balance", "ada", *logged), bill_json("balance", "ada", *at))
                self.assertEqual(bill_json("audit", self.journal, *logged)["verdict"], "clean")
                bill("rebuild", "--log", target, *logged, expect=1)  # only into an empty one
            bill("rebuild", "--log", target, expect=2)
            bill("rebuild", *at, expect=2)  # from what?
            # a copy that goes its own way is refused until it is adopted
            bill("adopt", self.journal)
            self.assertEqual(bill_json("replay", self.journal, *at)["unapplied"], 0)

    def test_hostile_server(self):
        """A server that is none, or answers nonsense: told, never believed; no key goes to another host."""
        seen = []

        class Answer(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                seen.append((self.path, self.headers.get("Authorization")))
                status, headers, body = self.server.answer
                self.send_response(status)
                for name, value in headers.items():
                    self.send_header(name, value)
                self.end_headers()
                try:
                    self.wfile.write(body)
                except OSError:
                    pass

            do_POST = do_GET

            def log_message(self, *_):
                pass

        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as first, \
                http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as second:
            for server in (first, second):
                threading.Thread(target=server.serve_forever, daemon=True).start()
            second.answer = (200, {}, b'{"object":"billing.balance"}')
            at = ("--server", f"http://127.0.0.1:{first.server_port}")
            balance = b'{"account_id":"id:1","packages":[],"used_units":%s,"overage_units":0}'
            for answer in ((302, {"Location": f"http://127.0.0.1:{second.server_port}/x"}, b""), (200, {}, b""), (200, {}, b"<html>"),
                           (200, {}, b"[]"), (200, {}, b"{}"), (200, {}, balance % b"-1"), (200, {}, balance % b"1e3"),
                           (200, {}, balance % b'"7"'), (200, {}, b"[" * 100000), (500, {}, b'{"error":{}}'),
                           (200, {"Content-Length": "1000"}, b"{"), (200, {}, b" " * (65 << 20))):
                first.answer = answer
                output, message = bill("balance", "ada", *at, expect=1)
                self.assertEqual(output, "")
                self.assertNotIn(ADMIN, message)
            self.assertEqual(len(seen), 12)  # one call each, and none at the second server
            first.answer = (200, {}, b'{"answer":"SURE"}')
            bill("void", "ada", "--package", "o", "--order", "o", *at, expect=1)
            first.answer = (200, {}, balance % b"5000000")
            self.assertEqual(bill_json("balance", "ada", *at)["used_units"], 5000000)
            for server in (first, second):
                server.shutdown()
        self.assertEqual({key for _, key in seen}, {f"Bearer {ADMIN}"})

    def test_wrong_usage(self):
        for words in ((), ("none",), ("topup",), ("topup", "ada", "--order", "1"), ("topup", "ada", "--tokens", "1", "--order", "a b"),
                      ("topup", "a/b", "--tokens", "1", "--order", "1"), ("balance",), ("usage", "--by", "colour", "x"),
                      ("export", "x", "--format", "xml"), ("account", "rename", "ada"), ("key", "create", "extra"),
                      ("topup", "ada", "--tokens", "1.0000001", "--order", "1"), ("audit",), ("probe", "http://x"),
                      ("init", "--redis", "redis://x", "--journal", "y"), ("balance", "ada", "--redis-password", "hunter2")):
            output, message = bill(*words, expect=2)
            self.assertEqual(output, "")
            self.assertRegex(message, r"^millrace bill")
            self.assertNotIn("hunter2", message)
        bill("balance", "ada", expect=1)  # where?
        bill("balance", "ada", "--server", f"http://127.0.0.1:{free_port()}", expect=1)
        bill("audit", self.folder, expect=1)
        for words in ((), ("topup",), ("audit",), ("key",)):
            self.assertIn("usage: millrace bill", bill(*words, "--help")[0])
        self.assertTrue(re.search(r"bill +accounts", subprocess.run([BINARY, "help"], capture_output=True, text=True).stdout))


if __name__ == "__main__":
    unittest.main()
