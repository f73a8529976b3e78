"""Machines that are far away, on this one: each in a network namespace of its own, at the end of a link that holds every packet back for
its distance. A pair of TUN devices and a process that carries packets between them: what `tc netem` does, for kernels without it.

  enter()                 this process goes on in a namespace of its own (needs root); nothing of the machine's network is touched
  Machine(1, 0.005)       10.77.1.1, 5 ms away; .run(arguments) starts a process there; machines reach each other through here
"""
import collections
import ctypes
import fcntl
import os
import select
import struct
import subprocess
import sys
import time

LIBC = ctypes.CDLL(None, use_errno=True)
CLONE_NEWNET, TUNSETIFF, IFF_TUN, IFF_NO_PI = 0x40000000, 0x400454ca, 1, 0x1000


def enter():
    if os.environ.get("HUB_NET") != str(os.getpid()):
        os.environ["HUB_NET"] = str(os.getpid())
        os.execvp("unshare", ["unshare", "-n", "--", sys.executable, *sys.argv])
    subprocess.run(["ip", "link", "set", "lo", "up"], check=True)
    with open("/proc/sys/net/ipv4/ip_forward", "w") as file:
        file.write("1")


def enter_namespace(path):
    with open(path) as file:
        if LIBC.setns(file.fileno(), CLONE_NEWNET) != 0:
            raise OSError(ctypes.get_errno(), path)


def tun(name):
    fd = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    fcntl.ioctl(fd, TUNSETIFF, struct.pack("16sH22x", name.encode(), IFF_TUN | IFF_NO_PI))
    return fd


def carry(one, other, delay_s):
    """Until the process that began it has ended."""
    begun_by, waiting, target = os.getppid(), collections.deque(), {one: other, other: one}
    while os.getppid() == begun_by:
        readable, _, _ = select.select([one, other], [], [], max(0, waiting[0][0] - time.monotonic()) if waiting else 0.5)
        for fd in readable:
            waiting.append((time.monotonic() + delay_s, target[fd], os.read(fd, 65536)))
        while waiting and waiting[0][0] <= time.monotonic():
            _, fd, packet = waiting.popleft()
            try:
                os.write(fd, packet)
            except OSError: # its device is full or gone: a lost packet
                pass


class Machine:
    def __init__(self, number, delay_s):
        self.host, device = f"10.77.{number}.1", f"hub{number}"
        self.holder = subprocess.Popen(["unshare", "-n", "sleep", "3600"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        space = f"/proc/{self.holder.pid}/ns/net"
        with open("/proc/self/ns/net") as home:
            while os.readlink(space) == os.readlink("/proc/self/ns/net"):
                time.sleep(0.01)
            near = tun(device)
            enter_namespace(space)
            far = tun("far")
            if LIBC.setns(home.fileno(), CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        self.prefix = ["nsenter", f"--net={space}"]
        self.carrier = os.fork()
        if self.carrier == 0:
            try:
                carry(near, far, delay_s)
            finally:
                os._exit(0)
        os.close(near)
        os.close(far)
        for words in (["ip", "addr", "add", f"10.77.{number}.254/24", "dev", device], ["ip", "link", "set", device, "up"]):
            subprocess.run(words, check=True)
        for words in (["addr", "add", f"{self.host}/24", "dev", "far"], ["link", "set", "far", "up"], ["link", "set", "lo", "up"],
                      ["route", "add", "default", "via", f"10.77.{number}.254"]):
            subprocess.run([*self.prefix, "ip", *words], check=True)

    def run(self, arguments, **more):
        return subprocess.Popen([*self.prefix, *arguments], **more)

    def end(self):
        os.kill(self.carrier, 9)
        os.waitpid(self.carrier, 0)
        self.holder.kill()
        self.holder.wait()
