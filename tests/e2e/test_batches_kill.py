"""1,000 deferred requests and a server that is killed at random moments: none is lost, none has two results, none is billed
twice, none is late. The seed is printed; MILLRACE_TEST_SEED sets it."""
import json
import os
import random
import shutil
import subprocess
import tempfile
import time
import unittest

from harness import BINARY, NAME, Server, wait_for
from test_batches import client_of, results, upload

LINES, BATCHES, KILLS, WINDOW = 250, 4, 10, "1h"


def data_of(batch):
    lines = []
    for i in range(LINES):
        body = {"model": NAME, "prompt": "word " * (1 + i % 7), "max_tokens": 1 + i % 3, "temperature": 0, "ignore_eos": True}
        lines.append(json.dumps({"custom_id": f"{batch}-{i}", "method": "POST", "url": "/v1/completions", "body": body}))
    return "\n".join(lines).encode()


def charged(journal):
    rows = subprocess.run([BINARY, "bill", "export", journal], capture_output=True, text=True, check=True, timeout=60).stdout
    return [row for row in map(json.loads, rows.splitlines()) if row["kind"] == "F" and row["charged_units"] > 0]


class Killed(unittest.TestCase):
    def test_a_thousand_lines_and_kills_at_random_moments(self):
        seed = int(os.environ.get("MILLRACE_TEST_SEED", random.randrange(2**31)))
        print(f"seed {seed}", flush=True)
        dice, made, kills = random.Random(seed), [], 0
        folder = tempfile.mkdtemp(prefix="millrace-kill-")
        self.addCleanup(shutil.rmtree, folder, ignore_errors=True)
        journal = os.path.join(folder, "journal")
        options = ("--batch-dir", os.path.join(folder, "batches"), "--journal", journal, "--enforce", "off", "--api-key", "alice-key")
        while True:
            with Server(*options) as server:
                client = client_of(server)
                if len(made) < BATCHES: # what is accepted in a life that is about to be killed counts too
                    file = upload(client, data_of(len(made)))
                    made.append(client.batches.create(input_file_id=file.id, endpoint="/v1/completions", completion_window=WINDOW))
                if kills < KILLS:
                    time.sleep(dice.uniform(0, 0.8))
                    server.process.kill()
                    server.process.wait()
                    server.expect_exit = server.process.returncode
                    kills += 1
                    continue
                states = lambda: [client.batches.retrieve(batch.id) for batch in made]
                wait_for(lambda: all(batch.status == "completed" for batch in states()), "all batches", 300)
                seen, tokens = [], 0
                for batch in states():
                    self.assertEqual((batch.request_counts.total, batch.request_counts.completed), (LINES, LINES))
                    self.assertLessEqual(batch.completed_at, batch.expires_at)
                    self.assertIsNone(batch.error_file_id)
                    answers = results(client, batch.output_file_id)
                    seen += [answer["custom_id"] for answer in answers]
                    tokens += sum(answer["response"]["body"]["usage"]["total_tokens"] for answer in answers)
                break
        self.assertEqual(sorted(seen), sorted(f"{b}-{i}" for b in range(BATCHES) for i in range(LINES)))
        rows = charged(journal)
        self.assertEqual(len(rows), BATCHES * LINES)
        self.assertEqual(sum(row["charged_units"] for row in rows), tokens * 1000000)
        audit = subprocess.run([BINARY, "bill", "audit", journal, "--json"], capture_output=True, text=True, timeout=60)
        self.assertEqual((audit.returncode, json.loads(audit.stdout)["verdict"]), (0, "clean"))


if __name__ == "__main__":
    unittest.main()
