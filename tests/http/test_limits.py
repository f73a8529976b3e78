"""Limits of the table, at the limit and beside it; slow senders; refusals under load, with what they tell clients to do."""
import json
import socket
import threading
import time

from harness import Reply, Server, completion, equal, error_of, events, main, message, wait_for


def test_head_limits_at_their_edges():
    line, header, headers, count = 200, 300, 1000, 10
    with Server("--limit-http-request-line-bytes", line, "--limit-http-header-bytes", header, "--limit-http-headers-bytes", headers,
                "--limit-http-headers", count) as server:
        host = b"Host: a\r\n"

        def status(data):
            with server.connect() as s:
                s.sendall(data)
                reply = Reply(s)
                got, answer, body = reply.read()
                if got in (414, 431):
                    equal(error_of(body)["code"], "request_too_large")
                    equal(answer["connection"], "close")
                    assert reply.at_end()
                return got
        for over in (-1, 0, 1, 9):
            target = b"/" + b"a" * (line + over - len("GET / HTTP/1.1"))
            equal(status(b"GET " + target + b" HTTP/1.1\r\n" + host + b"\r\n"), 414 if over > 0 else 404, f"line {over}")
            equal(status(b"GET /version HTTP/1.1\r\n" + host + b"X: " + b"a" * (header + over - 3) + b"\r\n\r\n"), 431 if over > 0 else 200,
                  f"header {over}")
            filler = b""
            left = headers + over - len(host)
            while left:
                size = 100 if left > 200 else left
                filler += b"X: " + b"a" * (size - 5) + b"\r\n"
                left -= size
            equal(status(b"GET /version HTTP/1.1\r\n" + host + filler + b"\r\n"), 431 if over > 0 else 200, f"headers {over}")
            equal(status(b"GET /version HTTP/1.1\r\n" + host + b"X: 1\r\n" * (count - 1 + over) + b"\r\n"), 431 if over > 0 else 200,
                  f"count {over}")


def test_body_limit_at_its_edges():
    limit = 2000
    with Server("--limit-http-body-bytes", limit) as server:
        for over, expected in ((-1, 200), (0, 200), (1, 413), (9 * limit, 413)):
            body = json.dumps(completion(1)).encode()
            body += b" " * (limit + over - len(body))
            status, headers, answer = server.ask("POST", "/v1/completions", body)
            equal(status, expected, f"length {over}")
            if status == 413:
                equal((error_of(answer)["code"], headers["connection"]), ("request_too_large", "close"))
            with server.connect() as s:
                s.sendall(message("POST", "/v1/completions", b"", {"Transfer-Encoding": "chunked", "Content-Type": "application/json"}))
                half = len(body) // 2
                s.sendall(b"%x\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n" % (half, body[:half], len(body) - half, body[half:]))
                equal(Reply(s).read()[0], expected, f"chunked {over}")


def test_all_bodies_together():
    limit = 300000
    with Server("--limit-http-bodies-bytes", limit) as server:
        size, waiting = 100000, []
        for _ in range(2): # two bodies but for their last byte
            s = server.connect()
            s.sendall(message("POST", "/v1/completions", headers={"Content-Length": str(size), "Content-Type": "application/json"}))
            s.sendall(json.dumps(completion(1)).encode().ljust(size - 1))
            waiting.append(s)
        server.ask("GET", "/version")
        status, headers, body = server.ask("POST", "/v1/completions", json.dumps(completion(1)).encode().ljust(2 * size))
        equal((status, error_of(body)["code"], headers["connection"]), (503, "overloaded", "close"))
        assert "retry-after" in headers
        for s in waiting: # those that came first are not disturbed, and afterwards there is room again
            s.sendall(b" ")
            equal(Reply(s).read()[0], 200)
            s.close()
        for _ in range(5):
            equal(server.ask("POST", "/v1/completions", json.dumps(completion(1)).encode().ljust(2 * size))[0], 200)


def test_slow_senders():
    with Server("--limit-http-head-timeout-ms", 300, "--limit-http-body-grace-ms", 300, "--limit-http-body-rate-min", 1000) as server:
        stuck = {"half a head": b"GET /version HTTP/1.1\r\nHo", "half a body": message("POST", "/v1/completions", b"", {"Content-Length": "10"}) + b"{",
                 "half a chunk": message("POST", "/v1/completions", headers={"Transfer-Encoding": "chunked"}) + b"5\r\nab"}
        for name, data in stuck.items():
            with server.connect() as s:
                s.sendall(data)
                reply = Reply(s)
                status, headers, body = reply.read()
                equal((status, error_of(body)["code"], headers["connection"]), (408, "request_timeout", "close"), name)
                assert reply.at_end()
        with server.connect() as s: # a byte now and then is not enough
            s.sendall(message("POST", "/v1/completions", b"", {"Content-Length": "100000"}))
            s.settimeout(0.02)
            for _ in range(1500):
                try:
                    s.sendall(b" ")
                    if s.recv(1):
                        break
                except (TimeoutError, socket.timeout):
                    pass
                except OSError:
                    break
            else:
                raise AssertionError("a slow body was never cut off")
        with server.connect() as s: # a steady one may take its time
            s.sendall(message("POST", "/v1/completions", b"", {"Content-Length": "6000", "Content-Type": "application/json"}))
            body = json.dumps(completion(1)).encode().ljust(6000)
            for i in range(0, 6000, 300):
                s.sendall(body[i:i + 300])
                time.sleep(0.03)
            equal(Reply(s).read()[0], 200)


def test_idle_connections_close():
    with Server("--limit-http-idle-timeout-ms", 300) as server:
        for data, status in ((b"", None), (message("GET", "/version"), 200), (b"\r\n", None)):
            with server.connect() as s:
                s.sendall(data)
                reply = Reply(s)
                if status:
                    equal(reply.read()[0], status)
                assert reply.at_end(), f"after {data!r}"


def test_too_many_from_one_address():
    with Server("--limit-connections-per-address", 3) as server:
        some = [server.connect() for _ in range(3)]
        for s in some:
            s.sendall(message("GET", "/version"))
            equal(Reply(s).read()[0], 200)
        try:
            with server.connect() as extra:
                assert Reply(extra).at_end()
        except ConnectionResetError:
            pass # cut off before connect() had returned
        for s in some:
            s.close()
        wait_for(lambda: _answers(server))


def _answers(server):
    try:
        return server.ask("GET", "/version")[0] == 200
    except (EOFError, OSError):
        return False


def test_connection_limit_pauses_accept():
    with Server("--limit-connections", 4) as server:
        some = [server.connect() for _ in range(12)] # eight wait in the kernel's queue
        for s in some:
            s.sendall(message("GET", "/version", headers={"Connection": "close"}))
        for s in some: # each that closes lets the next one in
            equal(Reply(s).read()[0], 200)
            s.close()


def test_full_queue():
    with Server("--max-num-seqs", 1, "--max-num-queued-reqs", 3, "--limit-queue-tenant-share-percent", 100, NULL_STEP_US=20000) as server:
        streams = []
        for _ in range(4):
            s = server.connect()
            s.sendall(message("POST", "/v1/completions", completion(2000, stream=True)))
            streams.append(s)
            wait_for(lambda: server.load()["running"] + server.load()["waiting"] == len(streams))
        status, headers, body = server.ask("POST", "/v1/completions", completion(1))
        equal((status, error_of(body)["code"], error_of(body)["type"]), (503, "overloaded", "server_error"))
        assert 1 <= int(headers["retry-after"]) <= 60 and 1000 <= int(headers["retry-after-ms"]) <= 60000, headers
        assert server.metric("vllm:admission_rejections_total") >= 1
        with server.connect() as s: # refused before its body is sent
            s.sendall(message("POST", "/v1/completions", headers={"Content-Length": "1000000"}))
            equal(Reply(s).read()[0], 503)
        for s in streams:
            s.close()
        server.wait_idle()
        equal(server.ask("POST", "/v1/completions", completion(1))[0], 200, "afterwards")


def test_burst_beyond_the_queue_is_answered():
    with Server("--max-num-seqs", 2, "--max-num-queued-reqs", 4, "--limit-queue-tenant-share-percent", 100, NULL_STEP_US=2000) as server:
        results = []

        def one():
            status, headers, body = server.ask("POST", "/v1/completions", completion(30))
            results.append((status, "retry-after-ms" in headers))
        threads = [threading.Thread(target=one) for _ in range(60)]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        equal(len(results), 60)
        assert {status for status, _ in results} <= {200, 429, 503}, results
        assert any(status == 200 for status, _ in results) and all(told for status, told in results if status != 200)
        server.wait_idle()


def test_request_that_never_fits():
    with Server("--max-model-len", 128) as server:
        status, _, body = server.ask("POST", "/v1/completions", {"prompt": "x" * 500, "max_tokens": 10})
        equal((status, error_of(body)["code"]), (400, "context_length_exceeded"))


def test_deadline():
    with Server("--limit-request-deadline-ms", 1000, "--max-num-seqs", 1, NULL_STEP_US=20000) as server:
        with server.connect() as running, server.connect() as waiting:
            running.sendall(message("POST", "/v1/completions", completion(5000, stream=True)))
            reply = Reply(running)
            equal(reply.head()[0], 200)
            waiting.sendall(message("POST", "/v1/completions", completion(5)))
            status, _, body = Reply(waiting).read()
            equal((status, error_of(body)["code"]), (504, "deadline_exceeded"), "in the queue")
            data = b""
            try:
                for chunk in reply.chunks():
                    data += chunk
                raise AssertionError("a failed stream ended like a whole one")
            except EOFError:
                pass
            last = events(data)[-1]
            equal(json.loads(last)["error"]["code"], "deadline_exceeded", "in the stream")
            assert "[DONE]" not in events(data)
        server.wait_idle()
        server.wait_log("cause=platform_cancel")


if __name__ == "__main__":
    main(globals())
