#!/usr/bin/env python3
"""The emitter on a real journal and a real Redis, and every fault that Redis and the network have. After each, the ledger must
hold every record of the journal once, by accounts' units and by its log."""
import os
import random
import shutil
import time

import harness
from harness import (UUID, Emitter, RedisError, Server, check_energies, check_ledger, init_ledger, main, wait_until)
from fault_proxy import FaultProxy


def fresh(*settings):
    server = Server(*settings).start()
    init_ledger(f"redis://127.0.0.1:{server.port}")
    return server


def url(port):
    return f"redis://127.0.0.1:{port}"


def ledger_text(c):
    return sorted((k, repr(c("HGETALL", k) if not k.endswith(b":log") else c("XLEN", k))) for k in c("KEYS", "mr:*"))


def finish(emitter, server, expect_left="left 0"):
    assert emitter("stop 20") == expect_left
    emitter.end()
    server.kill()


def test_plain_and_restart():
    server = fresh()
    e = Emitter(url(server.port))
    e("write 3000")
    e.settle()
    assert e("grant 3 500").startswith("ok")
    e.settle()
    wait_until("the grant's answer", lambda: any(x.startswith("granted 3 ") for x in e.events))
    assert e("stop 5") == "left 0"
    e.end()
    again = Emitter(url(server.port), folder=e.folder)          # epoch 2, goes on from the marks
    assert again.ready.split()[1:] == [e.producer, "2"]
    state = again.settle()
    assert state["applied"] == "0" and state["duplicates"] == "0", state
    again("write 500")
    again.settle()
    finish(again, server)


def test_flushall():
    server = fresh()
    e = Emitter(url(server.port))
    e("write 200")
    e.settle()
    server.connect()("FLUSHALL")
    e("write 1")
    assert "no ledger" in e.wait_event("stopped")
    e.wait_event("ledger 1 1")
    e("write 300")                                             # goes on being journalled
    assert int(e.fields("state")["unapplied"]) >= 1
    # an init alone would make the marks 0 and bill all twice to a rebuilt ledger: here all balances are gone too, so it is a
    # new ledger, and the whole journal is replayed into it
    init_ledger(url(server.port))
    e.settle()
    assert check_ledger([server.connect()], e.sums()) == 501
    finish(e, server)


def test_other_ledger():
    server = fresh()
    e = Emitter(url(server.port))
    e("write 100")
    e.settle()
    c = server.connect()
    for p in range(256):
        c("HSET", "mr:{b%03d}:hwm" % p, "uuid", UUID[:-1] + "6")
    before = ledger_text(c)
    e("write 50")
    assert "another ledger" in e.wait_event("stopped")
    e.wait_event("ledger 1 1")
    assert ledger_text(c) == before
    for p in range(256):
        c("HSET", "mr:{b%03d}:hwm" % p, "uuid", UUID)
    e.settle()
    check_ledger([c], e.sums())
    finish(e, server)


def test_fenced():
    server = fresh()
    e = Emitter(url(server.port), "accounts=1")
    e("write 10")
    e.settle()
    c = server.connect()
    key = next(k for k in c("KEYS", "mr:*:hwm") if c("HGET", k, e.producer) and b"|10|" in c("HGET", k, e.producer))
    c("HSET", key, e.producer, c("HGET", key, e.producer).replace(b"1|10|", b"2|10|"))
    e("write 5")
    assert "another process" in e.wait_event("stopped")
    e.wait_event("ledger 1 1")
    assert c("HGET", key, e.producer).startswith(b"2|10|")
    assert e("stop 0.3") == "left 5"
    e.end()
    server.kill()


def test_function_flush():
    server = fresh()
    e = Emitter(url(server.port))
    e("write 200")
    e.settle()
    server.connect()("FUNCTION", "FLUSH")
    e("write 200")
    e.settle()
    # an older library is replaced
    c = server.connect()
    c("FUNCTION", "LOAD", "REPLACE", harness.LIBRARY.replace(b"local VERSION = ", b"local VERSION = -"))
    assert c("FCALL", "mr_version", 0) < 0
    init_ledger_again(server)
    assert c("FCALL", "mr_version", 0) > 0
    e("write 200")
    e.settle()
    assert check_ledger([c], e.sums()) == 600
    finish(e, server)


def test_energy():
    """Energy goes the way of tokens: over a Redis that dies, and past a library that does not know it yet, which stops its
    partitions and is replaced at the next connection. Each record counts once."""
    server = fresh()
    e = Emitter(url(server.port), "accounts=40")
    e("write 300")
    e("energy 500")
    e.settle()
    check_energies([server.connect()], e("energies"))
    old = harness.LIBRARY.replace(b"local VERSION = 4", b"local VERSION = 2").replace(b"r.kind == 'E'", b"false")
    assert old.count(b"VERSION = 2") == 1 and b"r.kind == 'E'" not in old
    c = server.connect()
    c("FUNCTION", "LOAD", "REPLACE", old)
    before = ledger_text(c)
    e("energy 40")
    assert "malformed" in e.wait_event("stopped")
    assert ledger_text(c) == before                            # nothing was taken, and nothing behind it
    server.kill()
    server.start()
    e("write 100")
    e("energy 60")
    e.settle()
    c = server.connect()
    assert c("FCALL", "mr_version", 0) == 4
    check_energies([c], e("energies"))
    assert check_ledger([c], e.sums()) == 300 + 500 + 40 + 100 + 60
    finish(e, server)


def init_ledger_again(server):
    d = harness.driver(url(server.port))
    assert d(f"init {UUID}") == "ST_OK DUP"
    d.end()


def refused(word, start, end):
    """Redis refuses calls, streams go on, nothing is lost, and the state is told once it lasts."""
    server = fresh()
    e = Emitter(url(server.port))
    e("write 200")
    e.settle()
    start(server)
    events = len(e.events)
    e("write 300")
    e.wait_event("ledger 0 0", events)
    assert any(word in line for line in e.log), (word, e.log)
    assert int(e.fields("state")["unapplied"]) == 300
    end(server)
    e.settle()
    e.wait_event("ledger 1 0", events)
    assert check_ledger([server.connect()], e.sums()) == 500
    finish(e, server)


def test_oom():
    refused("OOM", lambda s: s.connect()("CONFIG", "SET", "maxmemory", "1"),
            lambda s: s.connect()("CONFIG", "SET", "maxmemory", "0"))


def test_noreplicas():
    refused("NOREPLICAS", lambda s: s.connect()("CONFIG", "SET", "min-replicas-to-write", "1"),
            lambda s: s.connect()("CONFIG", "SET", "min-replicas-to-write", "0"))


def test_misconf():
    def start(server):
        os.mkdir(server.folder + "/dump.rdb")
        c = server.connect()
        c("CONFIG", "SET", "stop-writes-on-bgsave-error", "yes")
        c("CONFIG", "SET", "save", "1 1")
        c("SET", "x", "1")
        c("BGSAVE")
        wait_until("a failed snapshot", lambda: b"rdb_last_bgsave_status:err" in c("INFO", "persistence"))

    def end(server):
        server.connect()("CONFIG", "SET", "save", "")
    refused("MISCONF", start, end)


def test_busy():
    holder = []

    def start(server):
        c = server.connect()
        c.send("EVAL", "while true do end", "0")
        holder.append(c)
        def busy():
            try:
                return server.connect()("PING") and False
            except RedisError as error:
                return str(error).startswith("BUSY")
        wait_until("BUSY", busy)
    refused("BUSY", start, lambda s: s.connect()("SCRIPT", "KILL"))


def test_stopped_process():
    server = fresh()
    e = Emitter(url(server.port))
    e("write 200")
    e.settle()
    server.pause()
    events = len(e.events)
    e("write 300")
    e.wait_event("ledger 0 0", events)                          # half-open: accepted by the kernel, never answered
    server.resume()
    e.settle()
    assert check_ledger([server.connect()], e.sums()) == 500
    finish(e, server)


def test_killed_with_cut_aof():
    """kill -9 and a lost tail of the AOF: the ledger goes back, marks and balances together, and is filled again."""
    rnd = random.Random(7)
    server = fresh()
    e = Emitter(url(server.port), "segment=65536")
    for _ in range(6):
        e(f"write {rnd.randrange(200, 900)}")
        e.settle()
        e("write 300")
        events = len(e.events)
        server.kill()
        server.cut_aof(rnd.randrange(1, 200000))
        e.wait_event("ledger 0 0", events)                      # else what was applied before still counts as applied
        server.start()
    e.settle()
    assert check_ledger([server.connect()], e.sums()) == int(e.fields("state")["written"])
    finish(e, server)


def test_loading():
    server = fresh("key-load-delay 3000", "loading-process-events-interval-bytes 1024")
    e = Emitter(url(server.port))
    e("write 500")
    e.settle()
    server.connect()("BGREWRITEAOF")
    wait_until("rewrite", lambda: b"aof_rewrite_in_progress:0" in server.connect()("INFO", "persistence"))
    server.kill()
    server.start(wait=False)
    e("write 100")
    e.settle()
    assert any("LOADING" in line for line in e.log), e.log
    assert check_ledger([server.connect()], e.sums()) == 600
    finish(e, server)


def test_network():
    """A reset at any byte, lost answers, stalls, a peer that is gone, slow pieces, flipped bytes."""
    rnd = random.Random(11)
    server = fresh()
    proxy = FaultProxy(("127.0.0.1", server.port)).start()
    e = Emitter(url(proxy.port), "timeout=300")
    e("write 100")
    e.settle()
    for round_ in range(10):
        fault = rnd.choice(["reset_down_at", "reset_up_at", "corrupt_down_at", "slice"])
        if fault == "slice":
            proxy.set(slice_bytes=rnd.randrange(100, 400), delay_s=0.0002)
        else:
            proxy.set(**{fault: rnd.randrange(0, 3000 if fault != "reset_up_at" else 60000)})
        e(f"write {rnd.randrange(20, 400)}")
        if rnd.random() < 0.3:
            proxy.kill()
        if fault == "slice" or rnd.random() < 0.5:
            e.settle()
            proxy.clear()
    proxy.clear()
    e.settle()
    for fault in ("lose_down", "stall", "blackhole"):
        events = len(e.events)
        proxy.set(**{fault: True})
        e("write 100")
        e.wait_event("ledger 0 0", events)
        proxy.clear()
        proxy.kill()
        e.settle()
    events = len(e.events)
    proxy.set(refuse=True)
    proxy.kill()
    e("write 100")
    e.wait_event("ledger 0 0", events)
    proxy.clear()
    state = e.settle()
    assert int(state["losses"]) > 10, state
    assert proxy.fired["lose_down"] and proxy.fired["reset_down_at"] + proxy.fired["reset_up_at"], proxy.fired
    assert check_ledger([server.connect()], e.sums()) == int(state["written"])
    proxy.stop()
    finish(e, server)


def test_outage_takes_no_memory():
    """With Redis away 20,000 records pass; the process does not grow, and what comes after is still in order."""
    server = fresh()
    e = Emitter(url(server.port), "segment=1048576", "window=64")
    e("write 2000")
    e.settle()
    server.kill()

    def resident_kb():
        with open(f"/proc/{e.process.pid}/status") as f:
            return next(int(line.split()[1]) for line in f if line.startswith("VmRSS"))
    e("write 2000")
    e.wait_event("ledger 0 0")
    before = resident_kb()
    e("write 20000")
    assert resident_kb() - before < 8000, (before, resident_kb())
    assert int(e.fields("state")["unapplied"]) > 0
    server.start()
    e.settle()
    assert check_ledger([server.connect()], e.sums()) == 24000
    finish(e, server)


def test_journal_restored():
    """A copy of the journal from before: refused, and the ledger stays as it is."""
    server = fresh()
    e = Emitter(url(server.port), "accounts=3")
    e("write 100")
    e.settle()
    copy = e.folder + "-copy"
    shutil.copytree(e.folder, copy)
    e("write 100")
    e.settle()
    sums = e.sums()
    assert e("stop 5") == "left 0"
    e.end()
    old = Emitter(url(server.port), "accounts=3", folder=copy)
    assert "journal" in old.wait_event("stopped")
    old.wait_event("ledger 1 1")
    old("write 300")                                            # passes the ledger's mark: still another history
    time.sleep(0.2)
    assert old.fields("state")["refuses"] == "1"
    assert check_ledger([server.connect()], sums) == 200
    old("stop 0.1")
    old.end()
    server.kill()


def test_lost_connection_is_told_once():
    """Found out by whichever call: every partition says hello at once, and grants are asked for anew once."""
    server = fresh()
    c = server.connect()
    e = Emitter(url(server.port))
    e("write 100")
    e.settle()
    e.wait_event("directory")
    for _ in range(3):                                          # between the directory's questions, a second apart
        since, losses = len(e.events), int(e.fields("state")["losses"])
        c("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        wait_until("all hellos", lambda: int(e.fields("state")["losses"]) >= losses + 256)
        e.wait_event("ledger 1 0", since)
        assert sum(x.startswith("ledger 0") for x in e.events[since:]) == 1, e.events[since:]
    finish(e, server)


def unreadable(e):
    e("disk 0")
    e("write 1500")                                             # segments that cannot be opened
    wait_until("a reader that failed", lambda: e.fields("state")["refuses"] == "1")


def test_adopted_journal_read_anew():
    """A journal of two producers, and a reader that has to begin anew: it sends the second one's records alone."""
    server = fresh()
    e = Emitter(url(server.port), "accounts=3")
    e("write 3000")
    e.settle()
    before = e.sums()
    assert e("stop 5") == "left 0"
    e.end()
    again = Emitter(url(server.port), "accounts=3", "adopt=1", folder=e.folder)
    assert again.producer != e.producer
    again("write 20")
    again.settle()
    unreadable(again)
    again("disk 1")
    again.settle()
    sums = {a: u + before[a] for a, u in again.sums().items()}
    assert check_ledger([server.connect()], sums) == 4520
    finish(again, server)


def test_place_is_kept_when_the_journal_cannot_be_read():
    """A partition that looks for its mark must not make the reader pass over what others have yet to read."""
    server = fresh()
    c = server.connect()
    e = Emitter(url(server.port), "accounts=3")
    e("write 200")
    e("grant 1000 5")                                           # of a partition that has nothing else
    e.settle()
    hwm = next(k for k in c("KEYS", "mr:*:log") if c("XLEN", k) == 1).replace(b":log", b":hwm")
    mark = c("HGET", hwm, e.producer)
    e("disk 0")
    c("HDEL", hwm, e.producer)                                  # writes are lost: it looks for where to go on, and cannot
    c("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    wait_until("a reader that failed", lambda: e.fields("state")["refuses"] == "1")
    c("HSET", hwm, e.producer, mark)                            # they are there again: its mark is in the newest segment
    losses = int(e.fields("state")["losses"])
    e("write 1500")
    c("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
    wait_until("another connection", lambda: int(e.fields("state")["losses"]) > losses)
    e("disk 1")
    e.settle()
    assert check_ledger([c], e.sums()) == 1701
    finish(e, server)


def test_directory():
    server = fresh()
    d = harness.driver(url(server.port))
    e = Emitter(url(server.port))
    e.wait_event("directory 0 0")
    for i in range(300):
        assert d(f'put k:{i} {{"id":"k:{i}","filler":"{"x" * 100}"}}') == "ST_OK OK"
    wait_until("the last version", lambda: any(x == "directory 300 300" for x in e.events))
    assert d("put k:7 {}") == "ST_OK OK"
    e.wait_event("directory 301 300")
    assert d("put k:7 {}") == "ST_OK OK" and d("version") == "ST_OK 301"    # the same again: no new version
    d.end()
    finish(e, server)


def test_replicas():
    """replicas=1: a mark is told only when a replica has it too."""
    server = fresh()
    e = Emitter(url(server.port), "replicas=1")
    e("write 50")
    wait_until("applied", lambda: e.fields("state")["applied"] == "50")
    time.sleep(1.5)                                 # rounds in which nothing is sent tell none either
    assert e.fields("state")["acks"] == "0"
    replica = Server(f"replicaof 127.0.0.1 {server.port}").start()
    wait_until("the replica", lambda: b"state=online" in server.connect()("INFO", "replication"))
    e("write 50")
    e.settle()
    assert int(e.fields("state")["acks"]) > 0
    finish(e, server)
    replica.kill()


if __name__ == "__main__":
    main([test_plain_and_restart, test_flushall, test_other_ledger, test_fenced, test_energy, test_function_flush, test_oom, test_noreplicas,
          test_misconf, test_busy, test_stopped_process, test_killed_with_cut_aof, test_loading, test_network,
          test_outage_takes_no_memory, test_journal_restored, test_adopted_journal_read_anew,
          test_lost_connection_is_told_once, test_place_is_kept_when_the_journal_cannot_be_read, test_directory, test_replicas])
