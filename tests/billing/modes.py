"""The short run in the other journal modes, and a journal whose disk is full.

    modes.py NULL_SERVER BILLING_LOAD BILLING_DUMP [test...]

The full disk is a tmpfs in a mount namespace of its own (unshare); where that is not allowed, that test is left out and says so."""
import os
import subprocess
import sys
import time

import books
import torture
from harness import Folder, Load, make_node, wait_for, write_keys, write_prices

SERVER, LOAD, DUMP = sys.argv[1:4]
REQUESTS, KILLS, DISK_MIB = 4000, 4, 12


def short(mode, seed):
    torture.main(["--server", SERVER, "--load", LOAD, "--dump", DUMP, "--requests", str(REQUESTS), "--kills", str(KILLS), "--nodes", "2", "--mode",
                  mode, "--seed", str(seed)])


def test_mode_group():
    short("group:20", 32)


def test_mode_write():
    short("write", 33)


def test_full_disk():
    """Admission closes, what runs ends and is recorded, nothing is lost; with space again it serves again."""
    with Folder("full") as folder:
        disk = os.path.join(folder, "disk")
        os.mkdir(disk)
        subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={DISK_MIB}m", "tmpfs", disk], check=True)
        keys, prices, clients = (os.path.join(folder, name) for name in ("keys", "prices", "clients"))
        write_keys(keys, 50)
        write_prices(prices)
        node = make_node(SERVER, "node", folder, ["--api-key-file", keys, "--prices", prices, "--journal-segment-bytes", "1Mi", "--shutdown-timeout",
                                                  "20"], {"NULL_STEP_US": 300})
        os.mkdir(os.path.join(disk, "journal"))
        os.symlink(os.path.join(disk, "journal"), node.journal) # the log stays outside
        try:
            fill_and_free(node, disk, keys, clients)
        finally:
            if node.alive():
                node.kill()
            subprocess.run(["umount", "-l", disk], check=True)


def fill_and_free(node, disk, keys, clients):
    node.start()
    filler = os.path.join(disk, "filler")
    load = Load(LOAD, [node.port], keys, clients, 9000, 64, 41)
    wait_for(lambda: load.ended > 2000, "requests run")
    fill(filler)
    wait_for(lambda: node.metric("mr_billing_journal_accepts") == 0, "admission closes")
    summary = load.wait(120)
    assert summary["refused"] > 1000, f"admission did not close: {summary}"
    os.remove(filler)
    wait_for(lambda: node.metric("mr_billing_journal_accepts") == 1, "admission opens again")
    again = Load(LOAD, [node.port], keys, clients, 2000, 64, 42, first=1000000).wait(120)
    assert again["whole"] > 1500, f"no service after there was space again: {again}"
    node.stop()
    report = books.judge([node], clients, None, DUMP)
    print("     ", {k: report[k] for k in ("requests", "records", "exact", "lost", "double", "wrong", "outcomes", "causes")})
    assert report["clean"], report["messages"] + report["ledger_faults"]


def fill(path):
    with open(path, "wb", buffering=0) as file:
        try:
            while file.write(bytes(65536)):
                pass
        except OSError:
            pass


def may_mount():
    return subprocess.run(["unshare", "-m", "true"], stderr=subprocess.DEVNULL).returncode == 0


if __name__ == "__main__":
    chosen = sys.argv[4:]
    assert all(name in globals() for name in chosen), f"no such tests: {chosen}"
    for name, function in list(globals().items()):
        if not name.startswith("test_") or (chosen and name not in chosen):
            continue
        if name == "test_full_disk" and not os.environ.get("OWN_MOUNTS"):
            if not may_mount():
                print("left out:", name, "(no mount namespace)")
                continue
            done = subprocess.run(["unshare", "-m", sys.executable, *sys.argv[:4], name], env={**os.environ, "OWN_MOUNTS": "1"})
            assert done.returncode == 0, name
            continue
        started = time.monotonic()
        function()
        print(f"ok   {name} ({time.monotonic() - started:.1f} s)", flush=True)
