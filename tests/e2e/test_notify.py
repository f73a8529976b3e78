"""What systemd would hear: a socket in its place."""
import os
import signal
import socket
import tempfile
import threading
import time
import unittest

from harness import Server, wait_for


class Manager:
    """The other end of NOTIFY_SOCKET; .heard has (seconds, lines)."""

    def __init__(self, address):
        self.socket, self.heard = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM), []
        self.socket.bind(address)
        threading.Thread(target=self.listen, daemon=True).start()

    def listen(self):
        while text := self.socket.recv(4096):
            self.heard.append((time.monotonic(), text.decode().splitlines()))

    def lines(self):
        return [line for _, lines in list(self.heard) for line in lines]


class Notify(unittest.TestCase):
    def test_start_beats_reload_end(self):
        with tempfile.TemporaryDirectory() as folder:
            for address, given in ((f"{folder}/notify", f"{folder}/notify"), (f"\0millrace-{os.getpid()}", f"@millrace-{os.getpid()}")):
                manager = Manager(address)
                with Server("--log-level", "debug", env={"NOTIFY_SOCKET": given, "WATCHDOG_USEC": "900000"}) as server:
                    wait_for(lambda: "READY=1" in manager.lines(), "READY=1")
                    self.assertEqual(manager.lines()[0], "STATUS=loading")
                    wait_for(lambda: manager.lines().count("WATCHDOG=1") >= 3, "three beats")
                    server.process.send_signal(signal.SIGHUP)
                    wait_for(lambda: manager.lines().count("READY=1") == 2, "READY=1 after the reload")
                    lines = manager.lines()
                    self.assertLess(lines.index("RELOADING=1"), len(lines) - lines[::-1].index("READY=1"))
                    stamp = next(int(line.split("=")[1]) for line in lines if line.startswith("MONOTONIC_USEC="))
                    self.assertLess(abs(time.monotonic_ns() / 1000 - stamp), 60e6)
                    server.process.terminate()
                    server.process.wait(60)
                wait_for(lambda: "STOPPING=1" in manager.lines(), "STOPPING=1")
                self.assertNotIn("READY=1", manager.lines()[manager.lines().index("STOPPING=1"):])

    def test_nonsense_is_told_and_borne(self):
        for environment in ({"NOTIFY_SOCKET": "vsock:2:1"}, {"NOTIFY_SOCKET": "/nowhere/at/all"}, {"NOTIFY_SOCKET": "/" + "x" * 300},
                            {"NOTIFY_SOCKET": "@nobody-is-here", "WATCHDOG_USEC": "often"}):
            with Server(env=environment) as server:
                wait_for(lambda: " notify " in server.log(), "a line that says so")
                self.assertEqual(server.complete(prompt="One", max_tokens=2)["usage"]["completion_tokens"], 2)


if __name__ == "__main__":
    unittest.main()
