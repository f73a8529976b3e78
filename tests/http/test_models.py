"""Several models in one server: names, states, memory, admin calls, and what requests meet while models come and go."""
import json
import os
import random
import shutil
import signal
import tempfile
import threading
import time

from harness import Gate, Reply, Server, completion, equal, error_of, events, main, message, wait_for

SEED = 4217
ADMIN = {"Authorization": "Bearer adm"}
TWO = ("second", "--served-model-name", "a,alias", "b", "--admin-key", "adm")


def ask_admin(server, method, path, body=None, key=ADMIN):
    status, headers, data = server.ask(method, path, body, key)
    return status, json.loads(data)


def states(server):
    return {row["id"]: row["state"] for row in ask_admin(server, "GET", "/models")[1]["data"]}


def row(server, name):
    return next(r for r in ask_admin(server, "GET", "/models")[1]["data"] if r["id"] == name)


def start_stream(server, model, tokens=8000):
    s = server.connect()
    s.sendall(message("POST", "/v1/completions", completion(tokens, model=model, stream=True)))
    reply = Reply(s)
    equal(reply.head()[0], 200)
    return reply


def end_of(reply):
    """The last event of a stream, and whether the stream ended as a whole one."""
    data, whole = b"", True
    try:
        for chunk in reply.chunks():
            data += chunk
    except EOFError:
        whole = False
    reply.socket.close()
    return events(data)[-1], whole


def in_thread(function):
    results = []
    thread = threading.Thread(target=lambda: results.append(function()))
    thread.start()
    return thread, results


def test_requests_go_by_name():
    with Server(*TWO) as server:
        for name, shown in (("a", "a"), ("alias", "a"), ("b", "b")):
            status, _, body = server.ask("POST", "/v1/completions", completion(3, model=name))
            equal((status, json.loads(body)["model"]), (200, shown))
            equal(server.ask("POST", "/tokenize", {"model": name, "prompt": "x"})[0], 200)
            equal(server.ask("GET", "/v1/models/" + name)[0], 200)
        for path, body in (("/v1/completions", completion(3, model="c")), ("/tokenize", {"model": "c", "prompt": "x"}),
                           ("/detokenize", {"model": "c", "tokens": [1]})):
            status, _, data = server.ask("POST", path, body)
            error = error_of(data)
            equal((status, error["code"], error["param"]), (404, "model_not_found", "model"), path)
            assert "a, alias, b" in error["message"], error
        status, _, data = server.ask("POST", "/v1/completions", completion(3))
        error = error_of(data)
        equal((status, error["code"], error["param"]), (400, "missing_required_parameter", "model"))
        assert "a, alias, b" in error["message"], error
        status, _, data = server.ask("GET", "/v1/models/c")
        equal((status, error_of(data)["code"]), (404, "model_not_found"))
        cards = json.loads(server.ask("GET", "/v1/models")[2])["data"]
        equal([(c["id"], c["root"], c["state"], c["max_model_len"]) for c in cards],
              [("a", "a", "ready", 8192), ("alias", "a", "ready", 8192), ("b", "b", "ready", 8192)])
        equal(json.loads(server.ask("GET", "/health")[2]), {"status": "ok", "models": {"a": "ready", "b": "ready"}})
        equal(len(server.lines('usage .*model="a" ')), 2)
        equal(len(server.lines('usage .*model="b" ')), 1)


def test_one_model_needs_no_name():
    with Server() as server:
        equal(server.ask("POST", "/v1/completions", completion(2))[0], 200)
        status, _, data = server.ask("POST", "/v1/completions", completion(2, model="other"))
        equal(status, 404)
        assert "null" in error_of(data)["message"]


def test_metrics_of_each_model():
    with Server(*TWO) as server:
        server.ask("POST", "/v1/completions", completion(5, model="a"))
        server.ask("POST", "/v1/completions", completion(7, model="b"))
        server.ask("POST", "/v1/completions", completion(7, model="b"))
        text = server.ask("GET", "/metrics")[2].decode()
        for name, tokens in (("a", 5), ("b", 14)):
            assert f'vllm:generation_tokens_total{{engine="0",model_name="{name}"}} {tokens}\n' in text, name
            assert f'vllm:engine_sleep_state{{engine="0",model_name="{name}",sleep_state="awake"}} 1\n' in text
        equal(text.count("# TYPE vllm:generation_tokens_total "), 1)
        equal(text.count("process_cpu_seconds_total{"), 1)


def test_admin_key_decides():
    with Server("--api-key", "user") as server:
        for path, method in (("/models", "GET"), ("/models/load", "POST"), ("/models/unload", "POST"), ("/sleep", "POST"),
                             ("/wake_up", "POST"), ("/is_sleeping", "GET")):
            for key in ({}, {"Authorization": "Bearer user"}, {"Authorization": "Bearer adm"}):
                status, _, data = server.ask(method, path, {} if method == "POST" else None, key)
                equal((status, error_of(data)["code"]), (403, "admin_key_not_set"), path)
                assert "--admin-key" in error_of(data)["message"]
    with Server("--api-key", "user", MILLRACE_ADMIN_KEY="adm") as server:
        for key, status in (({}, 401), ({"Authorization": "Bearer user"}, 401), ({"Authorization": "Bearer ad"}, 401),
                            ({"Authorization": "Bearer adm"}, 200), ({"x-api-key": "adm"}, 200)):
            equal(server.ask("GET", "/models", None, key)[0], status, key)
        equal(server.ask("POST", "/v1/completions", completion(1), ADMIN)[0], 401, "an admin key is no API key")


def test_sleep_and_wake():
    with Server(*TWO, NULL_LEAST_BYTES=65536, NULL_WEIGHTS_BYTES=1000) as server:
        awake = row(server, "a")
        equal((awake["state"], awake["weights_bytes"]), ("ready", 1000))
        assert awake["kv_bytes"] > 0 and awake["load_seconds"] > 0, awake
        for level, weights, states_on in ((1, 1000, "weights_offloaded"), (2, 0, "discard_all")):
            status, body = ask_admin(server, "POST", f"/sleep?level={level}&model=a", b"")
            equal((status, body["state"], body["sleep_level"], body["kv_bytes"], body["weights_bytes"]),
                  (200, "asleep", level, 0, weights))
            equal(ask_admin(server, "GET", "/is_sleeping?model=a")[1], {"is_sleeping": True})
            equal(ask_admin(server, "GET", "/is_sleeping?model=b")[1], {"is_sleeping": False})
            assert f'engine_sleep_state{{engine="0",model_name="a",sleep_state="{states_on}"}} 1\n' in server.ask("GET", "/metrics")[2].decode()
            equal(ask_admin(server, "POST", f"/sleep?level={level}&model=a", b"")[0], 200, "once more")
            equal(server.ask("POST", "/v1/completions", completion(2, model="b"))[0], 200, "the other serves")
            equal(server.ask("GET", "/readyz")[0], 200)
            if level == 1:
                status, body = ask_admin(server, "POST", "/wake_up?model=a", b"")
                equal((status, body["state"], body["kv_bytes"]), (200, "ready", awake["kv_bytes"]))
            else: # a request wakes it
                status, _, body = server.ask("POST", "/v1/completions", completion(2, model="alias"))
                equal((status, json.loads(body)["model"]), (200, "a"))
            woken = row(server, "a")
            assert woken["wake_seconds"] > 0 and woken["wake_estimate_seconds"] > 0, woken
            equal(ask_admin(server, "POST", "/wake_up?model=a", b"")[0], 200, "already")
        equal(server.metric("vllm:generation_tokens_total"), 6, "counters outlive a sleep")
        for query, param in (("level=3", "level"), ("level=", "level"), ("drain=-1", "drain"), ("drain=x", "drain"), ("mode=keep", "mode")):
            status, body = ask_admin(server, "POST", f"/sleep?model=a&{query}", b"")
            equal((status, body["error"]["param"]), (400, param))
        equal(ask_admin(server, "POST", "/sleep", b"")[0], 400, "no name")
        equal(ask_admin(server, "POST", "/sleep?model=c", b"")[0], 404)


def test_one_model_sleeps_without_a_name():
    with Server("--admin-key", "adm") as server:
        equal(ask_admin(server, "POST", "/sleep", b"")[0], 200)
        equal(ask_admin(server, "GET", "/is_sleeping")[1], {"is_sleeping": True})
        equal(ask_admin(server, "POST", "/wake_up", b"")[0], 200)
        equal(server.ask("POST", "/v1/completions", completion(2))[0], 200)


def test_many_requests_wait_for_one_wake():
    with Gate() as gate, Server("--admin-key", "adm", NULL_GATE=gate.path) as server:
        ask_admin(server, "POST", "/sleep?level=2", b"")
        gate.shut()
        waiting = [in_thread(lambda: server.ask("POST", "/v1/completions", completion(3))) for _ in range(8)]
        stream = server.connect()
        stream.sendall(message("POST", "/v1/completions", completion(3, stream=True)))
        leaver = server.connect()
        leaver.sendall(message("POST", "/v1/completions", completion(3)))
        wait_for(lambda: server.metric("vllm:num_requests_waiting") == 10)
        leaver.close() # while the model wakes
        wait_for(lambda: server.metric("vllm:num_requests_waiting") == 9)
        equal(ask_admin(server, "POST", "/sleep", b"")[0], 409)
        gate.open()
        for thread, results in waiting:
            thread.join(60)
            equal(results[0][0], 200)
        reply = Reply(stream)
        equal(reply.head()[0], 200)
        equal(end_of(reply), ("[DONE]", True))
        server.wait_idle()


def test_a_wake_that_takes_too_long_ends_the_wait():
    with Gate() as gate, Server("--admin-key", "adm", "--limit-request-deadline-ms", 1000, NULL_GATE=gate.path) as server:
        ask_admin(server, "POST", "/sleep?level=2", b"")
        gate.shut()
        status, _, data = server.ask("POST", "/v1/completions", completion(2))
        equal((status, error_of(data)["code"]), (504, "deadline_exceeded"))
        gate.open()
        wait_for(lambda: states(server) == {"null": "ready"})
        equal(server.ask("POST", "/v1/completions", completion(2))[0], 200)


def test_without_auto_wake_a_sleeper_refuses():
    with Gate() as gate, Server("--admin-key", "adm", "--no-auto-wake", NULL_LOAD_MS=1200, NULL_GATE=gate.path) as server:
        ask_admin(server, "POST", "/sleep?level=2", b"")
        status, headers, data = server.ask("POST", "/v1/completions", completion(2))
        equal((status, error_of(data)["code"]), (503, "model_asleep"))
        assert int(headers["retry-after"]) >= 2, headers # loading took 1.2 s
        gate.shut()
        thread, results = in_thread(lambda: ask_admin(server, "POST", "/wake_up", b""))
        wait_for(lambda: states(server) == {"null": "waking"})
        equal(server.ask("POST", "/v1/completions", completion(2))[0], 503)
        equal(ask_admin(server, "POST", "/sleep", b"")[0], 409)
        equal(ask_admin(server, "POST", "/models/unload", {"model": "null"})[0], 409)
        gate.open()
        thread.join(60)
        equal(results[0][0], 200)
        equal(server.ask("POST", "/v1/completions", completion(2))[0], 200)


def test_sleep_cuts_or_drains_requests():
    with Server(*TWO, NULL_STEP_US=2000) as server:
        cut, stays = start_stream(server, "a"), start_stream(server, "b", 300)
        plain = in_thread(lambda: server.ask("POST", "/v1/completions", completion(5000, model="a")))
        wait_for(lambda: server.load()["running"] == 3)
        equal(ask_admin(server, "POST", "/sleep?model=a", b"")[0], 200)
        last, whole = end_of(cut)
        equal((json.loads(last)["error"]["code"], whole), ("model_unloaded", False))
        plain[0].join(60)
        status, headers, data = plain[1][0]
        equal((status, error_of(data)["code"]), (503, "model_unloaded"))
        assert "retry-after" in headers
        equal(len(server.lines('usage .*model="a" cause=platform_cancel')), 2)
        equal(end_of(stays), ("[DONE]", True))
        # with time to drain: what runs ends as it would have, what comes is refused
        drained = start_stream(server, "a", 300)
        thread, results = in_thread(lambda: ask_admin(server, "POST", "/sleep?model=a&drain=60", b""))
        wait_for(lambda: states(server)["a"] in ("draining", "asleep"))
        if states(server)["a"] == "draining":
            status, _, data = server.ask("POST", "/v1/completions", completion(1, model="a"))
            assert status in (503, 200), status
        equal(end_of(drained), ("[DONE]", True))
        thread.join(60)
        equal((results[0][0], results[0][1]["state"]), (200, "asleep"))
        # with too little time
        late = start_stream(server, "a")
        equal(ask_admin(server, "POST", "/sleep?model=a&drain=0.2&level=2", b"")[0], 200)
        equal(json.loads(end_of(late)[0])["error"]["code"], "model_unloaded")
        server.wait_idle()


def test_unload_and_load():
    folder = os.path.realpath(tempfile.mkdtemp())
    outside = os.path.realpath(tempfile.mkdtemp())
    try:
        for name in ("third.gguf", "broken.gguf"):
            open(os.path.join(folder, name), "w").close()
        os.mkdir(os.path.join(folder, "hf-model"))
        open(os.path.join(outside, "x.gguf"), "w").close()
        os.symlink(os.path.join(outside, "x.gguf"), os.path.join(folder, "link.gguf"))
        with Server(*TWO, "--model-dir", folder, NULL_STEP_US=2000) as server:
            stream, other = start_stream(server, "a"), start_stream(server, "b", 400)
            status, body = ask_admin(server, "POST", "/models/unload", {"model": "alias"})
            equal((status, body["id"], body["state"]), (200, "a", "gone"))
            equal(json.loads(end_of(stream)[0])["error"]["code"], "model_unloaded")
            equal(list(states(server)), ["b"])
            equal(server.ask("POST", "/v1/completions", completion(1, model="a"))[0], 404)
            equal(server.ask("POST", "/v1/completions", completion(1))[0], 200, "one is left: it needs no name")
            equal(ask_admin(server, "POST", "/models/unload", {"model": "a"})[0], 404)
            for path, names, shown in (("third.gguf", "c", "c"), ("hf-model", ["d", "e"], "d")):
                status, body = ask_admin(server, "POST", "/models/load", {"model": names, "path": os.path.join(folder, path)})
                equal((status, body["id"], body["state"]), (200, shown, "ready"), path)
                equal(server.ask("POST", "/v1/completions", completion(1, model=shown))[0], 200)
            equal(body["aliases"], ["e"])
            status, body = ask_admin(server, "POST", "/models/load", {"model": "e", "path": os.path.join(folder, "third.gguf")})
            equal((status, body["error"]["code"]), (409, "model_state_conflict"))
            status, body = ask_admin(server, "POST", "/models/load", {"model": "f", "path": os.path.join(folder, "broken.gguf")})
            equal((status, body["error"]["message"]), (400, "this model does not load"))
            equal((row(server, "f")["state"], row(server, "f")["reason"]), ("failed", "this model does not load"))
            status, _, data = server.ask("POST", "/v1/completions", completion(1, model="f"))
            equal((status, error_of(data)["code"]), (503, "model_failed"))
            status, body = ask_admin(server, "POST", "/models/load", {"model": "f", "path": os.path.join(folder, "third.gguf")})
            equal((status, body["state"]), (200, "ready"), "a failed one is replaced")
            for path in (os.path.join(outside, "x.gguf"), os.path.join(folder, "link.gguf"), folder, "/etc/passwd", "/no/such",
                         os.path.join(folder, "..", os.path.basename(outside), "x.gguf"), folder + "2/x", "", "third.gguf"):
                status, body = ask_admin(server, "POST", "/models/load", {"model": "g", "path": path})
                equal((status, body["error"]["code"]), (403, "path_not_allowed"), path)
            for body in ({"model": "g"}, {"path": os.path.join(folder, "third.gguf")}, {"model": "", "path": os.path.join(folder, "third.gguf")},
                         {"model": [], "path": os.path.join(folder, "third.gguf")}, {"model": ["x", "x"], "path": os.path.join(folder, "third.gguf")},
                         {"model": "g", "path": os.path.join(folder, "third.gguf"), "kv_cache_memory_bytes": -1}, b"[]", b"{", b"null"):
                equal(ask_admin(server, "POST", "/models/load", body)[0], 400, body)
            equal(end_of(other), ("[DONE]", True))
            assert "g" not in states(server)
    finally:
        shutil.rmtree(folder)
        shutil.rmtree(outside)


def test_a_model_of_the_start_may_be_loaded_again():
    here = tempfile.mkdtemp()
    try:
        path = os.path.join(here, "m.gguf")
        open(path, "w").close()
        with Server(path, "--admin-key", "adm") as server:
            equal(ask_admin(server, "POST", "/models/unload", {"model": "m"})[0], 200)
            equal(server.ask("GET", "/readyz")[0], 200)
            equal(ask_admin(server, "POST", "/models/load", {"model": "again", "path": path})[0], 200)
            equal(server.ask("POST", "/v1/completions", completion(1, model="again"))[0], 200)
    finally:
        shutil.rmtree(here)


def test_load_and_unload_of_one_name_at_once():
    folder = os.path.realpath(tempfile.mkdtemp())
    try:
        path = os.path.join(folder, "m.gguf")
        open(path, "w").close()
        with Gate() as gate, Server("--admin-key", "adm", "--model-dir", folder, NULL_GATE=gate.path) as server:
            gate.shut()
            thread, results = in_thread(lambda: ask_admin(server, "POST", "/models/load", {"model": "s", "path": path}))
            wait_for(lambda: states(server).get("s") == "loading")
            equal(ask_admin(server, "POST", "/models/load", {"model": "s", "path": path})[0], 409)
            equal(ask_admin(server, "POST", "/models/unload", {"model": "s"})[0], 409)
            equal(ask_admin(server, "POST", "/sleep?model=s", b"")[0], 409)
            status, headers, data = server.ask("POST", "/v1/completions", completion(1, model="s"))
            equal((status, error_of(data)["code"]), (503, "model_loading"))
            assert "retry-after" in headers
            equal(server.ask("POST", "/v1/completions", completion(1, model="null"))[0], 200)
            with server.connect() as s: # an admin that leaves; what it began goes on
                s.sendall(message("POST", "/models/load", {"model": "t", "path": path}, ADMIN))
                wait_for(lambda: states(server).get("t") == "loading")
            gate.open()
            thread.join(60)
            equal(results[0][0], 200)
            wait_for(lambda: states(server)["t"] == "ready")
    finally:
        shutil.rmtree(folder)


def test_memory_limit():
    folder = os.path.realpath(tempfile.mkdtemp())
    try:
        path = os.path.join(folder, "m.gguf")
        open(path, "w").close()
        figures = {"NULL_WEIGHTS_BYTES": 1000000, "NULL_LEAST_BYTES": 655360}
        limit = ("--memory-limit", 4000000, "--kv-cache-memory-bytes", 1310720, "--model-dir", folder)
        with Server(*TWO, *limit, **figures) as server: # 2 x (1000000 + 655360), 689280 are left
            used = ask_admin(server, "GET", "/models")[1]
            equal((used["memory_limit_bytes"], used["memory_used_bytes"]), (4000000, 3310720))
            status, body = ask_admin(server, "POST", "/models/load", {"model": "c", "path": path})
            equal((status, body["error"]["code"]), (409, "insufficient_memory"))
            for text in ("c needs 655360 bytes", "0 of 1310720 are left", "unload or put to sleep", "a (655360 bytes)"):
                assert text in body["error"]["message"], body
            equal(ask_admin(server, "POST", "/sleep?level=1&model=a", b"")[0], 200) # KV is free now, memory for weights is not
            status, body = ask_admin(server, "POST", "/models/load", {"model": "c", "path": path})
            equal((status, body["error"]["code"]), (409, "insufficient_memory"))
            for text in ("c needs 1655360 bytes", "1344640 of 4000000 are left", "b (1655360 bytes)", "a (1000000 bytes)"):
                assert text in body["error"]["message"], body
            equal(ask_admin(server, "POST", "/sleep?level=2&model=a", b"")[0], 200)
            status, body = ask_admin(server, "POST", "/models/load", {"model": "c", "path": path})
            equal((status, body["kv_bytes"]), (200, 655360))
            status, headers, data = server.ask("POST", "/v1/completions", completion(1, model="a")) # its memory is c's now
            equal((status, error_of(data)["code"]), (503, "insufficient_memory"))
            status, body = ask_admin(server, "POST", "/wake_up?model=a", b"")
            equal((status, body["error"]["code"]), (409, "insufficient_memory"))
            assert "a needs 655360 bytes, 0 of 1310720 are left" in body["error"]["message"], body
            equal(states(server), {"a": "asleep", "b": "ready", "c": "ready"})
            equal(ask_admin(server, "POST", "/models/unload", {"model": "c"})[0], 200)
            equal(server.ask("POST", "/v1/completions", completion(1, model="a"))[0], 200)
        # without a word on the KV memory the limit of all decides
        with Server(*TWO, "--memory-limit", 5000000, "--model-dir", folder, **figures) as server:
            equal([r["kv_bytes"] for r in ask_admin(server, "GET", "/models")[1]["data"]], [655360, 655360])
            status, body = ask_admin(server, "POST", "/models/load", {"model": "c", "path": path})
            equal((status, body.get("kv_bytes")), (200, 655360))
            status, body = ask_admin(server, "POST", "/models/load", {"model": "d", "path": path})
            equal((status, body["error"]["code"]), (409, "insufficient_memory"))
            assert body["error"]["message"].startswith("memory: d needs 1655360 bytes"), body
        for options, text in ((("--memory-limit", 2000000), "memory: "), (("--kv-cache-memory-bytes", 1310719), "one sequence of full context of each model needs 1310720")):
            server = Server(*TWO, *options, ready=False, **figures)
            server.wait_exit(1)
            equal(len([line for line in server.lines("^error ") if text in line]), 1)
    finally:
        shutil.rmtree(folder)


def test_kv_memory_is_divided_by_need():
    with Server(*TWO, "--kv-cache-memory-bytes", 6553600, NULL_LEAST_BYTES=655360) as server:
        equal([r["kv_bytes"] for r in ask_admin(server, "GET", "/models")[1]["data"]], [3276800, 3276800])


def test_the_first_serves_while_the_second_loads():
    with Server("slow", "--served-model-name", "a", "b", "--admin-key", "adm", ready=False, NULL_SLOW_MS=60000) as server:
        # all are opened before the first is built, to divide the memory: so neither is up yet
        status, _, data = server.ask("POST", "/v1/completions", completion(1, model="a"))
        equal((status, error_of(data)["code"]), (503, "model_loading"))
        equal(server.ask("GET", "/readyz")[0], 503)
        equal(server.ask("GET", "/livez")[0], 200)
        equal(set(states(server).values()), {"loading"})
        server.stop() # SIGTERM while the second loads


def test_kill_while_an_admin_load_runs():
    folder = os.path.realpath(tempfile.mkdtemp())
    try:
        path = os.path.join(folder, "slow.gguf")
        open(path, "w").close()
        with Server("--admin-key", "adm", "--model-dir", folder, NULL_SLOW_MS=60000, NULL_STEP_US=2000) as server:
            stream = start_stream(server, "null", 200)
            admin = server.connect()
            admin.sendall(message("POST", "/models/load", {"model": "s", "path": path}, ADMIN))
            wait_for(lambda: states(server).get("s") == "loading")
            server.process.send_signal(signal.SIGTERM)
            equal(end_of(stream), ("[DONE]", True), "the drain waits for requests, not for a load")
            status, _, data = Reply(admin).read()
            equal((status, error_of(data)["code"]), (503, "draining"))
            admin.close()
            server.wait_exit(0)
    finally:
        shutil.rmtree(folder)


def test_one_of_the_start_that_fails_ends_the_process():
    server = Server("broken", "--served-model-name", "a", "b", ready=False)
    server.wait_exit(1)
    equal(len(server.lines("^error .*this model does not load")), 1)


def test_drain_with_two_models():
    with Server(*TWO, "--shutdown-timeout", 60, NULL_STEP_US=3000) as server:
        streams = [start_stream(server, name, 150) for name in ("a", "b") for _ in range(20)]
        server.process.send_signal(signal.SIGTERM)
        server.wait_log("serve drain")
        equal(ask_admin(server, "POST", "/sleep?model=a", b"")[0], 503)
        for stream in streams:
            equal(end_of(stream), ("[DONE]", True))
        server.wait_exit(0)
        for name in ("a", "b"):
            equal(len(server.lines(f'usage .*model="{name}" cause=length .*mismatch=0')), 20)


def test_two_busy_models_take_turns():
    with Server(*TWO, NULL_STEP_US=3000) as server:
        streams = [start_stream(server, name, 400) for name in ("a", "b")]
        for stream in streams:
            equal(end_of(stream), ("[DONE]", True))
        text = server.ask("GET", "/metrics")[2].decode()
        for name in ("a", "b"): # each has waited for the other's steps
            waited = float(text.split(f'mr_engine_turn_seconds_total{{engine="0",model_name="{name}"}} ')[1].split("\n")[0])
            assert waited > 0, (name, waited)


def test_with_no_model_that_serves_the_answer_tells_why():
    folder = os.path.realpath(tempfile.mkdtemp())
    try:
        for name in ("broken.gguf", "slow.gguf"):
            open(os.path.join(folder, name), "w").close()
        with Server("--admin-key", "adm", "--model-dir", folder, NULL_SLOW_MS=60000) as server:
            equal(ask_admin(server, "POST", "/models/unload", {"model": "null"})[0], 200)
            equal(server.ask("GET", "/health")[0], 200)
            equal(ask_admin(server, "POST", "/models/load", {"model": "f", "path": os.path.join(folder, "broken.gguf")})[0], 400)
            with server.connect() as s:
                s.sendall(message("POST", "/models/load", {"model": "s", "path": os.path.join(folder, "slow.gguf")}, ADMIN))
                wait_for(lambda: states(server) == {"f": "failed", "s": "loading"})
                for name, expected in (("null", (404, "model_not_found")), ("f", (503, "model_failed")), ("s", (503, "model_loading"))):
                    status, _, data = server.ask("POST", "/v1/completions", completion(1, model=name))
                    equal((status, error_of(data)["code"]), expected, name)
    finally:
        shutil.rmtree(folder)


def test_waits_for_one_wake_are_bounded_and_leave_the_others_alone():
    with Gate() as gate, Server(*TWO, "--max-num-queued-reqs", 2, NULL_GATE=gate.path) as server:
        equal(ask_admin(server, "POST", "/sleep?level=2&model=b", b"")[0], 200)
        gate.shut()
        waiting = [in_thread(lambda: server.ask("POST", "/v1/completions", completion(2, model="b"))) for _ in range(2)]
        wait_for(lambda: server.metric("vllm:num_requests_waiting") == 2)
        for _ in range(3):
            status, headers, data = server.ask("POST", "/v1/completions", completion(2, model="b"))
            equal((status, error_of(data)["code"]), (503, "overloaded"))
            assert "retry-after" in headers
            equal(server.ask("POST", "/v1/completions", completion(2, model="a"))[0], 200)
        gate.open()
        for thread, results in waiting:
            thread.join(60)
            equal(results[0][0], 200)


def test_a_wake_counts_the_model_as_it_was():
    folder = os.path.realpath(tempfile.mkdtemp())
    try:
        path = os.path.join(folder, "m.gguf")
        open(path, "w").close()
        # three packed models fit; two and a file do not
        with Server(*TWO, "--memory-limit", 5000000, "--model-dir", folder, NULL_WEIGHTS_BYTES=1000000, NULL_FILE_BYTES=1500000,
                    NULL_LEAST_BYTES=655360) as server:
            equal(ask_admin(server, "POST", "/sleep?level=2&model=a", b"")[0], 200)
            equal(ask_admin(server, "POST", "/models/load", {"model": "c", "path": path})[0], 200)
            status, body = ask_admin(server, "POST", "/wake_up?model=a", b"")
            equal((status, body.get("state"), body.get("kv_bytes")), (200, "ready", 655360))
            equal(ask_admin(server, "GET", "/models")[1]["memory_used_bytes"], 3 * 1655360)
    finally:
        shutil.rmtree(folder)


def test_a_spoiled_name_means_no_model():
    with Server("--admin-key", "adm") as server: # one model: without a name it would be meant
        for name in (5, "", ["null"], {}, True, "n" * 512, "n" * 3000):
            for path in ("/models/unload", "/sleep", "/wake_up"):
                status, body = ask_admin(server, "POST", path, {"model": name})
                equal((status, body["error"]["param"]), (400, "model"), (path, name))
        equal(states(server), {"null": "ready"})
        equal(ask_admin(server, "POST", "/models/unload", {"model": None})[0], 200)


def pipelined(server, *calls):
    """Sends calls in one piece over one connection: (status, object) of each answer."""
    with server.connect() as s:
        s.sendall(b"".join(message(method, path, body, ADMIN) for method, path, body in calls))
        reply = Reply(s)
        answers = [reply.read(method) for method, _, _ in calls]
        return [(status, json.loads(data)) for status, _, data in answers]


def test_calls_behind_a_call_that_waits():
    """The next request of a connection comes in while the answer to the last is given, and may change the models."""
    folder = os.path.realpath(tempfile.mkdtemp())
    try:
        paths = [os.path.join(folder, name) for name in ("broken.gguf", "m.gguf")]
        for path in paths:
            open(path, "w").close()
        with Server("--admin-key", "adm", "--model-dir", folder, NULL_LOAD_MS=200, NULL_STEP_US=2000) as server:
            # the second load replaces the record of which the first is told that it failed
            broken = ("POST", "/models/load", {"model": "m", "path": paths[0]})
            whole = ("POST", "/models/load", {"model": "m", "path": paths[1]})
            answers = pipelined(server, broken, broken, broken, whole, ("POST", "/sleep?level=2&model=m", b""))
            equal([(status, body.get("state")) for status, body in answers],
                  [(400, None), (400, None), (400, None), (200, "ready"), (200, "asleep")])
            # of two who wait for one wake the first to be answered puts the model to sleep again
            thread, results = in_thread(lambda: ask_admin(server, "POST", "/wake_up?model=m", b""))
            wait_for(lambda: states(server)["m"] == "waking")
            answers = pipelined(server, ("POST", "/wake_up?model=m", b""), ("POST", "/sleep?level=2&model=m", b""))
            thread.join(60)
            equal(([status for status, _ in answers], results[0][0]), ([200, 200], 200))
            equal(answers[1][1]["state"], "asleep")
            # a call's own answer lets a sleep in that cuts others
            streams = [start_stream(server, "null") for _ in range(4)]
            answers = pipelined(server, ("POST", "/v1/completions", completion(3, model="m")), ("POST", "/sleep?model=null", b""),
                                ("POST", "/models/unload", {"model": "m"}))
            equal([status for status, _ in answers], [200, 200, 200])
            for stream in streams:
                equal(json.loads(end_of(stream)[0])["error"]["code"], "model_unloaded")
            equal(states(server), {"null": "asleep"})
            server.wait_idle()
    finally:
        shutil.rmtree(folder)


def test_random_admin_calls():
    """Spoiled bodies and queries: an error object each time, and the models are as before."""
    print("seed", SEED)
    choose = random.Random(SEED)
    calls = [("/models/load", b'{"model": ["x", "y"], "path": "/no/such", "kv_cache_memory_bytes": 5}'), ("/models/load", b'{"model": "x", "path": "null"}'),
             ("/models/unload?drain=1.5", b'{"model": "x"}'), ("/sleep?level=7&model=%61%zz&drain=1e3&mode=wait", b""), ("/wake_up?model=" + "n" * 700, b""),
             ("/wake_up?model=", b'{"model": 5}'), ("/sleep?level=1&level=2&model=c&&=&x", b"{}")]
    with Server(*TWO) as server:
        for _ in range(400):
            path, body = choose.choice(calls)
            spoiled = [bytearray(path.encode()), bytearray(body)]
            for data in spoiled:
                for _ in range(choose.randrange(3) if data else 0):
                    data[choose.randrange(1, len(data))] = choose.choice(b'"{}[],:0aZ%&=?.-\\')
            status, _, data = server.ask("POST", spoiled[0].decode(), bytes(spoiled[1]), ADMIN)
            assert 400 <= status < 500, (status, spoiled)
            error_of(data)
        equal(states(server), {"a": "ready", "b": "ready"})
        equal(server.ask("POST", "/v1/completions", completion(1, model="a"))[0], 200)


def test_models_come_and_go_under_load():
    """Requests for all names while an operator loads, unloads, puts to sleep and wakes: every answer is a whole one."""
    folder = os.path.realpath(tempfile.mkdtemp())
    try:
        path = os.path.join(folder, "m.gguf")
        open(path, "w").close()
        with Server(*TWO, "--model-dir", folder, "--limit-queue-tenant-share-percent", 100, NULL_STEP_US=300) as server:
            over, counts, wrong = threading.Event(), {}, []

            def client(seed):
                number = seed
                while not over.is_set():
                    number += 1
                    status, _, body = server.ask("POST", "/v1/completions", completion(number % 20 + 1, model="abc"[number % 3]))
                    counts[status] = counts.get(status, 0) + 1
                    if status == 200 and json.loads(body)["model"] != "abc"[number % 3]:
                        wrong.append(body)
                    if status not in (200, 404, 503):
                        wrong.append(body)
            threads = [threading.Thread(target=client, args=(i,)) for i in range(8)]
            for t in threads:
                t.start()
            for number in range(25):
                for method, target, body in (("POST", f"/sleep?model=a&level={number % 2 + 1}", b""), ("POST", "/models/load", {"model": "c", "path": path}),
                                             ("POST", "/sleep?model=b&drain=1", b""), ("POST", "/wake_up?model=b", b""),
                                             ("POST", "/models/unload?drain=0.05", {"model": "c"})):
                    status, answer = ask_admin(server, method, target, body)
                    assert status in (200, 409), (target, status, answer)
            over.set()
            for t in threads:
                t.join(60)
            equal(wrong, [])
            assert counts.get(200, 0) > 100, counts
            server.wait_idle()
    finally:
        shutil.rmtree(folder)


if __name__ == "__main__":
    main(globals())
