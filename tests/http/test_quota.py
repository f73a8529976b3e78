"""Packages that bind while tokens flow: limits that rise, answers that end where the package does, holds that come back.
The ledger is in the process; weights are 1, so units are tokens."""
import json
import re
import shutil
import tempfile
import threading

from harness import Reply, Server, completion, equal, error_of, events, main, message, wait_for
from test_admin_port import ask, free_port

ADMIN = {"Authorization": "Bearer adm"}
USER = {"Authorization": "Bearer usr"}
PROMPT_IDS = 5  # "hello" in a vocabulary of bytes


class Billed:
    """A server with packages enforced, whose one key belongs to account `ada`."""

    def __init__(self, *options, tokens=None, **environment):
        self.folder = tempfile.mkdtemp(prefix="quota_")
        self.admin_port = free_port()
        self.keys = tempfile.NamedTemporaryFile("w", suffix=".keys")
        self.keys.write("ada:usr\n")
        self.keys.flush()
        self.server = Server("--journal", self.folder, "--journal-segment-bytes", "1Mi", "--enforce", "prepaid", "--admin-port",
                             self.admin_port, "--admin-key", "adm", "--api-key-file", self.keys.name, *options, **environment)
        try:
            self.admin("accounts", {"name": "ada"})
            if tokens is not None:
                self.topup("o1", tokens)
        except BaseException:
            self.server.process.kill()
            raise

    def admin(self, path, body=None):
        status, reply = ask(self.admin_port, "GET" if body is None else "POST", "/admin/billing/" + path, body, ADMIN)
        equal(status, 200, f"{path} {reply}")
        return reply

    def topup(self, order, tokens, package="p"):
        return self.admin("orders", {"id": order, "account": "ada", "op": "add", "package": package, "tokens": str(tokens)})

    def balance(self):
        return self.admin("accounts/ada")

    def used(self):
        reply = self.balance()
        equal(int(reply["overage_units"]), 0)
        return int(reply["used_units"]) // 1000000

    def complete(self, tokens, **more):
        status, _, body = self.server.ask("POST", "/v1/completions", completion(tokens, **more), USER)
        return status, json.loads(body)

    def __enter__(self):
        return self

    def __exit__(self, kind, value, trace):
        self.server.__exit__(kind, value, trace)
        self.keys.close()
        shutil.rmtree(self.folder, ignore_errors=True)


def test_limits_rise_as_long_as_there_is_money():
    with Billed(tokens=10000) as billed:
        status, reply = billed.complete(2000)
        equal((status, reply["usage"]["completion_tokens"], reply["choices"][0]["finish_reason"]), (200, 2000, "length"))
        equal(reply["choices"][0].get("finish_details"), None)
        equal(billed.used(), PROMPT_IDS + 2000)


def test_an_answer_ends_with_its_package():
    for n, stream in ((1, False), (3, False), (1, True), (3, True)):
        with Billed(tokens=1000) as billed:
            if stream:
                status, _, body = billed.server.ask("POST", "/v1/completions", completion(
                    3000, n=n, stream=True, stream_options={"include_usage": True}), USER)
                chunks = [json.loads(event) for event in events(body) if event != "[DONE]"]
                equal(events(body)[-1], "[DONE]")  # a good end, not an error
                usage = chunks[-1]["usage"]
                ends = [choice for chunk in chunks for choice in chunk["choices"] if choice.get("finish_reason")]
            else:
                status, reply = billed.complete(3000, n=n)
                usage, ends = reply["usage"], reply["choices"]
            equal((status, len(ends)), (200, n))
            for end in ends:
                equal((end["finish_reason"], end["finish_details"]), ("length", {"type": "quota_exhausted"}))
            left = 1000 - PROMPT_IDS - usage["completion_tokens"]
            assert 0 <= left < n, f"{left} tokens left of the package with n={n}"
            equal(billed.used(), 1000 - left)
            status, reply = billed.complete(3000)
            equal((status, reply["error"]["code"]), (402, "insufficient_quota"))
            equal(billed.used(), 1000 - left)
            billed.topup("o2", 50, "q")
            status, reply = billed.complete(10)
            equal((status, reply["usage"]["completion_tokens"]), (200, 10))


def test_choices_that_find_no_room_wait_for_no_money_without_end():
    """One sequence at a time: the first of two choices stands at its limit in the place that the second one needs."""
    for options in (("--max-num-seqs", 1), ()):
        with Billed(*options, tokens=100) as billed:
            status, reply = billed.complete(600, n=2)
            equal((status, [choice["finish_details"]["type"] for choice in reply["choices"]]), (200, ["quota_exhausted"] * 2))
            equal(billed.used(), PROMPT_IDS + reply["usage"]["completion_tokens"])
            assert 40 <= reply["usage"]["completion_tokens"] <= 95, reply["usage"]


def test_many_at_once_on_a_nearly_empty_account():
    with Billed(tokens=2000, NULL_STEP_US=300) as billed:
        replies = []

        def one(i):
            replies.append(billed.complete(40 + i))

        threads = [threading.Thread(target=one, args=(i,)) for i in range(64)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        served = sum(PROMPT_IDS + reply["usage"]["completion_tokens"] for status, reply in replies if status == 200)
        equal({status for status, _ in replies} - {200, 402}, set())
        equal(billed.used(), served)
        assert served <= 2000


def test_a_closed_account_ends_what_runs():
    with Billed(tokens=1000000, NULL_STEP_US=2000) as billed:
        with billed.server.connect() as s:
            s.sendall(message("POST", "/v1/completions", completion(5000, stream=True), USER))
            reply = Reply(s)
            equal(reply.head()[0], 200)
            chunks = reply.chunks()
            got = next(chunks)
            billed.admin("accounts", {"account": "ada", "open": False, "order": "close-ada"})
            for chunk in chunks:
                got += chunk
        last = [json.loads(event) for event in events(got) if event != "[DONE]"][-1]["choices"][0]
        equal(last["finish_details"], {"type": "account_stopped"})
        status, reply = billed.complete(10)
        equal((status, reply["error"]["code"]), (403, "account_closed"))


def test_what_is_held_and_not_used_comes_back():
    with Billed(tokens=600, NULL_STEP_US=5000) as billed:
        with billed.server.connect() as s:  # holds 517 of 600
            s.sendall(message("POST", "/v1/completions", completion(5000, stream=True), USER))
            equal(Reply(s).head()[0], 200)
        wait_for(lambda: billed.server.metric("mr_billing_journal_open_requests") == 0)
        used = billed.used()
        assert PROMPT_IDS < used < 300, used
        status, reply = billed.complete(600 - used - PROMPT_IDS)
        equal((status, reply["usage"]["completion_tokens"]), (200, 600 - used - PROMPT_IDS))
        equal(billed.used(), 600)


def test_a_call_with_two_prompts_is_two_charges():
    with Billed(tokens=500) as billed:
        status, reply = billed.complete(20, prompt=["hello", "he"])
        equal((status, reply["usage"]["prompt_tokens"], reply["usage"]["completion_tokens"]), (200, 7, 40))
        equal(billed.used(), 47)


def test_a_failed_journal_ends_the_process():
    """A folder that takes nothing more: what runs is ended with an error, and the exit code tells the supervisor."""
    with Billed(tokens=1000000, NULL_STEP_US=2000, NULL_SYNC_FAILS=60) as billed:
        with billed.server.connect() as s:
            s.sendall(message("POST", "/v1/completions", completion(5000, stream=True), USER))
            reply, body = Reply(s), b""
            equal(reply.head()[0], 200)
            try:
                for chunk in reply.chunks():
                    body += chunk
                raise AssertionError("the stream looks finished")
            except EOFError:
                pass
        last = json.loads(events(body)[-1])
        equal(last["error"]["type"], "server_error")
        billed.server.wait_exit(3)
        assert billed.server.lines("the journal has failed")


if __name__ == "__main__":
    main(globals())
