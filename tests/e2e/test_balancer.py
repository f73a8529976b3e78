"""Two servers behind HAProxy, as docker/haproxy/haproxy.cfg sets it up: the agent port, weights that follow watts, conversations
that stay where they are, a server killed, taken out and ended. Times are printed, and bounded only far from what is expected."""
import contextlib
import http.client
import json
import os
import pathlib
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import unittest

from harness import NAME, Server, free_port, wait_for

CONFIG = pathlib.Path(__file__).resolve().parents[2] / "docker/haproxy/haproxy.cfg"
HAPROXY = shutil.which("haproxy", path=os.environ.get("PATH", "") + ":/usr/sbin")
ADMIN = {"Authorization": "Bearer adm"}
METER = ("--power-sensor", "simulated", "--power-idle", "40", "--power-full", "100")


@contextlib.contextmanager
def node(*options, **settings):
    port, deferrable = free_port(), free_port()
    with Server("--agent-port", str(port), "--agent-deferrable-port", str(deferrable), "--threads", "1", *METER, *options, env={"MILLRACE_ADMIN_KEY": "adm"}, **settings) as server:
        server.agent, server.deferrable = port, deferrable
        wait_for(lambda: agent_line(server) == "ready up 100%\n", "the first weight")
        yield server


def agent_line(server, sends=b"", deferrable=False):
    with socket.create_connection(("127.0.0.1", server.deferrable if deferrable else server.agent), timeout=10) as s:
        if sends:
            s.sendall(sends)
        text = b""
        while part := s.recv(100):
            text += part
        return text.decode()


def say(server, state):
    status, answer, _ = server.post("/admin/balancer", {"state": state}, ADMIN)
    assert status == 200, answer
    return answer


class Front:
    """HAProxy over two nodes, with a socket to ask it."""

    def __init__(self, nodes, weights=()):
        self.weights = weights or [100] * len(nodes)
        self.port, self.folder = free_port(), tempfile.mkdtemp(prefix="millrace-front-")
        self.environment = {**os.environ, "MILLRACE_FRONT": f"127.0.0.1:{self.port}", "MILLRACE_SALT": "pepper"}
        for i, server in enumerate(nodes, 1):
            self.environment[f"MILLRACE_NODE_{i}"] = f"127.0.0.1:{server.port}"
            self.environment[f"MILLRACE_AGENT_ADDR_{i}"] = "127.0.0.1"
            self.environment[f"MILLRACE_AGENT_{i}"] = str(server.agent)
            self.environment[f"MILLRACE_DEFERRABLE_{i}"] = str(server.deferrable)
            if weights:
                self.environment[f"MILLRACE_WEIGHT_{i}"] = str(weights[i - 1])

    def __enter__(self):
        self.socket = os.path.join(self.folder, "s")
        extra = os.path.join(self.folder, "extra.cfg")
        with open(extra, "w") as out:
            out.write(f"global\n    stats socket {self.socket} level admin\n")
        command = [HAPROXY, "-db", "-f", str(CONFIG), "-f", extra]
        subprocess.run([*command, "-c"], env=self.environment, check=True, capture_output=True)
        self.process = subprocess.Popen(command, env=self.environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            wait_for(lambda: self.process.poll() is not None or os.path.exists(self.socket), "HAProxy")
            wait_for(lambda: [s["weight"] for s in self.servers().values()] == list(map(str, self.weights)), "the first weights")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.wait()
        shutil.rmtree(self.folder, ignore_errors=True)

    def servers(self, backend="nodes"):
        """{name: its row of show stat}"""
        with socket.socket(socket.AF_UNIX) as s:
            s.connect(self.socket)
            s.sendall(b"show stat\n")
            text = b""
            while part := s.recv(65536):
                text += part
        head, *rows = text.decode().lstrip("# ").strip().splitlines()
        names = head.split(",")
        rows = [dict(zip(names, row.split(","))) for row in rows]
        return {row["svname"]: row for row in rows if row["pxname"] == backend and row["svname"].startswith("node")}

    def stream(self, conversation, tokens=1, prompt="One day", on_first=None, **fields):
        """(status, chunks with text, whole): a streamed completion"""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        body = {"model": NAME, "prompt": prompt, "max_tokens": tokens, "ignore_eos": True, "stream": True, **fields}
        connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json", "x-conversation-id": conversation})
        answer = connection.getresponse()
        chunks, whole = 0, False
        try:
            for line in answer:
                whole = whole or line.startswith(b"data: [DONE]")
                if line.startswith(b"data: {"):
                    chunks += 1
                    if on_first:
                        on_first()
                        on_first = None
        except (http.client.HTTPException, OSError):
            pass
        connection.close()
        return answer.status, chunks, whole


def served(server):
    return server.metric("vllm:request_success_total")


def conversations_of(front, nodes):
    """A conversation that goes to each node."""
    found = {}
    for i in range(64):
        before = [served(n) for n in nodes]
        assert front.stream(f"c{i}")[2]
        went = [served(n) > b for n, b in zip(nodes, before)]
        assert sum(went) == 1
        found.setdefault(went.index(True), f"c{i}")
        if len(found) == len(nodes):
            return [found[i] for i in range(len(nodes))]
    raise AssertionError("all conversations go to one node")


class Agent(unittest.TestCase):
    def test_the_line_says_what_is_set_and_what_is_true(self):
        with node() as server:
            for state, line in [("drain", "drain\n"), ("maint", "maint\n"), ("up", "ready up 100%\n")]:
                self.assertEqual(say(server, state)["hand"], state)
                self.assertEqual(agent_line(server), line)
            for body in [{"state": "down"}, {"state": 1}, {}, {"weight": 5}, [], {"state": "up", "weight": 5}]:
                self.assertEqual(server.post("/admin/balancer", body, ADMIN)[0], 400, body)
            self.assertEqual(server.post("/admin/balancer", {"state": "drain"})[0], 401)
            self.assertEqual(agent_line(server), "ready up 100%\n")
            self.assertEqual(agent_line(server, sends=b"x" * 5000), "ready up 100%\n")
            _, _, headers = server.post("/v1/completions", {"model": NAME, "prompt": "a", "max_tokens": 1},
                                        {"endpoint-load-metrics-format": "JSON"})
            kind, load = headers["endpoint-load-metrics"].split(" ", 1)
            self.assertEqual((kind, json.loads(load)["named_metrics"]["weight"]), ("JSON", 100))
            self.assertIsNone(server.post("/v1/completions", {"model": NAME, "prompt": "a", "max_tokens": 1})[2]["endpoint-load-metrics"])
            text = server.get("/metrics")[1]
            for name in ["num_requests_waiting", "kv_cache_usage_perc", "lora_requests_info", "cache_config_info"]:
                self.assertIn(f"\nvllm:{name}{{", text)

    def test_clients_that_stay_do_not_keep_others_out(self):
        with node() as server, contextlib.ExitStack() as held:
            for _ in range(48): # more than it takes at a time; none of them ever closes
                held.enter_context(socket.create_connection(("127.0.0.1", server.agent), timeout=10))
            self.assertTrue(agent_line(server).startswith("ready up"))

    def test_a_port_that_is_taken_ends_the_start(self):
        with node() as server:
            with self.assertRaises(AssertionError) as refused:
                with Server("--agent-port", str(server.agent)):
                    pass
            self.assertIn("agent-port", str(refused.exception))


@unittest.skipUnless(HAPROXY, "haproxy is not installed (server/setup.sh test)")
class Balancer(unittest.TestCase):
    def test_weights_follow_watts_and_conversations_stay(self):
        with node() as one, node() as two, Front([one, two]) as front:
            nodes = [one, two]
            homes = conversations_of(front, nodes)
            for home, conversation in enumerate(homes):
                before = served(nodes[home])
                for _ in range(4):
                    self.assertTrue(front.stream(conversation)[2])
                self.assertEqual(served(nodes[home]) - before, 4)
            begin = time.monotonic()
            self.assertEqual(one.post("/admin/power", {"cap_w": 52}, ADMIN)[0], 200) # a fifth of its work
            wait_for(lambda: int(front.servers()["node1"]["weight"]) <= 20, "the weight of what is left")
            print(f"weight {front.servers()['node1']['weight']} of 100 after {time.monotonic() - begin:.2f} s")
            self.assertEqual(front.servers()["node2"]["weight"], "100")
            say(two, "maint")
            wait_for(lambda: front.servers()["node2"]["status"].startswith("MAINT"), "maintenance")
            before = served(one)
            self.assertTrue(front.stream(homes[1])[2])
            self.assertEqual(served(one) - before, 1)
            say(two, "up")
            wait_for(lambda: front.servers()["node2"]["status"] == "UP", "the way back")
            self.assertEqual(http_status(front.port, "/admin/balancer"), 404)
            self.assertEqual(http_status(front.port, "/metrics"), 404)

    def test_a_node_far_away_has_the_overflow(self):
        with node() as near, node() as far, Front([near, far], weights=(100, 10)) as front:
            for i in range(20):
                self.assertTrue(front.stream(f"visitor-{i}")[2])
            self.assertGreater(served(near), served(far))
            say(near, "drain")
            wait_for(lambda: front.servers()["node1"]["status"] != "UP", "the near node is out")
            before = served(far)
            for i in range(5):
                self.assertTrue(front.stream(f"visitor-{i}")[2])
            self.assertEqual(served(far) - before, 5)

    def test_work_that_can_wait_goes_where_green_power_is_left(self):
        with tempfile.TemporaryDirectory() as folder:
            files = [pathlib.Path(folder) / f"{i}.csv" for i in range(2)]

            def offer(watts):
                for file, green_w in zip(files, watts):
                    other = file.with_suffix(".new")
                    other.write_text(f"green_w\n{green_w}\n")
                    other.replace(file)

            offer((100, 0))
            signals = [("--power-signal", f"file:{file}") for file in files]
            with node(*signals[0]) as one, node(*signals[1]) as two, Front([one, two]) as front:
                nodes = [one, two]
                for green, watts in [(0, (100, 0)), (1, (0, 100))]:
                    offer(watts)
                    for i, server in enumerate(nodes): # 60 W above idle: what green power pays for is all or nothing
                        wait_for(lambda: (agent_line(server, deferrable=True) == "ready up 1%\n") == (i != green), "the weight")
                    self.assertEqual({agent_line(n) for n in nodes}, {"ready up 100%\n"})
                    wait_for(lambda: [int(s["weight"]) > 1 for s in front.servers("deferrable").values()] ==
                             [i == green for i in range(2)], "HAProxy's weights")
                    before = served(nodes[green])
                    for i in range(6):
                        self.assertTrue(front.stream(f"d{i}", service_tier="flex", green="any")[2])
                    self.assertGreaterEqual(served(nodes[green]) - before, 5) # 1 % are for the other
                say(nodes[1], "maint") # it holds for both ports
                self.assertEqual(agent_line(nodes[1], deferrable=True), "maint\n")

    def test_a_killed_node_takes_no_other_stream_with_it(self):
        with contextlib.ExitStack() as stack:
            one = stack.enter_context(node())
            two = stack.enter_context(node(expect_exit=-9))
            front = stack.enter_context(Front([one, two]))
            stays, moves = conversations_of(front, [one, two])
            results, begun = {}, {"stays": threading.Event(), "moves": threading.Event()}

            def run(name, conversation):
                results[name] = front.stream(conversation, tokens=150, on_first=begun[name].set)

            threads = [threading.Thread(target=run, args=pair) for pair in [("stays", stays), ("moves", moves)]]
            for thread in threads:
                thread.start()
            for event in begun.values():
                self.assertTrue(event.wait(60))
            two.process.kill()
            two.process.wait() # what its sockets took while it died got a 502: nobody knows how far it came
            killed = time.monotonic()
            self.assertEqual(front.stream(moves)[0::2], (200, True)) # the very next one is not lost
            print(f"served elsewhere {time.monotonic() - killed:.2f} s after the kill")
            for i in range(10):
                self.assertEqual(front.stream(f"n{i}")[0::2], (200, True))
            for thread in threads:
                thread.join(120)
            self.assertEqual((results["stays"][0], results["stays"][2]), (200, True))
            self.assertFalse(results["moves"][2]) # broken off: it never looks whole
            self.assertEqual(front.servers()["node2"]["status"].split()[0], "DOWN")

    def test_a_drained_node_loses_no_request(self):
        with node() as one, node("--drain-delay", "2") as two, Front([one, two]) as front:
            _, moves = conversations_of(front, [one, two])
            over, results = threading.Event(), []

            def run(name):
                while not over.is_set():
                    results.append(front.stream(name, tokens=8))

            threads = [threading.Thread(target=run, args=(name,)) for name in (moves, "b", "c")]
            for thread in threads:
                thread.start()
            wait_for(lambda: len(results) >= 6, "traffic")
            two.process.send_signal(signal.SIGTERM)
            self.assertEqual(two.process.wait(60), 0)
            ended = len(results)
            wait_for(lambda: len(results) >= ended + 6, "traffic after the end")
            over.set()
            for thread in threads:
                thread.join(60)
            self.assertEqual([r for r in results if r[0] != 200 or not r[2]], [])
            print(f"{len(results)} requests, none lost")


def http_status(port, path):
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    connection.request("GET", path)
    status = connection.getresponse().status
    connection.close()
    return status


if __name__ == "__main__":
    unittest.main()
