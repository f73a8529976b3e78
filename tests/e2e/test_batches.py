"""Files and batches through the official client: what is uploaded comes back, each line has one result, and whoever asks
wrongly is told so."""
import io
import json
import pathlib
import re
import shutil
import struct
import tempfile
import time
import unittest

import openai

from harness import NAME, Server, wait_for
from test_bill import Billed, bill, bill_json

KEYS = ("--api-key", "alice-key", "--api-key", "second-key")


def lines_of(count, url="/v1/completions", prefix="line", **body):
    body = {"model": NAME, "prompt": "Once", "max_tokens": 2, "temperature": 0, **body}
    return b"".join(json.dumps({"custom_id": f"{prefix}-{i}", "method": "POST", "url": url, "body": body}).encode() + b"\n"
                    for i in range(count))


def client_of(server, key="alice-key"):
    return openai.OpenAI(base_url=server.url + "/v1", api_key=key, max_retries=0, timeout=60)


def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff


def move_deadline(folder, batch, unix_s):
    """In the .meta of a server that is not running: a promise is for half an hour at least, which no test waits for."""
    path = pathlib.Path(folder, batch.id + ".meta")
    text = json.loads(path.read_bytes()[16:])
    text["expires_at"] = unix_s
    text = json.dumps(text).encode()
    path.write_bytes(struct.pack("<II", len(text), crc32c(bytes(8) + text)) + bytes(8) + text)


def upload(client, data, name="in.jsonl", **more):
    return client.files.create(file=(name, io.BytesIO(data)), purpose="batch", **more)


def run(client, data, window="24h", endpoint="/v1/completions", **more):
    return client.batches.create(input_file_id=upload(client, data).id, endpoint=endpoint, completion_window=window, **more)


def ended(client, batch, seconds=60):
    states = ("completed", "failed", "expired", "cancelled")
    wait_for(lambda: client.batches.retrieve(batch.id).status in states, f"the end of {batch.id}", seconds)
    return client.batches.retrieve(batch.id)


def deleted(client, file_id):
    try:
        return client.files.delete(file_id).deleted
    except openai.ConflictError: # a download that the client has read may still be open in the server
        return False


def results(client, file_id):
    return [json.loads(line) for line in client.files.content(file_id).text.splitlines()]


class Batches(unittest.TestCase):
    def setUp(self):
        self.folder = tempfile.mkdtemp(prefix="millrace-batch-")
        self.addCleanup(shutil.rmtree, self.folder, ignore_errors=True)
        self.options = ("--batch-dir", self.folder + "/held", *KEYS)

    def test_from_upload_to_result(self):
        with Server(*self.options) as server:
            client = client_of(server)
            data = lines_of(20)
            file = upload(client, data, expires_after={"anchor": "created_at", "seconds": 7200})
            self.assertEqual((file.bytes, file.filename, file.purpose, file.object), (len(data), "in.jsonl", "batch", "file"))
            self.assertEqual(file.expires_at - file.created_at, 7200)
            self.assertEqual(client.files.content(file.id).read(), data)
            self.assertEqual(client.files.retrieve(file.id).id, file.id)
            batch = client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window="24h",
                                          metadata={"job": "nightly"})
            self.assertEqual((batch.object, batch.status, batch.metadata), ("batch", "validating", {"job": "nightly"}))
            self.assertEqual(batch.expires_at - batch.created_at, 86400)
            batch = ended(client, batch)
            counts = batch.request_counts
            self.assertEqual((batch.status, counts.total, counts.completed, counts.failed), ("completed", 20, 20, 0))
            self.assertIsNone(batch.error_file_id)
            answers = results(client, batch.output_file_id)
            self.assertEqual(sorted(a["custom_id"] for a in answers), sorted(f"line-{i}" for i in range(20)))
            for answer in answers:
                self.assertEqual((answer["error"], answer["response"]["status_code"]), (None, 200))
                self.assertTrue(answer["id"].startswith("batch_req_") and answer["response"]["request_id"])
                body = answer["response"]["body"]
                self.assertEqual((body["usage"]["completion_tokens"], body["service_tier"]), (2, "batch"))
            self.assertEqual([f.id for f in client.files.list(purpose="batch_output")], [batch.output_file_id])
            wait_for(lambda: deleted(client, file.id), "the end of the download, as the server sees it")
            with self.assertRaises(openai.NotFoundError):
                client.files.retrieve(file.id)
            held = pathlib.Path(self.folder, "held")
            self.assertEqual(held.stat().st_mode & 0o777, 0o700)
            self.assertEqual({f.stat().st_mode & 0o777 for f in held.iterdir()}, {0o600})
            self.assertEqual([f.name for f in held.iterdir() if f.name.endswith((".log", ".tmp", ".part"))], [])
            self.assertNotIn("Once", server.log())

    def test_errors_of_lines(self):
        with Server(*self.options) as server:
            client = client_of(server)
            good, chat = lines_of(1), lines_of(1, "/v1/chat/completions", "chat")
            bad = good + b"not json\n" + good + chat + b'{"custom_id":"x","method":"GET","url":"/v1/completions","body":{}}\n'
            batch = ended(client, run(client, bad))
            self.assertEqual(batch.status, "failed")
            self.assertEqual([(e.line, e.code) for e in batch.errors.data],
                             [(2, "invalid_json_line"), (3, "duplicate_custom_id"), (4, "mismatched_endpoint"), (5, "invalid_method")])
            self.assertIsNone(batch.output_file_id)
            self.assertEqual(ended(client, run(client, b"\n")).errors.data[0].code, "empty_file")
            mixed = good + lines_of(1, prefix="gone", model="no-such") + lines_of(1, prefix="wrong", max_tokens=-1)
            batch = ended(client, run(client, mixed))
            self.assertEqual((batch.status, batch.request_counts.completed, batch.request_counts.failed), ("completed", 1, 2))
            failed = {a["custom_id"]: a for a in results(client, batch.error_file_id)}
            self.assertEqual(failed["gone-0"]["response"]["status_code"], 404)
            self.assertEqual(failed["gone-0"]["response"]["body"]["error"]["code"], "model_not_found")
            self.assertEqual(failed["wrong-0"]["response"]["status_code"], 400)

    def test_deadlines(self):
        """What cannot be promised is refused with a time; what passes its deadline keeps what is done."""
        with Server(*self.options, "--batch-concurrency", "1") as server:
            client = client_of(server)
            slow = lines_of(3000, max_tokens=50, ignore_eos=True)
            early = ended(client, run(client, slow, "1m"))
            self.assertEqual((early.status, early.errors.data[0].code), ("failed", "deadline_infeasible"))
            told = re.search(r"earliest that can be promised: (20\d\d-\d\d-\d\dT\d\d:\d\d:\d\dZ)", early.errors.data[0].message)
            kept = run(client, slow, extra_body={"deadline": told[1]})  # the told time is good for all of it, not for a part
            wait_for(lambda: client.batches.retrieve(kept.id).status != "validating", "its validation")
            self.assertEqual(client.batches.retrieve(kept.id).status, "in_progress")
            client.batches.cancel(kept.id)
            ended(client, kept)
            batch = run(client, slow)
            wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 1, "a line")
        move_deadline(self.folder + "/held", batch, int(time.time()) + 3)
        with Server(*self.options, "--batch-concurrency", "3") as server:
            client = client_of(server)
            batch = ended(client, batch)
            self.assertEqual(batch.status, "expired")
            self.assertGreaterEqual(batch.expired_at, batch.expires_at)
            done, undone = results(client, batch.output_file_id), results(client, batch.error_file_id)
            self.assertEqual(len({a["custom_id"] for a in done + undone}), 3000)
            self.assertGreater(len(done), 1)
            self.assertEqual(batch.request_counts.completed, len(done))
            self.assertEqual({a["error"]["code"] for a in undone}, {"batch_expired"})
            server.wait_idle()

    def test_a_promise_counts_tokens(self):
        """As many bytes, four times the tokens: the plan has more work of them. Held by an event, so that nothing runs."""
        with Server(*self.options, "--power-sensor", "simulated", "--power-idle", "40", "--power-full", "100",
                    env={"MILLRACE_ADMIN_KEY": "adm"}) as server:
            admin = {"Authorization": "Bearer adm"}
            client = client_of(server)
            client.completions.create(model=NAME, prompt="Once upon a time " * 20, max_tokens=20) # what a step costs
            server.post("/admin/power", {"shed_level": 1}, admin)
            wait_for(lambda: json.loads(server.get("/admin/power/plan", admin)[1])["event"], "the event")

            def work_of(**body):
                batch = run(client, lines_of(64, **body))
                wait_for(lambda: client.batches.retrieve(batch.id).status == "in_progress", "its validation")
                jobs = json.loads(server.get("/admin/power/plan?jobs=100", admin)[1])["jobs"]
                client.batches.cancel(batch.id)
                ended(client, batch)
                return sum(job["work_s"] for job in jobs)

            words, digits = work_of(prompt="the " * 75), work_of(prompt="7391" * 75)
            self.assertGreater(digits, 1.2 * words)
            self.assertGreater(work_of(max_tokens=41), work_of(max_tokens=40))

    def test_cancel_and_lists(self):
        with Server(*self.options, "--batch-concurrency", "1") as server:
            client = client_of(server)
            slow = lines_of(3000, max_tokens=50, ignore_eos=True)
            first = run(client, slow)
            wait_for(lambda: client.batches.retrieve(first.id).request_counts.completed > 0, "a line")
            with self.assertRaises(openai.ConflictError):
                client.files.delete(first.input_file_id)
            self.assertEqual(client.batches.cancel(first.id).status, "cancelling")
            first = ended(client, first)
            self.assertEqual(first.status, "cancelled")
            done, undone = results(client, first.output_file_id), results(client, first.error_file_id)
            self.assertEqual(len(done) + len(undone), 3000)
            self.assertEqual({a["error"]["code"] for a in undone}, {"batch_cancelled"})
            second = ended(client, run(client, lines_of(2)))
            third = ended(client, run(client, lines_of(1)))
            self.assertEqual([b.id for b in client.batches.list()], [third.id, second.id, first.id])
            page = client.batches.list(limit=2)
            self.assertTrue(page.has_more)
            self.assertEqual([b.id for b in client.batches.list(limit=1, after=second.id).data], [first.id])
            server.wait_idle()

    def test_refusals_and_other_accounts(self):
        keys = pathlib.Path(self.folder, "keys")
        keys.write_text("alice:alice-key\nbob:bob-key\n")
        with Server("--batch-dir", self.folder + "/held", "--api-key-file", str(keys)) as server:
            client, bob = client_of(server), client_of(server, "bob-key")
            batch = ended(client, run(client, lines_of(1)))
            for call in (lambda: bob.files.retrieve(batch.input_file_id), lambda: bob.files.content(batch.output_file_id),
                         lambda: bob.files.delete(batch.input_file_id), lambda: bob.batches.retrieve(batch.id),
                         lambda: bob.batches.cancel(batch.id),
                         lambda: bob.batches.create(input_file_id=batch.input_file_id, endpoint="/v1/completions",
                                                    completion_window="24h")):
                with self.assertRaises(openai.NotFoundError):
                    call()
            self.assertEqual((list(bob.files.list()), list(bob.batches.list())), ([], []))
            with self.assertRaises(openai.ConflictError):
                client.batches.cancel(batch.id)
            ask = {"input_file_id": batch.input_file_id, "endpoint": "/v1/completions", "completion_window": "24h"}
            soon = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + 7200))
            self.assertAlmostEqual(client.batches.create(**ask, metadata={"deadline": soon}).expires_at, time.time() + 7200, delta=60)
            for wrong in ({"endpoint": "/v1/embeddings"}, {"completion_window": "soon"}, {"input_file_id": batch.output_file_id},
                          {"metadata": {"deadline": "2001-01-01T00:00:00Z"}}, {"extra_body": {"green": "very"}}):
                with self.assertRaises(openai.BadRequestError):
                    client.batches.create(**{**ask, **wrong})
            with self.assertRaises(openai.BadRequestError):
                client.files.create(file=("x", io.BytesIO(b"x")), purpose="fine-tune")
            for kind, body in (("text/plain", b"x"), ("multipart/form-data; boundary=b", b"--b\r\n\r\nx"),
                               ("multipart/form-data; boundary=b", b"--b--\r\n")):
                status, answer, _ = server.post("/v1/files", body, {"Content-Type": kind, "Authorization": "Bearer alice-key"})
                self.assertEqual(status, 400, answer)
            big = 20 * 2**20 # more than another body may have
            self.assertEqual(upload(client, b" " * big).bytes, big)
        with Server() as server:
            with self.assertRaises(openai.InternalServerError) as refused:
                client_of(server).files.list()
            self.assertEqual(refused.exception.code, "batches_off")
            self.assertIn("--batch-dir", str(refused.exception))

    def test_limits(self):
        """At each limit, and one above it."""
        limits = {"file-bytes": 4096, "lines": 3, "files": 4, "unfinished": 1, "folder-bytes": 1048576}
        options = [word for name, value in limits.items() for word in ("--limit-batch-" + name, str(value))]
        with Server(*self.options, *options, "--batch-concurrency", "1") as server:
            client = client_of(server)
            self.assertEqual(upload(client, b" " * 4096).bytes, 4096)
            with self.assertRaises(openai.APIStatusError) as refused:
                upload(client, b" " * 4097)
            self.assertEqual((refused.exception.status_code, refused.exception.code), (413, "request_too_large"))
            self.assertEqual(len(list(client.files.list())), 1) # nothing is left of it
            batch = run(client, lines_of(3, max_tokens=100, ignore_eos=True))
            too_many = upload(client, lines_of(4))
            with self.assertRaises(openai.RateLimitError):
                client.batches.create(input_file_id=too_many.id, endpoint="/v1/completions", completion_window="24h")
            self.assertEqual(ended(client, batch).status, "completed")
            batch = client.batches.create(input_file_id=too_many.id, endpoint="/v1/completions", completion_window="24h")
            self.assertEqual(ended(client, batch).errors.data[0].code, "too_many_requests")
            upload(client, b"x")
            with self.assertRaises(openai.RateLimitError):
                upload(client, b"x")
            client.files.delete(too_many.id)
            upload(client, b"x")

    def test_a_package_that_runs_out_and_a_key_that_is_revoked(self):
        with Billed(self.folder + "/journal", "--batch-dir", self.folder + "/held", "--batch-concurrency", "1") as server:
            key = server.new_key("ada")
            client = client_of(server, key)
            bill("topup", "ada", "--tokens", "30", "--order", "1", *server.at)
            batch = ended(client, run(client, lines_of(20)))
            done = results(client, batch.output_file_id)
            used = sum(a["response"]["body"]["usage"]["total_tokens"] for a in done)
            self.assertTrue(0 < used <= 30 and 0 < len(done) < 20, done)
            for answer in results(client, batch.error_file_id):
                self.assertEqual((answer["response"]["status_code"], answer["response"]["body"]["error"]["code"]),
                                 (402, "insufficient_quota"))
            self.assertEqual(bill_json("balance", "ada", *server.at)["used_units"], used * 1000000)
            bill("topup", "ada", "--tokens", "1M", "--order", "2", *server.at)
            first = bill_json("key", "list", "--account", "ada", *server.at)["data"][0]["id"]
            other = bill("key", "create", "--account", "ada", *server.at)[0].strip()
            batch = run(client, lines_of(2000, max_tokens=20, ignore_eos=True))
            wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 1, "a line")
            self.assertEqual(server.metric("mr_batches"), 1)
            bill("key", "revoke", first, *server.at)
            client = client_of(server, other)
            wait_for(lambda: server.get("/v1/models", {"Authorization": f"Bearer {other}"})[0] == 200, "the other key")
            batch = ended(client, batch) # of the account: the other key sees it
            self.assertEqual(batch.status, "completed")
            codes = {a["response"]["body"]["error"]["code"] for a in results(client, batch.error_file_id)}
            self.assertEqual(codes, {"key_revoked"})
            self.assertEqual(bill_json("audit", self.folder + "/journal", *server.at)["verdict"], "clean")

    def test_a_restart_goes_on(self):
        with Server(*self.options, "--batch-concurrency", "1") as server:
            client = client_of(server)
            batch = run(client, lines_of(300, max_tokens=10, ignore_eos=True))
            wait_for(lambda: client.batches.retrieve(batch.id).request_counts.completed > 2, "some lines")
            server.process.kill()
            server.process.wait()
            server.expect_exit = server.process.returncode
        with Server(*self.options) as server:
            client = client_of(server)
            batch = ended(client, batch)
            self.assertEqual((batch.status, batch.request_counts.completed), ("completed", 300))
            answers = results(client, batch.output_file_id)
            self.assertEqual(sorted(a["custom_id"] for a in answers), sorted(f"line-{i}" for i in range(300)))


if __name__ == "__main__":
    unittest.main()
