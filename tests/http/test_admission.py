"""Who may ask, how often, at what price, and what a repeated request gets: keys of the directory, rate limits, prices and
Idempotency-Key of the real server over the null device, with and without a journal."""
import json
import os
import pathlib
import re
import signal
import socket
import tempfile
import threading

from harness import Reply, Server, completion, equal, error_of, events, main, message, wait_for, WAIT

CANARY = "canary-7f3a9c51e0"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Billing(Server):
    """A billing server with an admin port."""

    def __init__(self, folder, *options, **environment):
        self.folder, self.admin_port = folder, free_port()
        super().__init__("--journal", f"{folder}/journal", "--enforce", "prepaid", "--admin-key", "adm", "--admin-port",
                         self.admin_port, *options, **environment)

    def admin(self, method, path, body=None, expect=200):
        with socket.create_connection(("127.0.0.1", self.admin_port), timeout=WAIT) as s:
            s.sendall(message(method, path, body, {"Authorization": "Bearer adm"}))
            status, _, data = Reply(s).read(method)
        assert status == expect, (status, data)
        return json.loads(data)

    def account(self, name, tokens=0):
        """A new account with a package; its key."""
        self.admin("POST", "/admin/billing/accounts", {"name": name})
        if tokens:
            self.top_up(name, tokens, "first")
        return self.admin("POST", "/admin/billing/keys", {"account": name})

    def top_up(self, name, tokens, order):
        self.admin("POST", "/admin/billing/orders",
                   {"id": f"{name}-{order}", "account": name, "op": "add", "package": order, "tokens": str(tokens)})


def post(server, body, key=None, idempotency=None, **headers):
    given = dict(headers)
    if key:
        given["Authorization"] = f"Bearer {key}"
    if idempotency is not None:
        given["Idempotency-Key"] = idempotency
    return server.ask("POST", "/v1/completions", body, given)


def text_of(body):
    return json.loads(body)["choices"][0]["text"]


def usage_lines(server):
    return server.lines(r"^info \d+ usage ")


# ---- rate limits ----

def test_requests_per_minute():
    with Server("--api-key", "k", "--key-rpm", 3) as server:
        for left in (2, 1, 0):
            status, headers, _ = post(server, completion(2), "k")
            equal((status, headers["x-ratelimit-limit-requests"], headers["x-ratelimit-remaining-requests"]), (200, "3", str(left)))
            assert "x-ratelimit-limit-tokens" not in headers
        status, headers, body = post(server, completion(2), "k")
        error = error_of(body)
        equal((status, error["code"], error["type"]), (429, "rate_limit_exceeded", "requests"))
        assert 1 <= int(headers["retry-after"]) <= 20 and headers["x-ratelimit-remaining-requests"] == "0", headers
        minutes, seconds = re.fullmatch(r"(?:(\d+)m)?(\d+)s", headers["x-ratelimit-reset-requests"]).groups("0")
        assert 40 < int(minutes) * 60 + int(seconds) <= 60, headers  # all three are back a minute after the last, less what has passed
        status, headers, _ = server.ask("GET", "/v1/models", headers={"Authorization": "Bearer k"})
        equal((status, headers["x-ratelimit-limit-requests"]), (200, "3"), "other answers tell it too")


def test_tokens_per_minute_are_corrected_at_the_end():
    with Server("--api-key", "k", "--key-tpm", 1000) as server:
        status, headers, body = post(server, completion(500, stop=["e", "a", "o", "t", "n"]), "k")
        equal(status, 200)
        used = json.loads(body)["usage"]["total_tokens"]
        equal(int(headers["x-ratelimit-remaining-tokens"]), 1000 - 505, "as estimated")
        _, headers, _ = server.ask("GET", "/v1/models", headers={"Authorization": "Bearer k"})
        assert used < 505 and 1000 - used <= int(headers["x-ratelimit-remaining-tokens"]) <= 1000, (used, headers)
    with Server("--api-key", "k", "--key-tpm", 1000, NULL_STEP_US=20000) as server, server.connect() as s:
        s.sendall(message("POST", "/v1/completions", completion(900, stream=True), {"Authorization": "Bearer k"}))
        Reply(s).until(b"data: ")
        status, headers, body = post(server, completion(900), "k")
        equal((status, error_of(body)["type"]), (429, "tokens"))
        assert int(headers["retry-after"]) > 10, headers


def test_concurrency_of_a_key():
    with Server("--api-key", "k", "--api-key", "k2", "--key-concurrency", 2, NULL_STEP_US=20000) as server:
        sockets = [server.connect() for _ in range(2)]
        for s in sockets:
            s.sendall(message("POST", "/v1/completions", completion(200, stream=True), {"Authorization": "Bearer k"}))
            Reply(s).head()
        status, _, body = post(server, completion(2), "k")
        equal((status, error_of(body)["code"]), (429, "rate_limit_exceeded"))
        equal(post(server, completion(2), "k2")[0], 200, "another key's own")
        for s in sockets:
            s.close()
        wait_for(lambda: post(server, completion(2), "k")[0] == 200, lambda: "places never came back")


# ---- Idempotency-Key ----

def test_a_repeated_request_is_answered_again():
    with Server() as server:
        for stream in (False, True):
            body, key = completion(9, stream=stream), f"again {stream}"
            first, second = post(server, body, idempotency=key), post(server, body, idempotency=key)
            equal((first[0], second[0]), (200, 200))
            equal(second[2], first[2], "the same bytes")
            equal((first[1].get("idempotent-replayed"), second[1].get("idempotent-replayed")), (None, "true"))
            equal(second[1]["content-type"], first[1]["content-type"])
            status, _, answer = post(server, completion(10, stream=stream), idempotency=key)
            equal((status, error_of(answer)["code"]), (422, "idempotency_key_reused"))
        assert events(second[2])[-1] == "[DONE]", second
        wait_for(lambda: len(usage_lines(server)) == 2, lambda: "not billed once each")
        equal(post(server, completion(9), idempotency="other")[0], 200)
        wait_for(lambda: len(usage_lines(server)) == 3)


def test_bad_keys_are_refused():
    with Server() as server:
        for key in ("", "k" * 256, "a\x7fb", "\u00e9".encode().decode("latin-1")):
            status, _, body = post(server, completion(2), idempotency=key)
            assert status == 400, (key, status, body)
        with server.connect() as s:
            s.sendall(message("POST", "/v1/completions", completion(2), {"Idempotency-Key": "a", "idempotency-key": "b"}))
            equal(Reply(s).read()[0], 400)
        equal(post(server, completion(2), idempotency="k" * 255)[0], 200)
        wait_for(lambda: len(usage_lines(server)) == 1)


def test_a_second_one_waits_for_the_first():
    for stream in (False, True):
        with Server(NULL_STEP_US=10000) as server:
            answers = []
            ask = lambda: answers.append(post(server, completion(60, stream=stream), idempotency="join"))
            threads = [threading.Thread(target=ask) for _ in range(5)]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
            equal([answer[0] for answer in answers], [200] * 5)
            equal(len({answer[2] for answer in answers}), 1, "five different answers")
            equal(sum("idempotent-replayed" in answer[1] for answer in answers), 4)
            wait_for(lambda: len(usage_lines(server)) == 1)


def test_the_first_goes_on_without_its_client():
    with Server(NULL_STEP_US=5000) as server:
        for stream in (True, False):
            body = completion(100, stream=stream, seed=5)
            with server.connect() as s:
                s.sendall(message("POST", "/v1/completions", body, {"Idempotency-Key": f"left {stream}"}))
                if stream:
                    Reply(s).until(b"data: ")
                else:
                    wait_for(lambda: server.load()["running"] == 1)
            status, _, answer = post(server, body, idempotency=f"left {stream}")
            equal(status, 200)
            whole = post(server, body, idempotency=f"other {stream}")[2]
            text = lambda data: "".join(json.loads(e)["choices"][0]["text"] for e in events(data)[:-1]) if stream else text_of(data)
            equal(text(answer), text(whole), "not the whole answer")
        equal([line for line in usage_lines(server) if "client_gone" in line], [])
        wait_for(lambda: len(usage_lines(server)) == 4)


def test_a_slow_reader_that_leaves_finds_its_answer():
    """All is generated, and most of it not yet sent, when the client goes."""
    body = completion(8000, stream=True, seed=5, logprobs=5)
    with Server() as server:
        with server.connect(receive_buffer=4096) as s:
            s.sendall(message("POST", "/v1/completions", body, {"Idempotency-Key": "slow"}))
            Reply(s).until(b"data: ")
            wait_for(lambda: len(usage_lines(server)) == 1)
            equal(server.load()["server_load"], 1, "it was sent already")
        wait_for(lambda: server.load()["server_load"] == 0)
        status, headers, answer = post(server, body, idempotency="slow")
        equal((status, headers.get("idempotent-replayed")), (200, "true"))
        text = lambda data: "".join(json.loads(e)["choices"][0]["text"] for e in events(data)[:-1])
        equal(text(answer), text(post(server, body, idempotency="other")[2]), "not the whole answer")


def test_without_a_key_the_client_s_leaving_ends_it():
    with Server(NULL_STEP_US=5000) as server:
        with server.connect() as s:
            s.sendall(message("POST", "/v1/completions", completion(2000, stream=True)))
            Reply(s).until(b"data: ")
        wait_for(lambda: len(usage_lines(server)) == 1)
        assert "client_gone" in usage_lines(server)[0]


def test_what_failed_unbilled_may_be_asked_again():
    with Server("--api-key", "k", "--key-concurrency", 1, NULL_STEP_US=10000) as server:
        equal(post(server, {"prompt": 5}, "k", "retry")[0], 400)
        with server.connect() as s:
            s.sendall(message("POST", "/v1/completions", completion(300, stream=True), {"Authorization": "Bearer k"}))
            Reply(s).until(b"data: ")
            equal(post(server, completion(2), "k", "retry")[0], 429)
        wait_for(lambda: post(server, completion(2), "k", "retry")[0] == 200)
        status, headers, _ = post(server, completion(2), "k", "retry")
        equal((status, headers.get("idempotent-replayed")), (200, "true"))


def test_an_account_never_meets_another_s_answer():
    with tempfile.TemporaryDirectory() as folder:
        keys = pathlib.Path(folder, "keys")
        keys.write_text("alice:ka\nbob:kb\n")
        with Server("--api-key-file", keys) as server:
            mine = post(server, completion(5), "ka", "same")
            other = post(server, completion(5), "kb", "same")
            equal((other[0], other[1].get("idempotent-replayed")), (200, None))
            assert json.loads(mine[2])["id"] != json.loads(other[2])["id"]
            equal(post(server, completion(6), "kb", "same")[0], 422)


# ---- with a journal ----

def test_after_a_restart_a_key_is_known():
    with tempfile.TemporaryDirectory() as folder:
        with Billing(folder) as server:
            key = server.account("acme", 100000)["key"]
            done = post(server, completion(5), key, "done")
            equal(done[0], 200)
            call_id = json.loads(done[2])["id"].split("-")[-1]
        with Billing(folder, NULL_STEP_US=20000) as server:
            status, _, body = post(server, completion(5), key, "done")
            equal((status, error_of(body)["code"]), (409, "idempotency_answer_gone"))
            assert call_id in error_of(body)["message"], (call_id, body)
            s = server.connect()
            s.sendall(message("POST", "/v1/completions", completion(500, stream=True),
                              {"Authorization": f"Bearer {key}", "Idempotency-Key": "cut"}))
            Reply(s).until(b"data: ")
            server.process.send_signal(signal.SIGKILL)
            server.wait_exit(-signal.SIGKILL)
            s.close()
        with Billing(folder) as server:  # the one that was cut off is waived: a retry runs
            equal(post(server, completion(500, stream=True), key, "cut")[0], 200)
            equal(post(server, completion(5), key, "done")[0], 409)


def test_prepaid_until_the_package_ends():
    with tempfile.TemporaryDirectory() as folder, Billing(folder, NULL_STEP_US=200) as server:
        key, other = server.account("acme")["key"], server.account("other", 10000)["key"]
        status, _, body = post(server, completion(5), key)
        error = error_of(body)
        equal((status, error["code"], error["type"]), (402, "insufficient_quota", "insufficient_quota"))
        server.top_up("acme", 100, "p1")
        status, _, body = post(server, completion(600), key)  # counts at once
        choice = json.loads(body)["choices"][0]
        equal((status, choice["finish_reason"], choice["finish_details"]), (200, "length", {"type": "quota_exhausted"}))
        equal(json.loads(body)["usage"]["total_tokens"], 100, "not the whole package")
        equal(post(server, completion(5), key)[0], 402)
        equal(post(server, completion(5), other)[0], 200, "another account pays for itself")
        equal((server.metric("mr_billing_refused_quota_total"), server.metric("mr_billing_quota_ends_total")), (2, 1))
        server.top_up("acme", 700, "p2")
        status, _, body = post(server, completion(2000, stream=True), key)
        last = json.loads(events(body)[-2])["choices"][0]
        equal((status, last["finish_reason"], last["finish_details"]["type"]), (200, "length", "quota_exhausted"))
        equal(events(body)[-1], "[DONE]")
        wait_for(lambda: server.admin("GET", "/admin/billing/accounts/acme")["used_units"] == 800 * 10**6,
                 lambda: str(server.admin("GET", "/admin/billing/accounts/acme")))


def test_revoked_and_closed_take_effect_at_once():
    with tempfile.TemporaryDirectory() as folder, Billing(folder, NULL_STEP_US=5000) as server:
        for name, revoke, refusal in (("one", True, (401, "key_revoked")), ("two", False, (403, "account_closed"))):
            made = server.account(name, 100000)
            with server.connect() as s:
                s.sendall(message("POST", "/v1/completions", completion(5000, stream=True),
                                  {"Authorization": f"Bearer {made['key']}"}))
                reply = Reply(s)
                reply.head()
                if revoke:
                    server.admin("POST", "/admin/billing/keys", {"id": made["id"], "revoke": True})
                else:
                    server.admin("POST", "/admin/billing/accounts", {"account": name, "open": False, "order": "close"})
                body = b"".join(reply.chunks())
            last = json.loads(events(body)[-2])["choices"][0]
            equal((last["finish_reason"], last.get("finish_details")), ("length", {"type": "account_stopped"}))
            status, _, body = post(server, completion(5), made["key"])
            equal((status, error_of(body)["code"]), refusal)


def test_a_key_revoked_before_the_body_has_come():
    with tempfile.TemporaryDirectory() as folder, Billing(folder) as server:
        made = server.account("acme", 1000)
        data = message("POST", "/v1/completions", completion(5), {"Authorization": f"Bearer {made['key']}", "Expect": "100-continue"})
        with server.connect() as s:
            s.sendall(data[:-5])
            reply = Reply(s)
            assert b"100 Continue" in reply.until(b"\r\n\r\n")  # its head was let in
            server.admin("POST", "/admin/billing/keys", {"id": made["id"], "revoke": True})
            s.sendall(data[-5:])
            status, _, body = reply.read()
            equal((status, error_of(body)["code"]), (403, "account_closed"))
        equal(server.admin("GET", "/admin/billing/accounts/acme")["used_units"], 0)


def test_keys_and_texts_are_nowhere_in_clear():
    with tempfile.TemporaryDirectory() as folder:
        with Billing(folder, "--log-level", "debug") as server:
            key = server.account("acme", 100000)["key"]
            answers = [post(server, completion(5, prompt=CANARY), key, f"idem-{CANARY}"),
                       post(server, completion(6, prompt=CANARY), key, f"idem-{CANARY}"),
                       post(server, {"prompt": 5}, key), post(server, completion(5), key[:-1])]
            equal([answer[0] for answer in answers], [200, 422, 400, 401])
            server.admin("POST", "/admin/billing/keys", {"id": server.admin("GET", "/admin/billing/keys")["data"][0]["id"],
                                                         "revoke": True})
            answers.append(post(server, completion(5), key))
            equal(answers[-1][0], 401)
        output = text_of(answers[0][2])
        log = "\n".join(server.log)
        for status, headers, body in answers[1:]:
            assert key not in str(headers) + body.decode() and CANARY not in str(headers) + body.decode()
        assert key not in log and key[:-1] not in log and CANARY not in log
        files = [path for path in pathlib.Path(folder).rglob("*") if path.is_file()]
        assert len(files) >= 2, files
        for path in files:
            data = path.read_bytes()
            for secret in (key, key[3:], CANARY, output) if len(output) > 3 else (key, key[3:], CANARY):
                assert secret.encode() not in data, path


def test_prices_and_their_reload():
    price = "version: {}\ndefault: [class=0, input=1, cached=0.1, output={}]\n"
    with tempfile.TemporaryDirectory() as folder:
        prices = pathlib.Path(folder, "prices.yaml")
        prices.write_text(price.format(1, 2.5))
        with Billing(folder, "--prices", prices, "--no-enable-prefix-caching") as server:
            key = server.account("acme", 100000)["key"]
            used = lambda: server.admin("GET", "/admin/billing/accounts/acme")["used_units"]
            equal(post(server, completion(4), key)[0], 200)
            wait_for(lambda: used() == 5 * 10**6 + 4 * 2500000, lambda: str(used()))
            for bad, count in ((price.format(1, 7), 1), ("version: 2\n", 2)):
                prices.write_text(bad)
                server.process.send_signal(signal.SIGHUP)
                server.wait_log(r"prices kept version=1", count)
            prices.write_text(price.format(2, "0.000001"))
            server.process.send_signal(signal.SIGHUP)
            server.wait_log(r"prices reloaded version=2")
            before = used()
            equal(post(server, completion(4), key)[0], 200)
            wait_for(lambda: used() == before + 5 * 10**6 + 4, lambda: str(used()))


def test_a_directory_that_is_lost_opens_nothing():
    with tempfile.TemporaryDirectory() as folder, Billing(folder) as server:
        key = server.account("acme", 1000)["key"]
        server.top_up("default", 1000, "p")
        os.rename(f"{folder}/journal/directory.jsonl", f"{folder}/lost")
        server.wait_log(r"directory kept reason=\"the ledger has no key any more, and had 1\"")
        equal((post(server, completion(5))[0], post(server, completion(5), key)[0]), (401, 200))
        os.rename(f"{folder}/lost", f"{folder}/journal/directory.jsonl")
        other = server.account("other", 1000)["key"]  # it is read again
        equal((post(server, completion(5), other)[0], post(server, completion(5), key)[0]), (200, 200))


def test_usage_calls_without_end_do_not_keep_a_revocation_away():
    """The directory is changed beside the server, as another node would; a commit that takes long keeps the queue full."""
    with tempfile.TemporaryDirectory() as folder:
        lines = pathlib.Path(folder, "journal", "directory.jsonl")
        with Billing(folder, NULL_STEP_US=200000, NULL_SYNC_US=150000) as server:
            made, other = server.account("acme", 1000), server.account("steady", 1000)["key"]
            usage = message("GET", "/v1/usage", None, {"Authorization": f"Bearer {made['key']}"})
            seen, stop = [], threading.Event()

            def flood():
                with server.connect() as s:
                    reply = Reply(s)
                    while not stop.is_set():
                        s.sendall(usage)
                        seen.append(reply.read("GET")[0])
                        if seen[-1] == 401:
                            return

            with server.connect() as s:
                s.sendall(message("POST", "/v1/completions", completion(900, stream=True), {"Authorization": f"Bearer {other}"}))
                Reply(s).until(b"data: ")
                threads = [threading.Thread(target=flood) for _ in range(8)]
                for thread in threads:
                    thread.start()
                wait_for(lambda: len(seen) >= 8)
                version, rest = lines.read_text().split("\n", 1)
                before, after = rest.split(made["id"], 1)
                after = made["id"] + after.replace('"active"', '"revoked"', 1)
                whole = pathlib.Path(folder, "new")
                whole.write_text(f'["",{int(version[4:-1]) + 1}]\n' + before + after)
                whole.rename(lines)
                try:
                    wait_for(lambda: seen[-1] == 401, lambda: f"still let in after {len(seen)} calls")
                finally:
                    stop.set()
                    for thread in threads:
                        thread.join()


def test_a_directory_closes_an_open_server():
    with tempfile.TemporaryDirectory() as folder, Billing(folder) as server:
        server.admin("POST", "/admin/billing/orders",
                     {"id": "o", "account": "default", "op": "add", "package": "p", "tokens": "1000"})
        equal(post(server, completion(5))[0], 200, "without any key everybody is default")
        server.account("acme")
        equal(post(server, completion(5))[0], 401)


if __name__ == "__main__":
    main(dict(globals()))
