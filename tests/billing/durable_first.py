"""J3 and J4 from outside: when did a client have a token, and when was the frame that counts it on disk?

    durable_first.py NULL_SERVER

The server's disk is made slow (NULL_SYNC_US) and writes down what it did when (tests/support/slow_disk.h). Clients note when each id of a
stream arrived. Then for each id: the STEP that counts it, the bytes of that frame in its segment, the first sync that began after they were
written - and that sync must have ended before the id arrived. The same for the FINAL and the usage. Times are of one monotonic clock."""
import collections
import json
import os
import socket
import sys
import threading
import time

import books
from harness import Folder, make_node, write_keys, write_prices
from oracle import request_hash

SERVER = sys.argv[1]
SYNC_US, STREAMS, TOKENS = 20000, 8, 40


class Disk:
    """The protocol of slow_disk.c."""

    def __init__(self, path):
        self.files, self.writes, self.syncs = collections.defaultdict(list), collections.defaultdict(list), collections.defaultdict(list)
        for line in open(path):
            kind, *words = line.split()
            if kind == "open":
                self.files[os.path.basename(words[1])].append(int(words[0]))
            elif kind == "rename":
                self.files[os.path.basename(words[1])] = self.files.pop(os.path.basename(words[0]), [])
            elif kind == "write":
                file, offset, length, _, ended = map(int, words)
                self.writes[file].append((offset, offset + length, ended))
            elif kind == "sync":
                file, begun, ended = map(int, words)
                self.syncs[file].append((begun, ended))

    def durable_ns(self, place):
        """When the bytes were durable; None: never in this protocol."""
        name, at, length = place
        files = self.files[name]
        written = [ended for file in files for start, stop, ended in self.writes[file] if start <= at and at + length <= stop]
        if not written:
            return None
        last = max(written) # the first is the zeros that the segment was made of
        ends = [ended for file in files for begun, ended in self.syncs[file] if begun >= last]
        return min(ends) if ends else None


def stream(port, key, name, arrivals):
    """One stream; arrivals: (ns, ids so far, usage seen)."""
    body = json.dumps({"model": "alpha", "prompt": "a prompt of " + name, "max_tokens": TOKENS, "ignore_eos": True, "stream": True,
                       "stream_options": {"include_usage": True}, "return_token_ids": True}).encode()
    head = f"POST /v1/completions HTTP/1.1\r\nhost: a\r\nauthorization: Bearer {key}\r\nx-request-id: {name}\r\n" \
           f"content-type: application/json\r\ncontent-length: {len(body)}\r\nconnection: close\r\n\r\n"
    with socket.create_connection(("127.0.0.1", port), 60) as s:
        s.sendall(head.encode() + body)
        data = b""
        while True:
            more = s.recv(65536)
            now = time.monotonic_ns()
            if not more:
                break
            data += more
            ids = sum(part.split(b"]")[0].count(b",") + bool(part.split(b"]")[0]) for part in data.split(b'"token_ids":[')[1:])
            arrivals.append((now, ids, b'"usage":{' in data))
    assert b"[DONE]" in data, data[-300:]


def run(mode):
    with Folder("durable") as folder:
        keys, prices, protocol = (os.path.join(folder, name) for name in ("keys", "prices", "protocol"))
        write_keys(keys, 1)
        write_prices(prices)
        key = open(keys).readline().strip().split(":")[1]
        node = make_node(SERVER, "node", folder, ["--api-key-file", keys, "--prices", prices, "--journal-mode", mode, "--journal-segment-bytes",
                                                  "1Mi"],
                         {"NULL_STEP_US": 8000, "NULL_SYNC_US": SYNC_US, "NULL_SYNC_PROTOCOL": protocol})
        node.start()
        arrivals = {f"durable-{i}": [] for i in range(STREAMS)}
        threads = [threading.Thread(target=stream, args=(node.port, key, name, arrivals[name])) for name in arrivals]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        node.stop()
        journal = books.Journal(node.journal, places=True)
        return check(list(journal.records()), arrivals, Disk(protocol))


def check(records, arrivals, disk):
    """(early tokens, tokens, early finals, least margin in ns, syncs)"""
    by_request = {record.request_id: record for record in records}
    early = tokens = early_finals = 0
    margins = []
    for name, seen in arrivals.items():
        record = by_request[request_hash(name)]
        assert record.out == TOKENS == seen[-1][1], f"{name}: {record.out} recorded, {seen[-1][1]} arrived"
        counted = [place for ids, place in zip(record.steps, record.step_places) for _ in range(ids)]
        for i, place in enumerate(counted):
            arrived = next(now for now, ids, _ in seen if ids > i)
            durable = disk.durable_ns(place)
            tokens += 1
            early += durable is None or arrived < durable
            if durable:
                margins.append(arrived - durable)
        final, told = disk.durable_ns(record.place), next(now for now, _, usage in seen if usage)
        early_finals += final is None or told < final
    return early, tokens, early_finals, min(margins, default=0), sum(map(len, disk.syncs.values()))


def test_no_token_leaves_before_its_step_is_durable():
    early, tokens, early_finals, margin, syncs = run("step")
    print(f"     {tokens} ids, {syncs} syncs of {SYNC_US / 1000} ms, the closest id came {margin / 1e6:.3f} ms after its sync")
    assert early == 0 and early_finals == 0, f"{early} of {tokens} ids and {early_finals} usages came before they were durable"
    assert margin < 20e6 and syncs > 6, "the ids came long after their syncs: this run could not tell the one from the other"


def test_usage_waits_for_its_final_in_group_mode():
    """Tokens leave when they are written; the usage leaves when its FINAL is on disk (J4)."""
    early, tokens, early_finals, _, _ = run("group:300")
    assert early > tokens / 2, "the tokens waited for the group: then the usage had nothing to wait for"
    assert early_finals == 0, f"{early_finals} of {STREAMS} usages came before they were durable"


def test_the_comparison_sees_early_tokens():
    """In mode write tokens do leave first: the same comparison must say so, else it shows nothing."""
    early, tokens, _, _, _ = run("write")
    assert early > tokens / 2, f"only {early} of {tokens} ids were early in mode write"


if __name__ == "__main__":
    for name, function in list(globals().items()):
        if name.startswith("test_"):
            function()
            print("ok  ", name, flush=True)
