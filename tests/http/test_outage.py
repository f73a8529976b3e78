"""What requests get while Redis is away, by --on-outage: leases and credit first, then 503, and service again when it is back.
Needs redis-server; a server of its own on a free port, ended by its process."""
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time

from harness import Reply, completion, equal, error_of, main, message, wait_for
from test_admission import Billing, free_port, post


class Redis:
    def __init__(self, folder):
        self.port = free_port()
        self.command = ["redis-server", "--port", str(self.port), "--bind", "127.0.0.1", "--appendonly", "yes", "--save", "",
                        "--aof-load-truncated", "no", "--maxmemory-policy", "noeviction", "--dir", folder]
        self.start()

    def start(self):
        self.process = subprocess.Popen(self.command, stdout=subprocess.DEVNULL)
        wait_for(self.answers, lambda: "redis-server does not start")

    def answers(self):
        with socket.socket() as s:
            return s.connect_ex(("127.0.0.1", self.port)) == 0

    def kill(self):
        self.process.kill()
        self.process.wait()


def with_redis(policy, body):
    with tempfile.TemporaryDirectory() as folder:
        redis = Redis(folder)
        try:
            url = f"redis://127.0.0.1:{redis.port}"
            subprocess.run([os.environ["MILLRACE_BINARY"], "bill", "init", "--redis", url], check=True, stdout=subprocess.DEVNULL)
            with Billing(folder, "--redis", url, "--on-outage", policy, "--outage-window", 30) as server:
                key = server.account("acme", 1000)["key"]
                equal([post(server, completion(5), key)[0] for _ in range(2)], [200, 200])
                redis.kill()
                body(server, key)
                redis.start()
                wait_for(lambda: post(server, completion(5), key)[0] == 200, lambda: "no service after the outage")
        finally:
            redis.kill()


def refused(server, key):
    status, headers, body = post(server, completion(5), key)
    equal((status, error_of(body)["code"]), (503, "billing_unavailable"))
    assert int(headers["retry-after"]) >= 1, headers


def test_reject():
    with_redis("reject", refused)


def test_continue_gives_the_window_and_no_more():
    def body(server, key):  # of 30 tokens; ten a request, and no lease is left
        equal([post(server, completion(5), key)[0] for _ in range(3)], [200] * 3)
        refused(server, key)
        equal(server.metric("mr_billing_outage_units_total"), 30e6)
    with_redis("continue", body)


def test_retry_waits_then_refuses():
    def body(server, key):
        began = time.monotonic()
        refused(server, key)
        assert time.monotonic() - began >= 9, "it did not wait for the ledger"
    with_redis("retry", body)


def test_a_dead_nodes_lease_comes_back():
    """Of a package of 1,000 a node that is killed holds a part. Once that lease is long over (here by hand), another node that
    finds nothing left has it returned, and serves again."""
    with tempfile.TemporaryDirectory() as folder:
        redis = Redis(folder)
        try:
            url = f"redis://127.0.0.1:{redis.port}"

            def cli(*words):
                return subprocess.run(["redis-cli", "-p", str(redis.port), *words], check=True, capture_output=True,
                                      text=True).stdout.split()

            subprocess.run([os.environ["MILLRACE_BINARY"], "bill", "init", "--redis", url], check=True, stdout=subprocess.DEVNULL)
            os.mkdir(folder + "/a")
            os.mkdir(folder + "/b")
            with Billing(folder + "/a", "--redis", url) as server:
                key = server.account("acme", 1000)["key"]
                other = Billing(folder + "/b", "--redis", url, NULL_STEP_US=3000)
                wait_for(lambda: post(other, completion(1), key)[0] == 200, lambda: "the other node does not serve")
                with other.connect() as s:
                    s.sendall(message("POST", "/v1/completions", completion(900, stream=True), {"Authorization": f"Bearer {key}"}))
                    equal(Reply(s).head()[0], 200)
                    other.process.kill()
                    other.process.wait()
                wait_for(lambda: post(server, completion(300), key)[0] == 402, lambda: "the dead node's lease is spent by another")
                (account,) = cli("--scan", "--pattern", "mr:*:a:*")
                fields = cli("HKEYS", account)
                expiries = [field for field in fields if field.startswith("X:")]
                held = {field.split(":")[1] for field in fields if field.startswith("L:")}
                assert held, fields
                for field in expiries:
                    cli("HSET", account, field, "1")
                wait_for(lambda: post(server, completion(5), key)[0] == 200, lambda: "the lease has not come back")
        finally:
            redis.kill()


if __name__ == "__main__":
    if not shutil.which("redis-server"):
        print("skipped: redis-server is not installed")
        sys.exit(77)
    main(dict(globals()))
