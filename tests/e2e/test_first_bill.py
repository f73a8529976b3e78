"""The walk of README.md's section "Billing", as a new user does it: start Redis and the server, make an account and a key, top it
up, chat until the package runs out, read the bill, audit it; then top up again, restart, and audit once more.

Every amount is compared with what the answers' `usage` said. The same walk without Redis goes through the server's admin port.
"""
import json
import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import openai

from harness import BINARY, NAME, Redis, Server, free_port, wait_for

PACKAGE = 600  # tokens
QUESTION = [{"role": "user", "content": "Tell me a story about a mill, a river and a clever miller."}]


def bill(*arguments, code=0, env=None):
    """What `millrace bill ...` prints; parsed when asked for as JSON."""
    done = subprocess.run([BINARY, "bill", *arguments], capture_output=True, text=True, timeout=60, env={**os.environ, **(env or {})})
    assert done.returncode == code, f"bill {' '.join(arguments)}: exit {done.returncode}\n{done.stdout}{done.stderr}"
    return json.loads(done.stdout) if "--json" in arguments and code == 0 else done.stdout + done.stderr


class Sum:
    """What the answers said they used."""

    def __init__(self):
        self.prompt = self.completion = self.calls = 0

    def add(self, usage):
        self.prompt += usage.prompt_tokens
        self.completion += usage.completion_tokens
        self.calls += 1

    @property
    def units(self):
        return (self.prompt + self.completion) * 1_000_000


def chat_until_empty(server, key, sums):
    """Asks until the package is used up: (the last answer's finish reason, the refusal)."""
    client, finish = openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0), None
    for _ in range(PACKAGE):
        try:
            answer = client.chat.completions.create(model=NAME, messages=QUESTION, max_tokens=100, temperature=0)
        except openai.APIStatusError as error:
            return finish, error
        sums.add(answer.usage)
        finish = answer.choices[0].finish_reason
    raise AssertionError("the package never ran out")


class FirstBill(unittest.TestCase):
    def setUp(self):
        self.folder = pathlib.Path(tempfile.mkdtemp(prefix="first-bill-"))
        self.addCleanup(shutil.rmtree, self.folder)
        self.journal = str(self.folder / "journal")

    def account(self, ledger, env):
        """An account with a key and a package: the key."""
        bill("account", "create", "ada", *ledger, env=env)
        key = bill("key", "create", "--account", "ada", "--json", *ledger, env=env)["key"]
        for _ in range(2):  # the second changes nothing
            bill("topup", "ada", "--tokens", str(PACKAGE), "--order", "first", *ledger, env=env)
        self.assertEqual(bill("balance", "ada", "--json", *ledger, env=env)["available_units"], PACKAGE * 1_000_000)
        return key

    def use_up(self, server, key, sums, ledger, env):
        finish, error = chat_until_empty(server, key, sums)
        self.assertEqual((error.status_code, error.code), (402, "insufficient_quota"), error)
        self.assertEqual(finish, "length")
        self.assertLessEqual(sums.units, PACKAGE * 1_000_000)
        # The ledger hears of a record a moment after the client.
        wait_for(lambda: self.balance(ledger, env)["used_units"] == sums.units,
                   f"the ledger does not come to {sums.units}: {self.balance(ledger, env)}")
        self.assertEqual(self.balance(ledger, env)["overage_units"], 0)

    def balance(self, ledger, env):
        return bill("balance", "ada", "--json", *ledger, env=env)

    def read_bill(self, sums, ledger_of_audit, code=0):
        """usage and audit of the journal agree with the answers."""
        rows = bill("usage", self.journal, "--by", "account,model", "--json")["data"]
        self.assertEqual([(r["input_tokens"], r["output_tokens"], r["num_model_requests"], r["charged_units"]) for r in rows],
                         [(sums.prompt, sums.completion, sums.calls, sums.units)])
        bill("audit", self.journal, *ledger_of_audit, code=code)

    def test_with_redis(self):
        sums = Sum()
        with Redis() as redis:
            ledger = ["--redis", redis.url]
            options = ["--journal", self.journal, "--redis", redis.url, "--enforce", "prepaid"]
            bill("init", *ledger)
            key = self.account(ledger, None)
            with Server(*options) as server:
                self.assertEqual(server.post("/v1/chat/completions", {"messages": QUESTION})[0], 401)
                self.use_up(server, key, sums, ledger, None)
                status, usage = server.get("/v1/usage", {"Authorization": f"Bearer {key}"})
                self.assertEqual(status, 200, usage)
            self.read_bill(sums, ledger)
            bill("topup", "ada", "--tokens", "300", "--order", "second", *ledger)
            with Server(*options) as server:
                finish, error = chat_until_empty(server, key, sums)
                self.assertEqual(error.status_code, 402)
            balance = self.balance(ledger, None)
            self.assertEqual((balance["used_units"], balance["overage_units"]), (sums.units, 0))
            self.assertLessEqual(sums.units, (PACKAGE + 300) * 1_000_000)
            self.read_bill(sums, ledger)

    def test_in_process(self):
        sums, port = Sum(), free_port()
        env = {"MILLRACE_ADMIN_KEY": "operator"}
        ledger = ["--server", f"http://127.0.0.1:{port}"]
        options = ["--journal", self.journal, "--enforce", "prepaid", "--admin-port", str(port)]
        with Server(*options, env=env) as server:
            key = self.account(ledger, env)
            self.use_up(server, key, sums, ledger, env)
        self.read_bill(sums, [])
        with Server(*options, env=env) as server:  # what was used up stays used up
            self.assertEqual(chat_until_empty(server, key, Sum())[1].status_code, 402)
        self.read_bill(sums, [])


if __name__ == "__main__":
    unittest.main()
