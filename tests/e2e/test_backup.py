"""The guide's "Backup and restore" (docker/README.md), done: a lost Redis comes back from an older copy, a lost disk of a node from an
older copy of its journal, and what was billed is what is billed."""
import os
import pathlib
import shutil
import signal
import subprocess
import tempfile
import unittest

from harness import Redis, free_port, wait_for
from test_bill import Billed, bill, bill_json, chat


def redis_cli(port, *words):
    return subprocess.run(["redis-cli", "-p", str(port), *words], capture_output=True, text=True, timeout=60, check=True).stdout


class Copy:
    """A Redis over a folder that is there already."""

    def __init__(self, folder, port, appendonly):
        self.port = port
        self.process = subprocess.Popen(
            ["redis-server", "--port", str(port), "--bind", "127.0.0.1", "--dir", folder, "--dbfilename", "dump.rdb", "--appendonly",
             appendonly, "--appendfsync", "always", "--aof-load-truncated", "no", "--maxmemory-policy", "noeviction"],
            stdout=subprocess.DEVNULL)

    def __enter__(self):
        wait_for(lambda: subprocess.run(["redis-cli", "-p", str(self.port), "ping"], capture_output=True).stdout == b"PONG\n",
                 "Redis answers")
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(60)


class Backup(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="millrace-backup-")
        self.addCleanup(shutil.rmtree, self.folder)
        self.journal = os.path.join(self.folder, "journal")

    def begin(self, redis):
        at = ("--redis", redis.url)
        bill("init", *at)
        bill("account", "create", "ada", *at)
        bill("topup", "ada", "--tokens", "100k", "--order", "o-1", *at)
        return at, bill("key", "create", "--account", "ada", *at)[0].strip()

    def spend(self, server, key, count):
        """Units of count answers."""
        total = 0
        for i in range(count):
            status, answer, _ = chat(server, key, text=f"Say {i}.")
            self.assertEqual(status, 200, answer)
            total += answer["usage"]["total_tokens"] * 1000000
        return total

    def test_a_lost_redis_from_an_older_copy(self):
        kept, restored = os.path.join(self.folder, "dump.rdb"), os.path.join(self.folder, "redis")
        with Redis() as redis:
            port = redis.url.rsplit(":", 1)[1]
            at, key = self.begin(redis)
            units = lambda: bill_json("balance", "ada", *at)["used_units"]
            with Billed(self.journal, "--redis", redis.url) as server:
                wait_for(lambda: chat(server, key)[0] == 200, "the first answer")
                self.spend(server, key, 3)
                redis_cli(port, "--rdb", kept)
                self.spend(server, key, 4)
                bill("topup", "ada", "--tokens", "5k", "--order", "o-2", *at)
                wait_for(lambda: server.metric("mr_billing_unapplied_records") == 0, "all in Redis")
                before = bill_json("balance", "ada", *at)

                redis.process.kill()
                redis.process.wait()
                os.mkdir(restored)
                shutil.copy(kept, restored)
                with Copy(restored, free_port(), "yes") as trap:  # what the guide warns of: an RDB file is not read then
                    self.assertEqual(redis_cli(trap.port, "dbsize").strip(), "0")
                shutil.rmtree(restored)
                os.mkdir(restored)
                shutil.copy(kept, restored)
                with Copy(restored, free_port(), "no") as first:
                    self.assertNotEqual(redis_cli(first.port, "dbsize").strip(), "0")
                    redis_cli(first.port, "config", "set", "appendonly", "yes")
                    wait_for(lambda: "aof_rewrite_in_progress:0" in redis_cli(first.port, "info", "persistence")
                             and "aof_rewrite_scheduled:0" in redis_cli(first.port, "info", "persistence"), "the log is written")
                with Copy(restored, int(port), "yes"):
                    wait_for(lambda: units() == before["used_units"], "what came after the copy is sent again", 60)
                    self.assertEqual(bill_json("audit", self.journal, *at)["verdict"], "clean")
                    bill("topup", "ada", "--tokens", "100k", "--order", "o-1", *at)  # in the copy: without effect
                    bill("topup", "ada", "--tokens", "5k", "--order", "o-2", *at)  # not in the copy: given again
                    self.assertEqual(bill_json("balance", "ada", *at)["used_units"], before["used_units"])
                    self.spend(server, key, 1)
                    wait_for(lambda: server.metric("mr_billing_unapplied_records") == 0, "all in Redis")
                    self.assertEqual(bill_json("audit", self.journal, *at)["verdict"], "clean")
                    granted = lambda balance: sorted(package["granted_units"] for package in balance["packages"])
                    self.assertEqual(granted(bill_json("balance", "ada", *at)), granted(before))
                    server.process.send_signal(signal.SIGTERM)
                    server.process.wait(60)

    def test_a_lost_disk_from_an_older_copy(self):
        copy = os.path.join(self.folder, "copy")
        with Redis() as redis:
            at, key = self.begin(redis)
            units = lambda: bill_json("balance", "ada", *at)["used_units"]
            with Billed(self.journal, "--redis", redis.url) as server:
                wait_for(lambda: chat(server, key)[0] == 200, "the first answer")
                self.spend(server, key, 3)
                shutil.copytree(self.journal, copy)  # of a running server
                self.spend(server, key, 4)
                wait_for(lambda: server.metric("mr_billing_unapplied_records") == 0, "all in Redis")
            used = units()
            shutil.rmtree(self.journal)
            shutil.copytree(copy, self.journal)
            bill("adopt", self.journal)
            with Billed(self.journal, "--redis", redis.url) as server:
                wait_for(lambda: chat(server, key)[0] == 200, "the first answer")
                more = self.spend(server, key, 2)
                wait_for(lambda: server.metric("mr_billing_unapplied_records") == 0, "all in Redis")
                self.assertGreaterEqual(units(), used + more)  # the ledger keeps what the copy lacks
            rest = bill_json("audit", self.journal, *at, expect=1)  # and the audit says that no journal proves it any more
            self.assertGreaterEqual(rest["lost"], 4)
            self.assertEqual((rest["double"], rest["mismatch"], rest["unapplied"]), (0, 0, 0))


if __name__ == "__main__":
    unittest.main()
