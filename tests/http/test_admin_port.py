"""The admin port: what exists there and nowhere else, whose key it takes, and how the process ends with two listeners."""
import json
import re
import signal
import socket

from harness import Reply, Server, completion, equal, error_of, main, message

ADMIN = {"Authorization": "Bearer adm"}
USER = {"Authorization": "Bearer usr"}
BILLING = (("GET", "/admin/billing/ledger"), ("POST", "/admin/billing/orders"), ("GET", "/admin/billing/accounts"),
           ("GET", "/admin/billing/accounts/ada"), ("GET", "/admin/billing/keys"), ("POST", "/admin/billing/keys"),
           ("GET", "/admin/billing/usage?account=ada"), ("POST", "/admin/billing/reap"),
           ("GET", "/admin/billing/marks?partition=0"), ("GET", "/admin/billing/directory"))


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def ask(port, method, path, body=None, headers=None):
    with socket.create_connection(("127.0.0.1", port), 60) as s:
        s.sendall(message(method, path, body, headers))
        status, head, data = Reply(s).read(method)
        return status, json.loads(data) if data else None


def metrics(port, headers=None):
    with socket.create_connection(("127.0.0.1", port), 60) as s:
        s.sendall(message("GET", "/metrics", None, headers))
        return Reply(s).read("GET")[::2]


def body_for(method):
    return {} if method == "POST" else None


def test_admin_calls_are_there_alone():
    port = free_port()
    with Server("--admin-port", port, "--admin-key", "adm", "--api-key", "usr") as server:
        for method, path in (("GET", "/models"), ("GET", "/is_sleeping")):
            equal(ask(port, method, path, None, ADMIN)[0], 200)
            equal(ask(server.port, method, path, None, USER)[0], 404)
            equal(ask(server.port, method, path, None, ADMIN)[0], 401)  # an admin's key is nobody's on the API port
        for method, path in (("GET", "/v1/models"), ("POST", "/v1/completions"), ("GET", "/health"),
                             ("GET", "/v1/usage"), ("GET", "/nothing")):
            equal(ask(port, method, path, body_for(method), ADMIN)[0], 404)
            equal(ask(port, method, path, body_for(method))[0], 401)
            equal(ask(port, method, path, body_for(method), USER)[0], 401)
        for where in (port, server.port):  # the console asks on either
            status, text = metrics(where)
            equal((status, b"mr_ready" in text), (200, True))
        equal(ask(server.port, "POST", "/v1/completions", completion(4), USER)[0], 200)


def test_metrics_ask_for_a_key_where_told():
    port = free_port()
    with Server("--admin-port", port, "--admin-key", "adm", "--api-key", "usr", "--metrics-require-key") as server:
        equal([metrics(port, key)[0] for key in (None, USER, ADMIN)], [401, 401, 200])
        equal([metrics(server.port, key)[0] for key in (None, USER, ADMIN)], [401, 200, 401])


def test_billing_calls_need_the_admin_port():
    port = free_port()
    with Server("--admin-port", port, "--admin-key", "adm", "--api-key", "usr") as server:
        for method, path in BILLING:
            equal(ask(server.port, method, path, body_for(method), USER)[0], 404)
            equal(ask(port, method, path, body_for(method), USER)[0], 401)
            status, reply = ask(port, method, path, body_for(method), ADMIN)
            equal((status, reply["error"]["code"]), (404, "billing_off"))  # no --journal
        equal(ask(server.port, "GET", "/v1/usage", None, USER)[1]["error"]["code"], "billing_off")
        equal(ask(server.port, "GET", "/v1/usage")[0], 401)
        equal(ask(port, "POST", "/admin/billing/usage", {}, ADMIN)[0], 405)
        equal(ask(port, "GET", "/admin/billing/orders", None, ADMIN)[0], 405)
    with Server("--admin-key", "adm") as server:  # without the port they do not exist at all
        for method, path in BILLING:
            equal(ask(server.port, method, path, body_for(method), ADMIN)[0], 404)
        equal(ask(server.port, "GET", "/models", None, ADMIN)[0], 200)


def test_no_admin_key_lets_nobody_in():
    port = free_port()
    with Server("--admin-port", port):
        for headers in (None, ADMIN):
            status, reply = ask(port, "GET", "/models", None, headers)
            equal((status, reply["error"]["code"]), (403, "admin_key_not_set"))


def test_a_taken_admin_port_ends_the_start():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        try:
            Server("--admin-port", taken.getsockname()[1], "--admin-key", "adm", ready=False)
        except AssertionError as e:
            assert re.search(r"serve .*\b(address|bind|listen)", str(e)), e
        else:
            raise AssertionError("it started")


def test_both_listeners_end_with_the_process():
    port = free_port()
    for number in (signal.SIGTERM, signal.SIGINT):
        with Server("--admin-port", port, "--admin-key", "adm") as server:
            with socket.create_connection(("127.0.0.1", port), 60) as idle, server.connect():
                idle.sendall(message("GET", "/models", None, ADMIN))
                equal(Reply(idle).read("GET")[0], 200)
                server.stop(signal_number=number)
        with socket.socket() as s:
            assert s.connect_ex(("127.0.0.1", port)) != 0


if __name__ == "__main__":
    main(globals())
