"""Requests as bytes: routes, errors, keep-alive, pipelining, smuggling, and what a connection is good for afterwards."""
import json

from harness import Reply, Server, completion, equal, error_of, events, main, message

HIDDEN = b"GET /hidden HTTP/1.1\r\nHost: a\r\n\r\n"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"


def test_routes():
    with Server() as server:
        for method, path, status in [("GET", "/health", 200), ("GET", "/livez", 200), ("GET", "/readyz", 200),
                                     ("GET", "/ping", 200), ("POST", "/ping", 200), ("GET", "/metrics", 200),
                                     ("GET", "/version", 200), ("GET", "/load", 200), ("GET", "/v1/models", 200),
                                     ("GET", "/v1/models/null", 200), ("GET", "/v1/models/n%75ll", 200),
                                     ("GET", "/v1/models/other", 404), ("GET", "/v1/models/", 404), ("GET", "/nope", 404),
                                     ("GET", "/health/", 404), ("GET", "/health?x=1", 200), ("DELETE", "/health", 405),
                                     ("POST", "/health", 405), ("GET", "/v1/chat/completions", 405), ("OPTIONS", "/v1/models", 405)]:
            got, headers, body = server.ask(method, path)
            equal(got, status, f"{method} {path}")
            assert headers["x-request-id"].startswith("req_") and "openai-processing-ms" in headers and "date" in headers
            if status >= 400:
                error_of(body)
            equal("allow" in headers, status == 405, f"Allow for {method} {path}")
        equal(server.ask("GET", "/nope")[2] and error_of(server.ask("GET", "/nope")[2])["code"], "unknown_url")


def test_head_has_the_length_of_get_and_no_body():
    with Server() as server, server.connect() as s:
        reply = Reply(s)
        length = server.ask("GET", "/v1/models")[1]["content-length"]
        s.sendall(message("HEAD", "/v1/models") + message("GET", "/version"))
        status, headers, body = reply.read("HEAD")
        equal((status, headers["content-length"]), (200, length))
        equal(reply.read()[0], 200)


def test_request_ids():
    with Server() as server:
        for given, kept in [("abc-1.2_3:4", True), ("x" * 128, True), ("x" * 129, False), ("a b", False), ("a\u00e4", False), ("", False)]:
            _, headers, _ = server.ask("GET", "/version", headers={"X-Request-Id": given})
            equal(headers["x-request-id"] == given, kept, f"id {given!r}")


def test_media_types():
    with Server() as server:
        for kind, status in [("application/json", 200), ("application/json; charset=utf-8", 200), ("Application/JSON", 200),
                             ("application/vnd.api+json", 200), (None, 200), ("text/plain", 415),
                             ("application/x-www-form-urlencoded", 415), ("application/jsonx", 415), ("+json", 415)]:
            equal(server.ask("POST", "/v1/completions", completion(1), {"Content-Type": kind} if kind else
                             {"Content-Type": None})[0], status, f"type {kind}")


def test_bodies():
    with Server() as server:
        equal(server.ask("POST", "/v1/completions")[0], 400, "no body")
        equal(server.ask("POST", "/v1/completions", b"{")[0], 400, "half a body")
        equal(server.ask("POST", "/v1/completions", b"")[0], 400, "empty body")
        body = json.dumps(completion(2)).encode()
        for size in (1, 3, 1000):
            chunked = b"".join(b"%x\r\n%s\r\n" % (len(body[i:i + size]), body[i:i + size]) for i in range(0, len(body), size)) + b"0\r\n\r\n"
            with server.connect() as s:
                s.sendall(POST + b"Transfer-Encoding: chunked\r\n\r\n" + chunked)
                equal(Reply(s).read()[0], 200, f"chunks of {size}")


def test_smuggling_is_refused_and_closed():
    cases = {
        "CL.TE": POST + b"Content-Length: 6\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\nX" + HIDDEN,
        "TE.CL": POST + b"Transfer-Encoding: chunked\r\nContent-Length: 4\r\n\r\n5c\r\n" + HIDDEN + b"0\r\n\r\n",
        "two lengths": POST + b"Content-Length: 0\r\nContent-Length: 34\r\n\r\n" + HIDDEN,
        "obscured encoding": POST + b"Transfer-Encoding: chunked\x0b\r\n\r\n0\r\n\r\n" + HIDDEN,
        "space before colon": POST + b"Content-Length : 3\r\n\r\nabc" + HIDDEN,
        "bare LF": b"GET /version HTTP/1.1\nHost: a\n\n" + HIDDEN,
        "chunk LF": POST + b"Transfer-Encoding: chunked\r\n\r\n1;a\nx\r\n0\r\n\r\n" + HIDDEN,
        "folding": b"GET /version HTTP/1.1\r\nHost: a\r\nX: 1\r\n Y: 2\r\n\r\n" + HIDDEN,
        "two hosts": b"GET /version HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n" + HIDDEN,
    }
    with Server() as server:
        for name, data in cases.items():
            with server.connect() as s:
                s.sendall(data)
                reply = Reply(s)
                status, headers, body = reply.read()
                equal((status, headers["connection"]), (400, "close"), name)
                error_of(body)
                assert reply.at_end(), f"{name}: more than one answer"


def test_a_body_is_not_a_request():
    with Server() as server, server.connect() as s: # the hidden one is data here, and a second answer there
        s.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(HIDDEN) + HIDDEN + message("GET", "/version"))
        reply = Reply(s)
        equal(reply.read()[0], 400, "not JSON")
        equal(reply.read()[0], 200, "the next one")
        s.sendall(message("GET", "/nope", headers={"Content-Length": "0"}) + HIDDEN)
        equal([reply.read()[0], reply.read()[0]], [404, 404])


def test_every_cut_gives_the_same_answer():
    data = message("POST", "/v1/completions", completion(3, seed=1), {"X-Request-Id": "same"})
    with Server() as server:
        with server.connect() as s:
            s.sendall(data)
            whole = json.loads(Reply(s).read()[2])["choices"]
        for cut in range(1, len(data), 7):
            with server.connect() as s:
                s.sendall(data[:cut])
                server.ask("GET", "/livez") # a turn of the loop in between
                s.sendall(data[cut:])
                equal(json.loads(Reply(s).read()[2])["choices"], whole, f"cut at {cut}")
        with server.connect() as s:
            for i in range(len(data)):
                s.sendall(data[i:i + 1])
            equal(json.loads(Reply(s).read()[2])["choices"], whole, "byte by byte")


def test_keep_alive_and_close():
    with Server() as server:
        with server.connect() as s:
            reply = Reply(s)
            for _ in range(100):
                s.sendall(message("GET", "/version"))
                status, headers, _ = reply.read()
                assert status == 200 and "connection" not in headers
            s.sendall(message("GET", "/version", headers={"Connection": "close"}))
            equal(reply.read()[1]["connection"], "close")
            assert reply.at_end()
        for headers, stays in [({}, False), ({"Connection": "keep-alive"}, True)]:
            with server.connect() as s:
                s.sendall(message("GET", "/version", headers=headers, version="1.0"))
                reply = Reply(s)
                equal(reply.read()[1]["connection"], "keep-alive" if stays else "close", f"1.0 {headers}")
                if not stays:
                    assert reply.at_end()


def test_http_1_0_stream_ends_with_the_connection():
    with Server() as server, server.connect() as s:
        s.sendall(message("POST", "/v1/completions", completion(5, stream=True), version="1.0"))
        status, headers, body = Reply(s).read()
        assert status == 200 and "transfer-encoding" not in headers
        equal(events(body)[-1], "[DONE]")


def test_expect_continue():
    with Server() as server:
        body = json.dumps(completion(1)).encode()
        head = POST + b"Expect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body)
        with server.connect() as s:
            reply = Reply(s)
            s.sendall(head)
            equal(reply.until(b"\r\n\r\n"), b"HTTP/1.1 100 Continue")
            s.sendall(body)
            equal(reply.read()[0], 200)
        with server.connect() as s: # refused before the body: no 100, and the connection ends
            reply = Reply(s)
            s.sendall(head.replace(b"/v1/completions", b"/nope"))
            status, headers, _ = reply.read()
            equal((status, headers["connection"]), (404, "close"))


def test_pipelining():
    limit = 4
    with Server("--limit-http-pipelined", limit) as server:
        with server.connect() as s: # answers come in order, a slow one does not let the others pass
            s.sendall(message("POST", "/v1/completions", completion(20)) + message("GET", "/version") + message("GET", "/nope") +
                      message("POST", "/v1/completions", completion(2, stream=True)) + message("GET", "/version"))
            reply = Reply(s)
            equal([reply.read()[0] for _ in range(5)], [200, 200, 404, 200, 200])
        for extra, fits in [(limit - 1, True), (limit, True), (limit + 1, False), (10 * limit, False)]:
            with server.connect() as s:
                reply = Reply(s)
                s.sendall(message("POST", "/v1/completions", completion(4000)) + message("GET", "/version") * extra)
                if fits:
                    equal([reply.read()[0] for _ in range(extra + 1)], [200] * (extra + 1), f"{extra} ahead")
                else:
                    assert reply.at_end(), f"{extra} ahead"
        server.wait_idle()


def test_keys():
    import tempfile
    with tempfile.NamedTemporaryFile("w", suffix=".keys") as keys:
        keys.write("# tenants\nalice:sk-alice\nbob:sk-bob\nsk-plain\n")
        keys.flush()
        with Server("--api-key", "sk-flag", "--api-key-file", keys.name, "--metrics-require-key") as server:
            good = [{"Authorization": "Bearer sk-alice"}, {"x-api-key": "sk-bob"}, {"Authorization": "bearer sk-flag"},
                    {"Authorization": "Bearer sk-plain"}]
            bad = [{}, {"Authorization": "Bearer"}, {"Authorization": "Bearer "}, {"Authorization": "Basic sk-alice"},
                   {"Authorization": "Bearer sk-alicE"}, {"Authorization": "Bearer sk-alice2"}, {"Authorization": "sk-alice"},
                   {"Authorization": "Bearer alice:sk-alice"}, {"x-api-key": ""}, {"x-api-key": "sk-alice, sk-bob"}]
            for path in ("/v1/models", "/metrics", "/version", "/load"):
                for headers in good:
                    equal(server.ask("GET", path, headers=headers)[0], 200, f"{path} {headers}")
                for headers in bad:
                    status, answer, body = server.ask("GET", path, headers=headers)
                    equal((status, answer.get("www-authenticate")), (401, "Bearer"), f"{path} {headers}")
                    equal(error_of(body)["code"], "invalid_api_key")
            for path in ("/nope", "/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
                equal(server.ask("POST", path, completion(1))[0], 401, path)
            for path in ("/health", "/livez", "/readyz", "/ping"):
                equal(server.ask("GET", path)[0], 200, path)
            server.ask("POST", "/v1/completions", completion(1), good[0])
            assert "tenant=alice" in server.wait_log(" usage ")
            keys.seek(0)
            keys.truncate()
            keys.write("carol:sk-carol\n")
            keys.flush()
            server.process.send_signal(1)
            server.wait_log("keys reloaded")
            equal(server.ask("GET", "/version", headers={"x-api-key": "sk-carol"})[0], 200)
            equal(server.ask("GET", "/version", headers={"x-api-key": "sk-alice"})[0], 401)
            keys.write("bad tenant name!:x\n")
            keys.flush()
            server.process.send_signal(1)
            assert "sk-" not in server.wait_log("keys kept")
            equal(server.ask("GET", "/version", headers={"x-api-key": "sk-carol"})[0], 200, "the old keys stay")
            assert not server.lines("sk-(alice|bob|flag|plain|carol)"), "a key in the log"


if __name__ == "__main__":
    main(globals())
