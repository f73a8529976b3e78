"""Streams: their form, many at once, readers that are slow or leave, and that nothing is left behind."""
import json
import os
import random
import struct
import socket
import threading

from harness import Reply, Server, completion, equal, events, main, message, wait_for

SEED = 20240607


def read_stream(server, body):
    with server.connect() as s:
        s.sendall(message("POST", "/v1/completions", {**body, "stream": True}))
        return Reply(s).read()


def text_of(data):
    return "".join(c["text"] for e in events(data)[:-1] for c in json.loads(e)["choices"])


def test_stream_form():
    with Server() as server:
        status, headers, data = read_stream(server, completion(20, stream_options={"include_usage": True}))
        equal((status, headers["content-type"].split(";")[0], headers["cache-control"], headers["x-accel-buffering"]),
              (200, "text/event-stream", "no-cache", "no"))
        equal(events(data)[-1], "[DONE]")
        equal(json.loads(events(data)[-2])["usage"]["completion_tokens"], 20)


def test_streams_equal_plain_answers():
    with Server("--max-num-seqs", 32, NULL_STEP_US=300) as server:
        wanted, got = {}, {}
        for seed in range(64):
            answer = json.loads(server.ask("POST", "/v1/completions", completion(40, seed=seed))[2])
            wanted[seed] = answer["choices"][0]["text"]

        def one(seed):
            got[seed] = text_of(read_stream(server, completion(40, seed=seed))[2])
        threads = [threading.Thread(target=one, args=(seed,)) for seed in wanted]
        for t in threads:
            t.start()
        for t in threads:
            t.join(60)
        equal(got, wanted)
        server.wait_idle()
        server.wait_log(" usage ", 128)


def test_coalesced_streams_are_whole():
    """Far above 5,000 writes a second tokens share events; the joined text stays the same, and there are fewer events."""
    streams, tokens = 200, 400
    with Server("--max-num-seqs", streams, "--limit-queue-tenant-share-percent", 100, NULL_STEP_US=2000, files=2048) as server:
        wanted = json.loads(server.ask("POST", "/v1/completions", completion(tokens, seed=3))[2])["choices"][0]["text"]
        connections = [server.connect() for _ in range(streams)]
        for s in connections:
            s.sendall(message("POST", "/v1/completions", completion(tokens, seed=3, stream=True)))
        count = 0
        for s in connections:
            data = Reply(s).read()[2]
            equal(text_of(data), wanted)
            count += len(events(data))
            s.close()
        print(f"{count / streams:.0f} events for {tokens} tokens a stream")
        assert count < streams * tokens, "nothing was joined"


def test_headers_and_comments_while_nothing_comes():
    with Server("--max-num-seqs", 1, NULL_STEP_US=30000, NULL_HEAD_AFTER_MS=200, NULL_KEEP_ALIVE_MS=200) as server:
        with server.connect() as first, server.connect() as second:
            first.sendall(message("POST", "/v1/completions", completion(100, stream=True)))
            Reply(first).head()
            second.sendall(message("POST", "/v1/completions", completion(2, stream=True)))
            reply = Reply(second)
            equal(reply.head()[0], 200, "while it waits")
            equal(next(reply.chunks()), b": keep-alive\n\n")
            data = b"".join(reply.chunks())
            equal(events(data.replace(b": keep-alive\n\n", b""))[-1], "[DONE]")


def leave(s, how):
    if how == "reset":
        s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    if how == "half-close":
        s.shutdown(socket.SHUT_WR)
        Reply(s).at_end()
    s.close()


def test_clients_that_leave_free_everything():
    with Server(NULL_STEP_US=1000) as server:
        equal_after = 0
        for stream in (True, False):
            for how in ("close", "reset", "half-close"):
                s = server.connect()
                s.sendall(message("POST", "/v1/completions", completion(5000, stream=stream, n=2)))
                wait_for(lambda: server.load()["running"] == 2)
                leave(s, how)
                server.wait_idle()
                equal_after += 1
                line = server.wait_log(" usage .*cause=client_gone", equal_after)
                assert " in_total=5 " in line and "choices=2" in line and "mismatch=0" in line, line
        equal(server.metric("mr_usage_records_total"), equal_after)


def test_clients_that_leave_at_any_byte():
    print("seed", SEED)
    choose = random.Random(SEED)
    data = message("POST", "/v1/completions", completion(50, stream=True, seed=1), {"Connection": "close"})
    with Server(NULL_STEP_US=200) as server:
        whole = read_stream(server, completion(50, seed=1))[2]
        server.wait_log(" usage ")
        for cut in list(range(0, len(data), 5)) + [len(data)]: # of the request
            s = server.connect()
            s.sendall(data[:cut])
            leave(s, choose.choice(["close", "reset"]))
        for _ in range(100): # of the answer
            s = server.connect()
            s.sendall(data)
            want, got = choose.randrange(len(whole)), 0
            while got < want:
                piece = s.recv(min(want - got, 4096))
                if not piece: # tokens that came together make fewer events: this answer is shorter
                    break
                got += len(piece)
            leave(s, choose.choice(["close", "reset"]))
        server.wait_idle()
        wait_for(lambda: server.load()["connections"] == 1)
        equal(server.ask("POST", "/v1/completions", completion(1))[0], 200)
        assert not server.lines("mismatch=1")


def test_slow_reader_is_cut_off_and_others_go_on():
    with Server("--limit-stream-stall-ms", 500, "--limit-stream-unsent-bytes", 4096, "--max-num-seqs", 8, "--max-model-len", 500000,
                NULL_STEP_US=50) as server:
        slow = server.connect(receive_buffer=2048)
        slow.sendall(message("POST", "/v1/completions", completion(400000, stream=True)))
        wait_for(lambda: server.load()["running"] == 1)
        for seed in range(5):
            equal(events(read_stream(server, completion(50, seed=seed))[2])[-1], "[DONE]")
        line = server.wait_log("cause=client_gone")
        assert "mismatch=0" in line and "unseen=0" in line, line
        server.wait_idle()
        slow.close()


def test_slow_reader_that_reads_gets_everything():
    with Server("--limit-stream-unsent-bytes", 4096, NULL_STEP_US=20) as server:
        wanted = json.loads(server.ask("POST", "/v1/completions", completion(3000, seed=7))[2])["choices"][0]["text"]
        with server.connect(receive_buffer=2048) as s:
            s.sendall(message("POST", "/v1/completions", completion(3000, seed=7, stream=True)))
            reply = Reply(s)
            equal(reply.head()[0], 200)
            wait_for(lambda: server.load()["running"] == 0) # the engine is done long before the reader
            data = b"".join(reply.chunks())
            equal(text_of(data), wanted)
            equal(events(data)[-1], "[DONE]")
        server.wait_idle()


def test_metrics_add_up():
    with Server() as server:
        for seed in range(3):
            server.ask("POST", "/v1/completions", completion(10, seed=seed))
        server.wait_log(" usage ", 3)
        equal(server.metric("vllm:generation_tokens_total"), 30)
        equal(server.metric("vllm:prompt_tokens_total"), 15)
        equal(server.metric("vllm:e2e_request_latency_seconds_count"), 3)
        equal(server.metric("vllm:time_to_first_token_seconds_count"), 3)
        equal(server.metric("vllm:request_success_total"), 3)
        equal(server.metric("mr_engine_steps_ahead_total") > 0, os.environ.get("NULL_AHEAD", "0") != "0")
        try:
            from prometheus_client.parser import text_string_to_metric_families as parse
        except ImportError:
            print("prometheus_client is not installed: its parser was not asked")
            return
        families = {f.name: f for f in parse(server.ask("GET", "/metrics")[2].decode())}
        bounds = [s.labels["le"] for s in families["vllm:time_to_first_token_seconds"].samples if "le" in s.labels]
        equal(bounds, [str(float(b)) for b in (.001, .005, .01, .02, .04, .06, .08, .1, .25, .5, .75, 1, 2.5, 5, 7.5, 10, 20, 40, 80,
                                               160, 640, 2560)] + ["+Inf"])
        for name in ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc", "vllm:prompt_tokens",
                     "vllm:request_success", "vllm:time_per_output_token_seconds", "vllm:cache_config_info", "mr_ready"):
            assert name in families, name


if __name__ == "__main__":
    main(globals())
