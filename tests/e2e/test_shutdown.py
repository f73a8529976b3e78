"""Ends: SIGTERM under load loses nothing; a client that is killed in mid-stream frees its blocks and leaves a usage record."""
import concurrent.futures
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

from harness import NAME, Server

ENDLESS = {"model": NAME, "prompt": "Count slowly: one, two,", "max_tokens": 4000, "ignore_eos": True, "stream": True,
           "temperature": 0}


class Shutdown(unittest.TestCase):
    def stream(self, server, tokens, first):
        """All text of one stream; first.release() after its first event."""
        body = json.dumps({**ENDLESS, "max_tokens": tokens, "stream_options": {"include_usage": True}}).encode()
        with socket.create_connection(("127.0.0.1", server.port), timeout=120) as s:
            s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                      + str(len(body)).encode() + b"\r\n\r\n" + body)
            data = b""
            while b"0\r\n\r\n" not in data[-8:]:
                piece = s.recv(65536)
                if not piece:
                    break
                if not data.count(b"data: ") and b"data: " in piece:
                    first.release()
                data += piece
            return data

    def test_sigterm_under_load(self):
        with Server() as server, concurrent.futures.ThreadPoolExecutor(24) as pool:
            first = threading.Semaphore(0)
            streams = [pool.submit(self.stream, server, 120, first) for _ in range(24)]
            for _ in streams:
                self.assertTrue(first.acquire(timeout=60))
            server.process.send_signal(signal.SIGTERM)
            for stream in streams:
                data = stream.result(120)
                self.assertIn(b"data: [DONE]", data)
                self.assertIn(b'"completion_tokens":120', data)
            self.assertEqual(server.process.wait(60), 0)
            self.assertEqual(sum(r["out"] == "120" for r in server.usage_lines()), 24)

    def test_new_requests_get_503_while_draining(self):
        with Server() as server:
            first = threading.Semaphore(0)
            with concurrent.futures.ThreadPoolExecutor(1) as pool:
                running = pool.submit(self.stream, server, 1500, first)
                self.assertTrue(first.acquire(timeout=60))
                server.process.send_signal(signal.SIGTERM)
                for _ in range(300):
                    if server.get("/readyz")[0] == 503:
                        break
                    time.sleep(0.005)
                self.assertEqual(server.get("/readyz")[0], 503)
                status, answer, headers = server.post("/v1/completions", {"model": NAME, "prompt": "x", "max_tokens": 1})
                self.assertEqual((status, answer["error"]["code"]), (503, "draining"))
                self.assertIn("Retry-After", headers)
                self.assertIn(b"data: [DONE]", running.result(120))

    def test_killed_client(self):
        with Server() as server:
            blocks = server.metric("vllm:kv_cache_usage_perc")
            script = ("import socket,sys,json\n"
                      "b=json.dumps(json.loads(sys.argv[2])).encode()\n"
                      "s=socket.create_connection(('127.0.0.1',int(sys.argv[1])))\n"
                      "s.sendall(b'POST /v1/completions HTTP/1.1\\r\\nHost: x\\r\\nContent-Type: application/json\\r\\nContent-Length: '"
                      "+str(len(b)).encode()+b'\\r\\n\\r\\n'+b)\n"
                      "d=b''\n"
                      "while d.count(b'data: ')<3: d+=s.recv(4096)\n"
                      "print('streaming',flush=True)\n"
                      "while s.recv(4096): pass\n")
            client = subprocess.Popen([sys.executable, "-c", script, str(server.port), json.dumps(ENDLESS)], stdout=subprocess.PIPE)
            self.assertEqual(client.stdout.readline().strip(), b"streaming")
            os.kill(client.pid, signal.SIGKILL)
            client.wait()
            client.stdout.close()
            server.wait_idle()
            self.assertEqual(server.metric("vllm:kv_cache_usage_perc"), blocks)
            record = server.usage_lines()[-1]
            self.assertEqual(record["cause"], "client_gone")
            self.assertGreaterEqual(int(record["out"]), 3)
            self.assertLess(int(record["out"]), 4000)
            self.assertEqual(record["mismatch"], "0")

    def test_client_gone_without_streaming(self):
        with Server() as server:
            body = json.dumps({**ENDLESS, "stream": False}).encode()
            with socket.create_connection(("127.0.0.1", server.port)) as s:
                s.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: "
                          + str(len(body)).encode() + b"\r\n\r\n" + body)
                for _ in range(1000):
                    if server.metric("vllm:num_requests_running"):
                        break
                    time.sleep(0.005)
            server.wait_idle()
            self.assertEqual(server.usage_lines()[-1]["cause"], "client_gone")


if __name__ == "__main__":
    unittest.main()
