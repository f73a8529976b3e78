"""A node that is told by the grid: OpenADR 3.0 and 3.1 from a server on the loopback, tokens that end, answers that are refused,
late, garbage or endless, and the carbon of electricity from another. What is asserted does not depend on how fast the machine is,
but for bounds of many times what is met; the time from a poll's answer to the new set point is printed."""
import datetime
import http.server
import json
import shutil
import ssl
import subprocess
import tempfile
import threading
import time
import unittest
import urllib.parse

from harness import BINARY, MODEL, Server, wait_for

ADMIN = {"Authorization": "Bearer adm"}
ENV = {"MILLRACE_ADMIN_KEY": "adm", "VTN_SECRET": "s3cret&more", "EM_TOKEN": "em-s3cret"}
METER = ("--power-sensor", "simulated", "--power-idle", "40", "--power-full", "100")


class Grid:
    """A VTN and a carbon API: `with Grid("3.1") as grid: grid.events = [..]`."""

    def __init__(self, version="3.1", tls=None):
        """tls: (certificate, key) files"""
        self.tls = tls
        self.version, self.events, self.carbon, self.how = version, [], None, "good"
        self.tokens, self.valid, self.vens, self.polls, self.paths, self.faults, self.reports = 0, set(), [], 0, [], [], []
        self.changed_at = self.sent_at = None
        self.stop = threading.Event()

    def __enter__(self):
        grid = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def reply(self, status, body, headers=()):
                data = body if isinstance(body, bytes) else json.dumps(body).encode()
                self.send_response(status)
                for name, value in (("Content-Length", str(len(data))), *headers):
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(data)

            def body(self):
                return self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()

            def do_POST(self):
                if self.path == "/adr/auth/token":
                    form = urllib.parse.parse_qs(self.body(), strict_parsing=True)
                    if (form.get("client_id"), form.get("client_secret")) != (["ven 1"], [ENV["VTN_SECRET"]]):
                        return self.reply(401, {"error": "invalid_client"})
                    grid.tokens += 1
                    grid.valid = {f"token-{grid.tokens}"}
                    return self.reply(200, {"access_token": f"token-{grid.tokens}", "token_type": "Bearer", "expires_in": 3600})
                if not self.allowed():
                    return self.reply(401, {"status": 401})
                ven = json.loads(self.body())
                if self.path == "/adr/reports":
                    grid.reports.append(ven)
                    return self.reply(201, {"id": "report-1", **ven})
                expected = {"3.0": "VEN", "3.1": "VEN_VEN_REQUEST"}[grid.version]
                if self.path != "/adr/vens" or ven["objectType"] != expected:
                    grid.faults.append((self.path, ven))
                    return self.reply(400, {"status": 400})
                grid.vens.append({"id": "ven-1", **ven})
                return self.reply(201, grid.vens[-1])

            def allowed(self):
                return self.headers.get("Authorization", "").removeprefix("Bearer ") in grid.valid

            def do_GET(self):
                url = urllib.parse.urlparse(self.path)
                if url.path == "/carbon":
                    if self.headers.get("auth-token") != ENV["EM_TOKEN"]:
                        return self.reply(401, {})
                    return self.reply(200, grid.carbon)
                if not self.allowed():
                    return self.reply(401, {"status": 401})
                if url.path == "/adr/vens":
                    return self.reply(200, grid.vens)
                grid.paths.append(self.path)
                grid.answer(self)

        class Quiet(http.server.ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, *_): # a client that has given up
                pass

        self.server = Quiet(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"
        if self.tls:
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(*self.tls)
            self.server.socket = context.wrap_socket(self.server.socket, server_side=True)
            self.url = f"https://127.0.0.1:{self.server.server_port}"
        threading.Thread(target=self.server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_):
        self.stop.set()
        self.server.shutdown()
        self.server.server_close()

    def answer(self, handler):
        how, events = self.how, self.events
        if how == "good":
            handler.reply(200, events)
            if self.sent_at is None:
                self.sent_at = time.monotonic()
        elif how == "5xx":
            handler.reply(503, {"status": 503}, [("Retry-After", "1")])
        elif how == "garbage":
            handler.reply(200, b"\xff\xfe<html>" + bytes(range(256)))
        elif how == "silent":
            self.stop.wait(30)
        else: # "drip", "flood"
            handler.send_response(200)
            handler.end_headers()
            for _ in range(100000):
                if self.stop.wait(0.02 if how == "drip" else 0):
                    return
                handler.wfile.write(b"[" if how == "drip" else b" " * 65536)
        self.polls += 1

    def say(self, *events):
        """From the next poll on."""
        self.events, self.sent_at = list(events), None

    def option(self, **more):
        rest = "".join(f",{name}={value}" for name, value in more.items())
        return ("--power-signal", f"openadr:{self.url}/adr,name=grid,ven=hub-7,user=ven 1,secret_env=VTN_SECRET,"
                                  f"version={self.version},period=0.1{rest}")


def event(payload, value, minutes=60, **more):
    start = datetime.datetime.now(datetime.timezone.utc) - datetime.timedelta(minutes=1)
    period = {"start": start.strftime("%Y-%m-%dT%H:%M:%SZ"), "duration": f"PT{minutes}M"}
    return {"id": "event-1", "programID": "program-1", "objectType": "EVENT", "eventName": None, "priority": None,
            "intervalPeriod": period, "intervals": [{"id": 0, "payloads": [{"type": payload, "values": [value]}]}],
            "payloadDescriptors": [{"payloadType": payload, "units": "W"}] if payload.endswith(("LIMIT", "SETPOINT")) else None,
            **more}


def power(server):
    return json.loads(server.get("/admin/power", ADMIN)[1])


class Told(unittest.TestCase):
    def met(self, server, condition, what):
        try:
            wait_for(lambda: condition(power(server)), what)
        except AssertionError as error:
            raise AssertionError(f"{error}: {power(server)}\n{server.log()}") from error

    def test_events_of_both_versions_change_the_goal(self):
        for version in ("3.0", "3.1"):
            with Grid(version) as grid, Server(*METER, *grid.option(plan=80), env=ENV) as server:
                wait_for(lambda: grid.polls > 1, "a poll")
                self.assertEqual([ven["venName"] for ven in grid.vens], ["hub-7"])
                self.assertEqual("active=true" in grid.paths[-1], version == "3.1")
                self.assertIsNone(power(server)["setpoint_w"])
                targets = ["group-1"] if version == "3.1" else [{"type": "VEN_NAME", "values": ["hub-7"]}]
                for payload, value, setpoint, shed in [("IMPORT_CAPACITY_LIMIT", 90, 90, 0), ("DISPATCH_SETPOINT", 70, 70, 0),
                                                       ("OLS", 0.75, 60, 0), ("CONTROL_LEVEL_OFFSET_PERCENT", 0.375, 50, 0),
                                                       ("SIMPLE", 2, None, 2), ("ALERT_FLEX_ALERT", "hot", None, 1),
                                                       ("ALERT_GRID_EMERGENCY", "now", 46, 3)]:
                    seen = lambda state: state["shed_level"] == shed and (
                        setpoint is None or state["setpoint_w"] is not None and state["setpoint_w"] <= setpoint)
                    self.assertFalse(seen(power(server)), payload)
                    grid.say(event(payload, value, targets=targets))
                    while grid.sent_at is None:
                        time.sleep(0.001)
                    while not seen(power(server)) and time.monotonic() < grid.sent_at + 30:
                        pass
                    took = time.monotonic() - grid.sent_at
                    print(f"{version} {payload}: the goal {1000 * took:.0f} ms after the poll's answer")
                    self.assertTrue(seen(power(server)), (payload, power(server)))
                grid.say() # deleted
                self.met(server, lambda state: state["shed_level"] == 0 and state["work_w"] is None, "the end of the event")
                self.assertEqual((grid.tokens, len(grid.vens), grid.faults), (1, 1, []))
            self.assertNotIn("s3cret", server.last_log)

    def test_tokens_end_and_bad_answers_change_nothing(self):
        with Grid() as grid, Server(*METER, *grid.option(), env=ENV) as server:
            grid.say(event("IMPORT_CAPACITY_LIMIT", 60))
            held = lambda state: state["setpoint_w"] is not None and state["setpoint_w"] <= 60
            self.met(server, held, "the cap")
            grid.valid = set() # the server forgets the token
            wait_for(lambda: grid.tokens == 2, "another token")
            polls = grid.polls
            wait_for(lambda: grid.polls > polls + 1, "polls with it")
            for how in ("5xx", "garbage", "flood", "drip", "silent"):
                failed = server.metric("mr_signal_rejected_total", source="grid")
                grid.how = how
                wait_for(lambda: server.metric("mr_signal_rejected_total", source="grid") > failed, how)
                self.assertTrue(held(power(server)), (how, power(server)))
                self.assertEqual(server.complete(prompt="One", max_tokens=2)["usage"]["completion_tokens"], 2)
                grid.how = "good"
                polls = grid.polls
                wait_for(lambda: grid.polls > polls, "the next good poll", 60)
            grid.say()
            self.met(server, lambda state: state["work_w"] is None, "the end of the event")
        self.assertNotIn("s3cret", server.last_log)

    def test_reports(self):
        asks = [{"payloadType": name} for name in ("DEMAND", "OPERATING_STATE", "DOWN_REGULATION_AVAILABLE")]
        for version in ("3.0", "3.1"):
            with Grid(version) as grid, Server(*METER, *grid.option(), env=ENV) as server:
                wait_for(lambda: server.metric("mr_power_watts", scope="devices") > 0, "a window")
                grid.say(event("DISPATCH_SETPOINT", 80, reportDescriptors=asks))
                wait_for(lambda: grid.reports, "a report")
                report = grid.reports[0]
                self.assertEqual((report["eventID"], report.get("programID")), ("event-1", {"3.0": "program-1"}.get(version)))
                told = {p["type"]: p["values"] for p in report["resources"][0]["intervals"][0]["payloads"]}
                self.assertGreaterEqual(told["DEMAND"][0], 0.039) # 40 W without work
                self.assertLessEqual(told["DEMAND"][0], 0.101)
                self.assertIn(told["OPERATING_STATE"], (["NORMAL"], ["RUNNING_CURTAILED"])) # the set point may come a moment later
                self.assertGreaterEqual(told["DOWN_REGULATION_AVAILABLE"][0], 0)
                self.assertEqual(server.metric("mr_signal_rejected_total", source="grid"), 0)

    def test_tls_is_verified(self):
        if not shutil.which("openssl"):
            self.skipTest("no openssl to make certificates with")
        with tempfile.TemporaryDirectory() as folder:
            def certificate(name, address):
                files = f"{folder}/{name}.pem", f"{folder}/{name}.key"
                subprocess.run(["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2",
                                "-subj", f"/CN={name}", "-addext", f"subjectAltName=IP:{address}", "-out", files[0], "-keyout", files[1]],
                               check=True, capture_output=True)
                return files
            ours, other = certificate("ours", "127.0.0.1"), certificate("other", "127.0.0.2")
            for tls, ca_file, good in [(ours, ours[0], True), (ours, None, False), (ours, other[0], False), (other, other[0], False)]:
                with Grid(tls=tls) as grid:
                    grid.say(event("IMPORT_CAPACITY_LIMIT", 60))
                    with Server(*METER, *grid.option(**({"ca_file": ca_file} if ca_file else {})), env=ENV) as server:
                        if good:
                            self.met(server, lambda state: state["setpoint_w"] is not None, "the cap")
                        else:
                            wait_for(lambda: server.metric("mr_signal_rejected_total", source="grid", why="unreachable") > 0, "a refusal")
                            self.assertIsNone(power(server)["setpoint_w"])
                            self.assertEqual((grid.tokens, grid.paths), (0, [])) # nobody was told the secret

    def test_it_ends_at_once_while_a_server_is_silent(self):
        with Grid() as grid:
            grid.how = "silent"
            with Server(*METER, *grid.option(), env=ENV) as server:
                wait_for(lambda: grid.paths, "a poll")
                begun = time.monotonic()
            self.assertLess(time.monotonic() - begun, 20) # a call of 5 s is left within about one
            print(f"ended {time.monotonic() - begun:.1f} s after SIGTERM")

    def test_carbon_beside_a_cap(self):
        with Grid() as grid:
            now = datetime.datetime.now(datetime.timezone.utc).replace(minute=0, second=0, microsecond=0)
            grid.carbon = {"zone": "DE", "carbonIntensity": 302, "datetime": now.isoformat(), "isEstimated": True}
            option = f"electricity-maps:{grid.url}/carbon?zone=DE,name=carbon,secret_env=EM_TOKEN,period=0.1"
            with Server(*METER, "--power-signal", option, env=ENV) as server:
                wait_for(lambda: server.metric("mr_signal_carbon_grams_per_kwh") == 302, "the carbon")
                self.assertEqual(server.metric("mr_signal_rejected_total", source="carbon"), 0)
                grid.carbon = {"carbonIntensity": -1, "datetime": now.isoformat()}
                wait_for(lambda: server.metric("mr_signal_rejected_total", source="carbon", why="unreadable") > 0, "a refusal")
                self.assertEqual(server.metric("mr_signal_carbon_grams_per_kwh"), 302) # it changes nothing

    def test_what_is_refused_at_the_start(self):
        for option, word in [("electricity-maps:https://x/y,secret_env=NOT_THERE", "NOT_THERE"),
                             ("openadr:https://x/y,ven=hub", "secret"), ("watttime:gopher://x,user=u", "http")]:
            ended = subprocess.run([BINARY, "serve", MODEL, "--port", "0", *METER, "--power-signal", option], capture_output=True,
                                   text=True, timeout=60)
            self.assertEqual(ended.returncode, 1)
            self.assertIn(word, ended.stderr)


if __name__ == "__main__":
    unittest.main()
