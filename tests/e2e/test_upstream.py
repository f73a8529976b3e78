"""Models of other servers (--upstreams): a second millrace behind the first, through the openai client, with the bills of
both compared; and servers in Python that break every rule."""
import http.client
import http.server
import json
import os
import shutil
import socket
import ssl
import subprocess
import tempfile
import threading
import unittest

import openai

from harness import BINARY, NAME, Server, free_port, wait_for
from test_batches import ended, results, run

FAR, KEY, FAR_KEY, ADMIN = "far/smol", "front-key-1", "far-secret-2", "admin-secret"
CHAT = {"model": FAR, "max_tokens": 12, "temperature": 0, "messages": [{"role": "user", "content": "Count to ten."}]}
AUTH = {"Authorization": f"Bearer {KEY}"}
LONG = {**CHAT, "max_tokens": 900, "messages": [{"role": "user", "content": "Write a very long story about the sea."}],
        "stream": True}
USAGE = {"prompt_tokens": 5, "completion_tokens": 3, "total_tokens": 8}


def records(folder):
    """Charges of a journal at rest, as dicts."""
    done = subprocess.run([BINARY, "bill", "export", folder], capture_output=True, text=True, check=True, timeout=60)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    return sorted((line for line in lines if line["kind"] in ("F", "W")), key=lambda line: line["lsn"])


def audit(folder):
    done = subprocess.run([BINARY, "bill", "audit", folder, "--json"], capture_output=True, text=True, timeout=60)
    return json.loads(done.stdout)["verdict"]


def counts(record):
    return record["input_tokens"], record["input_cached_tokens"], record["output_tokens"]


class Fake(http.server.BaseHTTPRequestHandler):
    """A server that answers as its class says: answer(self, body) writes the whole of it, head and all."""
    protocol_version = "HTTP/1.1"

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append((self.path, dict(self.headers), body))
        self.close_connection = True
        try:
            self.server.answer(self, body)
        except OSError:
            self.server.left.set()  # whom we answer has gone

    def log_message(self, *_):
        pass

    def raw(self, status, text, kind="application/json", length=None):
        data = text if isinstance(text, bytes) else text.encode()
        self.wfile.write(f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: "
                         f"{len(data) if length is None else length}\r\n\r\n".encode() + data)

    def stream(self, *events):
        self.wfile.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nConnection: close\r\n\r\n")
        for event in events:
            self.say(event)

    def say(self, event):
        self.wfile.write(b"data: " + (event if isinstance(event, str) else json.dumps(event)).encode() + b"\n\n")
        self.wfile.flush()


def chunk(text=None, finish=None, **more):
    return {"id": "far-id", "object": "chat.completion.chunk", "created": 1, "model": "far-name",
            "choices": [{"index": 0, "delta": {"content": text} if text else {}, "finish_reason": finish}], **more}


class Front:
    """A server with one upstream: another (its port), or a Fake that answers by `answer`."""

    def __init__(self, case, port=None, answer=None, options=(), row="", journal=True, host="127.0.0.1",
                 tls=None):
        self.folder = tempfile.mkdtemp(prefix="millrace-upstream-")
        case.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.journal = os.path.join(self.folder, "journal")
        if answer:
            self.fake = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Fake)
            self.fake.daemon_threads = True
            if tls:
                context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
                context.load_cert_chain(*tls)
                self.fake.socket = context.wrap_socket(self.fake.socket, server_side=True)
                self.fake.handle_error = lambda *_: None  # who does not trust us hangs up
            self.fake.seen, self.fake.left, self.fake.answer = [], threading.Event(), answer
            threading.Thread(target=self.fake.serve_forever, daemon=True).start()
            case.addCleanup(self.fake.server_close)
            case.addCleanup(self.fake.shutdown)
            port = self.fake.server_port
        key_file, file = os.path.join(self.folder, "key"), os.path.join(self.folder, "upstreams.yaml")
        with open(key_file, "w") as out:
            out.write(FAR_KEY + "\n")
        with open(file, "w") as out:
            out.write(f"far: [\"url={'https' if tls else 'http'}://{host}:{port}/v1\", key_file={key_file}{row}]\n"
                      f"{FAR}: [upstream=far, as={NAME}, context=2048, output=1000]\n")
        bills = ("--journal", self.journal, "--journal-segment-bytes", "1Mi") if journal else ()
        self.server = Server("--api-key", KEY, *bills, "--upstreams", file, *options)

    def __enter__(self):
        self.server.__enter__()
        self.server.front = self
        return self.server

    def __exit__(self, *what):
        self.server.__exit__(*what)
        assert FAR_KEY not in self.server.last_log, "the upstream's key is in the log"


def client_of(server):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=KEY, max_retries=0, timeout=120)


def outcome(server, name):
    return server.metric("mr_upstream_requests_total", upstream="far", outcome=name)


def begin_stream(server, body, until=b"data: "):
    """A connection that has read until its stream has begun."""
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json", **AUTH})
    answer = connection.getresponse()
    read = b""
    while until not in read:
        read += answer.read1(4096)
    return connection, answer, read


class Relayed(unittest.TestCase):
    """Through a real one."""

    def setUp(self):
        self.far_journal = tempfile.mkdtemp(prefix="millrace-far-")
        self.addCleanup(shutil.rmtree, self.far_journal, ignore_errors=True)

    def far(self, **more):
        return Server("--api-key", FAR_KEY, "--journal", self.far_journal, "--journal-segment-bytes", "1Mi", **more)

    def test_lines_of_batches_are_refused(self):
        """U1, and the batch says so before it begins or line by line; nothing is asked or billed."""
        with self.far() as far, tempfile.TemporaryDirectory() as folder, Front(self, far.port, options=("--batch-dir", folder)) as server:
            client = client_of(server)
            line = {"custom_id": "one", "method": "POST", "url": "/v1/chat/completions", "body": CHAT}
            batch = run(client, json.dumps(line).encode(), endpoint="/v1/chat/completions")
            batch = ended(client, batch)
            told = batch.errors.data[0].code if batch.status == "failed" else results(
                client, batch.error_file_id)[0]["response"]["body"]["error"]["code"]
            self.assertEqual(told, "model_is_upstream", batch)
            self.assertEqual(sum(outcome(server, name) for name in ("done", "refused", "error", "canceled")), 0)
            journal = server.front.journal
        self.assertEqual(records(journal), [])

    def test_answers_and_bills_are_the_same(self):
        with self.far() as far, Front(self, far.port) as server:
            client, direct = client_of(server), openai.OpenAI(base_url=far.url + "/v1", api_key=FAR_KEY, max_retries=0)
            listed = {m.id: m for m in client.models.list()}
            self.assertEqual(listed[FAR].owned_by, "far")
            self.assertEqual(listed[NAME].owned_by, "millrace")
            self.assertEqual(client.models.retrieve(FAR).id, FAR)
            with self.assertRaises(openai.NotFoundError) as caught:
                client.chat.completions.create(**{**CHAT, "model": "nobody"})
            self.assertEqual(caught.exception.code, "model_not_found")
            self.assertIn(FAR, caught.exception.message)

            ids, wanted = [], direct.chat.completions.create(**{**CHAT, "model": NAME})
            whole = client.chat.completions.create(**CHAT)
            self.assertEqual(whole.choices[0].message.content, wanted.choices[0].message.content)
            self.assertEqual((whole.model, whole.usage.prompt_tokens, whole.usage.completion_tokens),
                             (FAR, wanted.usage.prompt_tokens, wanted.usage.completion_tokens))
            ids.append(whole.id)
            for asked in (False, True):
                more = {"stream_options": {"include_usage": True}} if asked else {}
                chunks = list(client.chat.completions.create(**CHAT, stream=True, **more))
                text = "".join(c.choices[0].delta.content or "" for c in chunks if c.choices)
                self.assertEqual(text, wanted.choices[0].message.content)
                self.assertEqual({(c.id, c.model) for c in chunks}, {(chunks[0].id, FAR)})
                self.assertEqual([bool(c.usage) for c in chunks], [False] * (len(chunks) - asked) + [True] * asked)
                ids.append(chunks[0].id)
            several = client.completions.create(model=FAR, prompt=["One, two,", "Red, green,"], n=2, max_tokens=5)
            self.assertEqual([c.index for c in several.choices], [0, 1, 2, 3])
            ids.append(several.id)
            again = [client.chat.completions.create(**CHAT, extra_headers={"Idempotency-Key": "k"}) for _ in range(2)]
            self.assertEqual(again[0], again[1])
            ids.append(again[0].id)
            local = client.chat.completions.create(**{**CHAT, "model": NAME})
            self.assertEqual(local.choices[0].message.content, wanted.choices[0].message.content)
            with self.assertRaises(openai.BadRequestError):
                client.chat.completions.create(**{**CHAT, "max_tokens": 1001})
            with self.assertRaises(openai.BadRequestError) as caught:  # the upstream's own judgement
                client.chat.completions.create(**{**CHAT, "temperature": 99})
            self.assertEqual(caught.exception.code, "upstream_refused")
            self.assertIn("temperature", caught.exception.message)
            self.assertEqual(server.post("/tokenize", {"model": FAR, "prompt": "a"}, AUTH)[1]["error"]["code"], "model_is_upstream")
            self.assertEqual((outcome(server, "done"), outcome(server, "refused")), (5, 1))
            self.assertEqual(server.metric("mr_upstream_seconds_count", upstream="far"), 6)
            front = server.front
        ours = [r for r in records(front.journal) if r["model"] == FAR]
        theirs = records(self.far_journal)[1:]  # the first was asked directly
        self.assertEqual([r["charge_id"] for r in ours], [i.split("-")[1] for i in ids])
        self.assertTrue(all(r["kind"] == "F" and not r["flags"] for r in ours))
        self.assertEqual([counts(r) for r in ours[:3]], [counts(r) for r in theirs[:3]])
        self.assertEqual(counts(ours[4]), counts(theirs[5]))
        self.assertEqual(counts(ours[3]), tuple(map(sum, zip(counts(theirs[3]), counts(theirs[4])))))
        self.assertEqual(sum(r["charged_units"] for r in ours), sum(r["charged_units"] for r in theirs))
        self.assertEqual((audit(front.journal), audit(self.far_journal)), ("clean", "clean"))

    def test_the_client_leaves(self):
        """The upstream is told so; what had come is charged, as counted by who counts continuously."""
        for row in (", counts=continuous", ""):
            with self.far() as far, Front(self, far.port, row=row) as server:
                connection, *_ = begin_stream(server, LONG, until=b'"content":"')
                connection.close()
                wait_for(lambda: outcome(server, "client_gone") == 1, "the call is cancelled")
                far.wait_idle()
                front = server.front
            ours, = records(front.journal)
            theirs = records(self.far_journal)[-1]
            self.assertEqual((ours["kind"], ours["cause"], theirs["cause"]), ("F", "client_gone", "client_gone"))
            self.assertEqual(ours["flags"], "" if row else "estimated")
            self.assertEqual(ours["input_tokens"], theirs["input_tokens"] if row else 0)
            self.assertGreater(ours["output_tokens"], 0)
            self.assertLessEqual(ours["output_tokens"], theirs["output_tokens"])
            self.assertEqual(audit(front.journal), "clean")

    def test_the_upstream_is_killed(self):
        with self.far(expect_exit=-9) as far, Front(self, far.port) as server:
            _, answer, read = begin_stream(server, LONG, until=b'"content":"')
            far.process.kill()
            try:
                read += answer.read()
            except http.client.IncompleteRead as error:
                read += error.partial
            self.assertIn(b"upstream_cut", read)
            self.assertNotIn(b"[DONE]", read)
            far.process.wait()
            status, error, _ = server.post("/v1/chat/completions", CHAT, AUTH)
            self.assertEqual((status, error["error"]["code"]), (502, "upstream_unreachable"))
            self.assertEqual(server.post("/v1/chat/completions", {**CHAT, "model": NAME}, AUTH)[0], 200)
            front = server.front
        ours, local = records(front.journal)
        self.assertEqual((ours["kind"], ours["cause"], ours["charged_units"], local["kind"]), ("W", "platform_error", 0, "F"))
        self.assertEqual(audit(front.journal), "clean")

    def test_drain_in_the_middle(self):
        with self.far() as far, Front(self, far.port, options=("--shutdown-timeout", "0.2")) as server:
            _, answer, read = begin_stream(server, LONG, until=b'"content":"')
            server.process.terminate()
            try:
                read += answer.read()
            except http.client.IncompleteRead as error:
                read += error.partial
            self.assertIn(b"draining", read)
            server.process.wait(60)
            front = server.front
        ours, = records(front.journal)
        self.assertEqual((ours["kind"], ours["cause"]), ("W", "platform_cancel"))
        self.assertEqual(audit(front.journal), "clean")

    def test_packages(self):
        """Prepaid: nothing without a package; near its end so many tokens as it pays for; never more."""
        def bill(*words):
            return subprocess.run([BINARY, "bill", *words], capture_output=True, text=True, check=True, timeout=60,
                                  env={**os.environ, "MILLRACE_ADMIN_KEY": ADMIN}).stdout
        with self.far() as far:
            port = str(free_port())
            front = Front(self, far.port, options=("--enforce", "prepaid", "--admin-port", port))
            front.server.env = {"MILLRACE_ADMIN_KEY": ADMIN}
            with front as server:
                at = ("--server", f"http://127.0.0.1:{port}")
                status, error, _ = server.post("/v1/chat/completions", CHAT, AUTH)
                self.assertEqual((status, error["error"]["code"]), (402, "insufficient_quota"))
                bill("account", "create", "default", *at)
                bill("topup", "default", "--tokens", "700", "--order", "o-1", *at)
                asked = {**CHAT, "max_tokens": 300, "messages": [{"role": "user", "content": "Tell a story."}]}
                told = 0
                status, answer, _ = server.post("/v1/chat/completions", asked, AUTH)
                self.assertEqual(status, 200)
                told += answer["usage"]["total_tokens"]
                for _ in range(50):
                    status, answer, _ = server.post("/v1/chat/completions", asked, AUTH)
                    if status != 200:
                        break
                    told += answer["usage"]["total_tokens"]
                self.assertEqual((status, answer["error"]["code"]), (402, "insufficient_quota"))
                balance = json.loads(bill("balance", "default", "--json", *at))
                self.assertEqual((balance["used_units"], balance["overage_units"]), (told * 1000000, 0))
                self.assertLessEqual(told, 700)
        self.assertEqual(audit(front.journal), "clean")


class Hostile(unittest.TestCase):
    """Through servers that do not keep to it. Whatever they do: a clear error, nothing charged, and the next call works."""

    def refusals(self, answer, status, code, name, streams=(False, True), row=""):
        with Front(self, answer=answer, row=row) as server:
            for stream in streams:
                got, error, _ = server.post("/v1/chat/completions", {**CHAT, "stream": stream}, AUTH)
                self.assertEqual((got, error["error"]["code"]), (status, code), error)
                self.assertNotIn(FAR_KEY, json.dumps(error))
            self.assertEqual(outcome(server, name), len(streams))
            self.assertEqual(server.metric("mr_upstream_running", upstream="far"), 0)
            front = server.front
        self.assertEqual(records(front.journal), [])

    def test_statuses(self):
        for status, want, code, name in ((400, 400, "upstream_refused", "refused"), (401, 502, "upstream_error", "error"),
                                         (404, 502, "upstream_error", "error"), (429, 503, "upstream_busy", "error"),
                                         (500, 502, "upstream_error", "error"), (302, 502, "upstream_error", "error")):
            self.refusals(lambda fake, _, s=status: fake.raw(s, json.dumps({"error": {"message": f"no {FAR} key"}})),
                          want, code, name)

    def test_wrong_key_of_a_real_one(self):
        with Server("--api-key", "another") as far, Front(self, far.port) as server:
            status, error, _ = server.post("/v1/chat/completions", CHAT, AUTH)
            self.assertEqual((status, error["error"]["code"]), (502, "upstream_error"))

    def test_garbage(self):
        self.refusals(lambda fake, _: fake.raw(200, "<html>hello</html>"), 502, "upstream_garbage", "garbage", (False,))
        self.refusals(lambda fake, _: fake.raw(200, "<html>hello</html>"), 502, "upstream_cut", "cut", (True,))
        self.refusals(lambda fake, _: fake.stream("hello"), 502, "upstream_garbage", "garbage", (True,))
        self.refusals(lambda fake, _: fake.wfile.write(os.urandom(5000)), 502, "upstream_unreachable", "unreachable")
        self.refusals(lambda fake, _: fake.raw(200, '{"choices":[{}]}', length=10**6), 502, "upstream_cut", "cut")
        self.refusals(lambda fake, _: fake.stream({"error": {"message": "x"}}), 502, "upstream_error", "error", (True,))

    def test_without_usage(self):
        body = json.dumps({"choices": [{"message": {"content": "free?"}, "finish_reason": "stop"}]})
        self.refusals(lambda fake, _: fake.raw(200, body), 502, "upstream_no_usage", "no_usage", (False,))
        with Front(self, answer=lambda fake, _: fake.stream(chunk("free?"), chunk(finish="stop"), "[DONE]")) as server:
            with self.assertRaises(openai.APIError) as caught:
                list(client_of(server).chat.completions.create(**CHAT, stream=True))
            self.assertIn("has not told what its answer used", str(caught.exception))
            front = server.front
        waived, = records(front.journal)
        self.assertEqual((waived["kind"], waived["output_tokens"], waived["flags"]), ("W", 1, "estimated"))

    def test_floods(self):
        def flood(fake, _):
            fake.wfile.write(b"HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n")
            while True:
                fake.wfile.write(b"a" * 65536)
        self.refusals(flood, 502, "upstream_too_long", "too_long")

    def test_silence(self):
        over = threading.Event()
        self.addCleanup(over.set)
        self.refusals(lambda fake, _: over.wait(60), 504, "upstream_timeout", "timeout", (False,), row=", timeout=1")

    def test_what_it_is_sent(self):
        """Its key and not the client's; usage is asked for; of what it tells too much is charged as asked for (U4)."""
        usage = {**USAGE, "completion_tokens": 1000}
        with Front(self, answer=lambda fake, _: fake.stream(chunk("a"), chunk(finish="stop"), {**chunk(), "choices": [],
                                                            "usage": usage}, "[DONE]")) as server:
            chunks = list(client_of(server).chat.completions.create(**CHAT, stream=True, stream_options={"include_usage": True}))
            path, headers, body = server.front.fake.seen[0]
            front = server.front
        self.assertEqual((path, headers["Authorization"]), ("/v1/chat/completions", f"Bearer {FAR_KEY}"))
        self.assertNotIn(KEY, json.dumps([headers, body]))
        self.assertEqual((body["model"], body["stream_options"], body["max_tokens"]), (NAME, {"include_usage": True}, 12))
        self.assertEqual(chunks[-1].usage.completion_tokens, 12)
        self.assertNotIn("far-name", str(chunks))
        charged, = records(front.journal)
        self.assertEqual((charged["kind"], charged["output_tokens"], charged["flags"]), ("F", 12, "mismatch"))
        self.assertEqual(audit(front.journal), "clean")

    def test_who_hangs_up_at_the_last_chunk(self):
        """U7: the usage behind it is waited for, and charged."""
        go = threading.Event()
        self.addCleanup(go.set)

        def answer(fake, _):
            fake.stream(chunk("a"), chunk(finish="stop"))
            go.wait(60)
            fake.say({**chunk(), "choices": [], "usage": USAGE})
            fake.say("[DONE]")
        with Front(self, answer=answer) as server:
            connection, *_ = begin_stream(server, {**CHAT, "stream": True}, until=b'"finish_reason":"stop"')
            connection.close()
            wait_for(lambda: server.metric("mr_connections") <= 1, "the client is gone")
            go.set()
            wait_for(lambda: outcome(server, "done") == 1, "its usage has come")
            front = server.front
        charged, = records(front.journal)
        self.assertEqual((charged["kind"], charged["cause"], counts(charged)), ("F", "stop", (5, 0, 3)))

    def test_full(self):
        go, began = threading.Event(), threading.Event()
        self.addCleanup(go.set)

        def answer(fake, _):
            began.set()
            go.wait(60)
            fake.raw(200, json.dumps({"choices": [{"message": {"content": "a"}}], "usage": USAGE}))
        with Front(self, answer=answer, row=", concurrency=1") as server:
            first = []
            thread = threading.Thread(target=lambda: first.append(server.post("/v1/chat/completions", CHAT, AUTH)))
            thread.start()
            self.assertTrue(began.wait(60))
            status, error, headers = server.post("/v1/chat/completions", CHAT, AUTH)
            self.assertEqual((status, error["error"]["code"]), (503, "overloaded"))
            self.assertIn("Retry-After", headers)
            go.set()
            thread.join(60)
            self.assertEqual((first[0][0], first[0][1]["usage"]["total_tokens"]), (200, 8))

    def test_without_billing_and_a_slow_reader(self):
        """More than the buffers hold: the upstream waits, nothing is lost."""
        texts, wide = 600, "x" * 8000

        def answer(fake, _):
            fake.stream(*(chunk(f"{i:05d}{wide}") for i in range(texts)), chunk(finish="stop"),
                        {**chunk(), "choices": [], "usage": USAGE}, "[DONE]")
        with Front(self, answer=answer, journal=False) as server:
            connection = socket.create_connection(("127.0.0.1", server.port))
            body = json.dumps({**CHAT, "stream": True})
            connection.sendall((f"POST /v1/chat/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\nConnection: close\r\n"
                                f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}").encode())
            wait_for(lambda: server.front.fake.seen, "the upstream is asked")
            read = b""
            connection.settimeout(60)
            while part := connection.recv(1 << 16):
                read += part
            connection.close()
            found = [read.find(f"{i:05d}xxx".encode()) for i in range(texts)]
            self.assertTrue(all(at >= 0 for at in found))
            self.assertEqual(found, sorted(found))
            self.assertIn(b"[DONE]", read)

    def test_certificates(self):
        """https: the certificate must lead to ca_file, and be of the host that the url names."""
        folder = tempfile.mkdtemp(prefix="millrace-upstream-tls-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        pem, key = os.path.join(folder, "cert.pem"), os.path.join(folder, "key.pem")
        subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout",
                        key, "-out", pem, "-days", "2", "-subj", "/CN=x", "-addext", "subjectAltName=IP:127.0.0.1"],
                       check=True, capture_output=True)
        for ca_file, host, works in ((pem, "127.0.0.1", True), (None, "127.0.0.1", False), (pem, "localhost", False)):
            front = Front(self, answer=lambda fake, _: fake.raw(200, json.dumps({"choices": [{}], "usage": USAGE})),
                          host=host, row=f", ca_file={ca_file}" if ca_file else "", tls=(pem, key))
            with front as server:
                status, answer, _ = server.post("/v1/chat/completions", CHAT, AUTH)
                self.assertEqual(status, 200 if works else 502, answer)
                self.assertEqual(len(front.fake.seen), works)

    def test_files_that_are_wrong(self):
        for text, says in ((f"far: [url=http://h/v1]\n{NAME}: [upstream=far]\n", "is a model of this server, too"),
                           ("far: [url=nowhere]\n", "url must be")):
            with tempfile.NamedTemporaryFile("w", suffix=".yaml") as file:
                file.write(text)
                file.flush()
                with self.assertRaises(AssertionError) as caught:
                    with Server("--upstreams", file.name):
                        pass
                self.assertIn(says, str(caught.exception))


if __name__ == "__main__":
    unittest.main()
