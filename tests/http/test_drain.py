"""The start and the end of the process: loading, SIGTERM with streams, time-outs, second signals, a lost device."""
import json
import signal
import socket
import subprocess
import threading

from harness import BINARY, Gate, Reply, Server, completion, equal, error_of, events, main, message, wait_for


def test_answers_while_loading():
    with Gate() as gate, Server(ready=False, NULL_GATE=gate.shut()) as server:
        for path, status in (("/livez", 200), ("/version", 200), ("/metrics", 200), ("/health", 503), ("/readyz", 503), ("/v1/models", 503)):
            got, headers, body = server.ask("GET", path)
            equal(got, status, path)
            if status == 503:
                equal(error_of(body)["code"], "model_loading")
                assert "retry-after" in headers
        equal(server.ask("POST", "/v1/completions", completion(1))[0], 503)
        gate.open()
        server.wait_log("serve ready")
        for path in ("/health", "/readyz", "/v1/models"):
            equal(server.ask("GET", path)[0], 200, path)


def test_stop_while_loading():
    with Server(ready=False, NULL_LOAD_MS=60000) as server:
        server.stop()


def test_load_failure_is_one_line_and_exit_1():
    server = Server(ready=False, NULL_LOAD_FAILS=1, NULL_LOAD_MS=200)
    server.wait_exit(1)
    equal(len(server.lines("^error .*this model does not load")), 1)


def test_port_in_use_is_one_line_and_exit_1():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        done = subprocess.run([BINARY, "null", "--port", str(taken.getsockname()[1])], stderr=subprocess.PIPE, timeout=60)
        equal((done.returncode, len(done.stderr.splitlines())), (1, 1), done.stderr)
        assert b"cannot listen" in done.stderr


def start_streams(server, count, body):
    """Connections with a stream each, all of which have had their first bytes."""
    replies = []
    for seed in range(count):
        s = server.connect()
        s.sendall(message("POST", "/v1/completions", {**body, "seed": seed, "stream": True}))
        replies.append(Reply(s))
    for reply in replies:
        equal(reply.head()[0], 200)
    return replies


def test_drain_cuts_no_stream():
    streams = 500
    with Gate() as gate, Server("--max-num-seqs", streams, "--shutdown-timeout", 60, "--limit-queue-tenant-share-percent", 100,
                                NULL_STEP_US=10000, NULL_STEP_GATE=gate.path, files=2048) as server:
        replies = start_streams(server, streams, completion(150))
        gate.shut() # 150 steps are 30 s until it opens
        keep = server.connect() # an idle connection from before
        late = server.connect()
        server.process.send_signal(signal.SIGTERM)
        server.wait_log("serve drain")
        late.sendall(message("GET", "/readyz"))
        status, headers, body = Reply(late).read()
        equal((status, error_of(body)["code"]), (503, "draining"), "readiness ends at once")
        wait_for(lambda: server.ask("POST", "/v1/completions", completion(1))[0] == 503) # new connections too: told, not refused
        keep.sendall(message("POST", "/v1/completions", completion(1)))
        status, headers, body = Reply(keep).read()
        equal((status, error_of(body)["code"], headers["connection"]), (503, "draining", "close"))
        assert "retry-after" in headers
        gate.open()
        cut = 0
        for reply in replies:
            data = b"".join(reply.chunks())
            cut += events(data)[-1] != "[DONE]"
            reply.socket.close()
        equal(cut, 0, "streams cut")
        for s in (keep, late):
            s.close()
        server.wait_exit(0)
        equal(len(server.lines("usage .*cause=length .*out=150 .*mismatch=0")), streams)


def test_drain_delay_serves_new_requests():
    with Server("--drain-delay", 2) as server:
        server.process.send_signal(signal.SIGTERM)
        server.wait_log("serve drain")
        status, headers, _ = server.ask("POST", "/v1/completions", completion(1))
        equal((status, headers["connection"]), (200, "close"))
        equal(server.ask("GET", "/readyz")[0], 503)
        equal(server.ask("GET", "/health")[0], 200, "alive while draining")
        server.wait_exit(0)


def test_shutdown_timeout_ends_streams_with_an_error():
    with Server("--shutdown-timeout", 0.3, NULL_STEP_US=5000) as server:
        replies = start_streams(server, 5, completion(5000))
        waiting = server.connect()
        waiting.sendall(message("POST", "/v1/completions", completion(5000)))
        wait_for(lambda: server.load()["running"] == 6)
        server.process.send_signal(signal.SIGTERM)
        status, headers, body = Reply(waiting).read()
        equal((status, error_of(body)["code"], headers["connection"]), (503, "draining", "close"))
        for reply in replies:
            data = b""
            try:
                for chunk in reply.chunks():
                    data += chunk
                raise AssertionError("ended like a whole stream")
            except EOFError:
                pass
            equal(json.loads(events(data)[-1])["error"]["code"], "draining")
            reply.socket.close()
        waiting.close()
        server.wait_exit(0)
        equal(len(server.lines("usage .*cause=platform_cancel")), 6)


def test_second_signal_ends_now():
    for first, second in ((signal.SIGTERM, signal.SIGTERM), (signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)):
        with Server("--drain-delay", 30, "--shutdown-timeout", 600, NULL_STEP_US=5000) as server:
            replies = start_streams(server, 3, completion(5000))
            server.process.send_signal(first)
            server.wait_log("serve drain")
            server.process.send_signal(second)
            server.wait_exit(0)
            equal(len(server.lines("usage .*cause=platform_cancel")), 3)
            for reply in replies:
                reply.socket.close()


def test_lost_device_ends_requests_and_the_process():
    server = Server("--max-num-seqs", 4, NULL_FAIL_STEP=200, NULL_STEP_US=2000)
    streams = start_streams(server, 3, completion(5000))
    plain, results = [], []

    def one():
        results.append(server.ask("POST", "/v1/completions", completion(5000)))
    for _ in range(3):
        plain.append(threading.Thread(target=one))
        plain[-1].start()
    for t in plain:
        t.join(60)
    for reply in streams:
        data = b""
        try:
            for chunk in reply.chunks():
                data += chunk
            raise AssertionError("ended like a whole stream")
        except EOFError:
            pass
        assert "error" in json.loads(events(data)[-1])
        reply.socket.close()
    equal(len(results), 3)
    for status, _, body in results:
        assert status >= 500, status
        error_of(body)
    server.wait_exit(3)
    assert len(server.lines("usage .*cause=platform_error")) >= 4


if __name__ == "__main__":
    main(globals())
