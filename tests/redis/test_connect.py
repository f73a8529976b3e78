#!/usr/bin/env python3
"""Ways to one Redis: TCP, a Unix socket, an ACL user with the rights it needs and not one more, TLS; and what is refused."""
import os
import socket
import ssl
import subprocess

import harness
from harness import UUID, Emitter, RedisError, Server, check_ledger, driver, driver_open, init_ledger, main

# What server/billing/README.md tells to allow.
RIGHTS = ["fcall", "function|load", "hget", "hmget", "hgetall", "hscan", "hset", "hincrby", "hdel", "xadd", "xlen", "time", "role",
          "config|get"]


def everything(d):
    """All calls that the server and `millrace bill` make; False when one of them was refused."""
    lines = [f"init {UUID}", "uuid", "order o1 7 add p 1000 1 0 0", "order o2 7 inc p 5 0 0 0", "order o3 7 void p 0 0 0 0",
             "account 7 c close", "account 7 c2 open", "reap 7 0", "balance 7", "month 7 202611", "marks 1", "put k:1 {}", "version",
             "lines"]
    answers = [(line.split()[0], d(line)) for line in lines]
    return all(answer.startswith("ST_OK OK" if word in ("init", "order", "account", "reap", "put") else "ST_OK") or
               (word, answer) == ("marks", "marks ST_OK") or answer == "ST_OK DUP" for word, answer in answers)


def test_tcp_and_unix():
    server = Server().start()
    for url in (f"redis://127.0.0.1:{server.port}", f"redis://localhost:{server.port}/0", f"redis+unix://{server.socket_path}"):
        server.connect()("FLUSHALL")
        d = driver(url)
        assert everything(d)
        d.end()
    e = Emitter(f"redis+unix://{server.socket_path}")
    e("write 500")
    e.settle()
    assert check_ledger([server.connect()], e.sums()) == 500
    assert e("stop 5") == "left 0"
    e.end()
    server.kill()
    line, program = driver_open(f"redis://127.0.0.1:{server.port}")
    assert line.startswith("open ST_IO") and "refused" in line and not program, line


def test_acl():
    server = Server().start()
    admin = server.connect()

    def allow(rights):
        admin("ACL", "SETUSER", "biller", "reset", "on", ">pass", "~mr:*", *("+" + r for r in rights))
    allow(RIGHTS)
    d = driver(f"redis://biller@127.0.0.1:{server.port}", password="pass")
    assert everything(d)
    d.end()
    e = Emitter(f"redis://biller@127.0.0.1:{server.port}", password="pass")
    e("write 300")
    e("grant 2 100")
    e.settle()
    assert e("stop 5") == "left 0"
    e.end()
    assert check_ledger([admin], e_sums(admin)) == 301
    for right in RIGHTS:                             # not one of them is more than is needed
        admin("FLUSHALL")
        admin("FUNCTION", "FLUSH")
        allow([r for r in RIGHTS if r != right])
        line, d = driver_open(f"redis://biller@127.0.0.1:{server.port}", password="pass")
        if d is None:
            assert line.startswith("open ST_INVAL") and "ACL SETUSER" in line or "NOPERM" in line, line
        else:
            again = [d(f"init {UUID}"), d("order o 7 add p 9 1 0 0")]
            full = everything(d)
            d.end()
            if full:                                 # what only records need
                assert right in ("hdel",), (right, again)
    allow(RIGHTS)
    for password, word in (("wrong", "WRONGPASS"), (None, "no password")):
        try:
            line, d = driver_open(f"redis://biller@127.0.0.1:{server.port}", password=password)
        except AssertionError as error:
            line, d = str(error), None
        assert d is None and word in line and "wrong" not in line.replace("WRONGPASS", ""), line
    server.kill()


def e_sums(c):
    return {int(k.rsplit(b":", 1)[1]): int(c("HGET", k, "us") or 0) for k in c("KEYS", "mr:*:a:*")}


def test_settings():
    for settings, word in ((["appendonly no"], "CONFIG SET appendonly yes"), (["maxmemory-policy allkeys-lru"], "noeviction"),
                           (["aof-load-truncated yes"], "aof-load-truncated no")):
        server = Server(*settings).start()
        line, d = driver_open(f"redis://127.0.0.1:{server.port}")
        assert d is None and line.startswith("open ST_INVAL") and word in line, line
        server.kill()
    # a replica is not written to
    master = Server().start()
    replica = Server(f"replicaof 127.0.0.1 {master.port}").start()
    line, d = driver_open(f"redis://127.0.0.1:{replica.port}")
    assert d is None and "no master" in line, line
    replica.kill()
    master.kill()


def openssl(*words):
    subprocess.run(["openssl", *words], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def authority(folder, name):
    openssl("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{folder}/{name}.key",
            "-out", f"{folder}/{name}.pem", "-subj", f"/CN={name}", "-days", "2")


def certificate(folder, name, ca, names):
    openssl("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-keyout", f"{folder}/{name}.key", "-out",
            f"{folder}/{name}.csr", "-subj", f"/CN={name}")
    with open(f"{folder}/{name}.ext", "w") as f:
        f.write(f"subjectAltName={names}\n")
    openssl("x509", "-req", "-in", f"{folder}/{name}.csr", "-CA", f"{folder}/{ca}.pem", "-CAkey", f"{folder}/{ca}.key",
            "-CAcreateserial", "-out", f"{folder}/{name}.pem", "-days", "2", "-extfile", f"{folder}/{name}.ext")


def test_tls():
    folder = harness.tempfile.mkdtemp(dir=harness.FOLDER)
    authority(folder, "ca")
    authority(folder, "other-ca")
    certificate(folder, "right", "ca", "DNS:localhost,IP:127.0.0.1")
    certificate(folder, "named", "ca", "DNS:localhost")
    certificate(folder, "wrong", "ca", "DNS:elsewhere.example,IP:127.0.0.2")
    certificate(folder, "client", "ca", "DNS:client")

    def tls_server(name, *more):
        server = Server("port 0", f"tls-port {harness.free_port()}", f"tls-cert-file {folder}/{name}.pem",
                        f"tls-key-file {folder}/{name}.key", f"tls-ca-cert-file {folder}/ca.pem", *(more or ["tls-auth-clients no"]))
        server.port = int(next(line.split()[1] for line in open(server.folder + "/redis.conf") if line.startswith("tls-port")))
        context = ssl.create_default_context(cafile=f"{folder}/ca.pem")
        context.check_hostname = False
        if more:
            context.load_cert_chain(f"{folder}/client.pem", f"{folder}/client.key")
        server.connect = lambda **how: harness.Resp(server.port, context=context, **how)
        return server.start()

    ca = f"ca={folder}/ca.pem"
    server = tls_server("right")
    for host in ("localhost", "127.0.0.1"):
        server.connect()("FLUSHALL")
        d = driver(f"rediss://{host}:{server.port}", ca)
        assert everything(d)
        d.end()
    init_ledger_ca(server, ca)
    e = Emitter(f"rediss://localhost:{server.port}", ca)
    e("write 2000")
    e.settle()
    assert check_ledger([server.connect()], e.sums()) == 2000
    server.kill()                                                   # and over TLS a connection is made anew, too
    server.start()
    e("write 100")
    e.settle()
    assert e("stop 5") == "left 0"
    e.end()
    for arguments, words in (([f"ca={folder}/other-ca.pem"], ("refused",)), ([], ("refused",)),
                             ([f"ca={folder}/client.key"], ("ca-file",)), (["ca=/nowhere"], ("ca-file",))):
        line, d = driver_open(f"rediss://localhost:{server.port}", *arguments)
        assert d is None and all(w in line for w in words), line
    line, d = driver_open(f"redis://localhost:{server.port}")       # without TLS to a port with it
    assert d is None and not line.startswith("open ST_OK"), line
    server.kill()
    server = tls_server("wrong")
    for host in ("localhost", "127.0.0.1"):
        line, d = driver_open(f"rediss://{host}:{server.port}", ca)
        assert d is None and "mismatch" in line, line
    server.kill()
    server = tls_server("named")                                    # a name is no number
    line, d = driver_open(f"rediss://127.0.0.1:{server.port}", ca)
    assert d is None and "mismatch" in line, line
    server.kill()
    server = tls_server("right", "tls-auth-clients yes")
    line, d = driver_open(f"rediss://localhost:{server.port}", ca)
    assert d is None, line
    d = driver(f"rediss://localhost:{server.port}", ca, f"cert={folder}/client.pem", f"key={folder}/client.key")
    assert d("uuid").startswith("ST_OK")
    d.end()
    line, d = driver_open(f"rediss://localhost:{server.port}", ca, f"cert={folder}/client.pem", f"key={folder}/right.key")
    assert d is None and "key-file" in line, line
    server.kill()
    # TLS to a plain port: no wait without an end
    server = Server().start()
    line, d = driver_open(f"rediss://localhost:{server.port}", ca)
    assert d is None, line
    server.kill()


def init_ledger_ca(server, ca):
    d = driver(f"rediss://localhost:{server.port}", ca)
    assert d(f"init {UUID}") == "ST_OK DUP"
    d.end()


def test_long_hashes():
    """An account of 300 packages and 30,000 orders, a directory of 20,000 lines: more than one reply may hold."""
    server = Server().start()
    c = server.connect()
    d = driver(f"redis://127.0.0.1:{server.port}")
    assert d(f"init {UUID}") == "ST_OK OK"
    for i in range(300):
        assert d(f"order add{i} 7 add p{i} {1000 + i} {i} 0 0") in ("ST_OK OK", "ST_OK LIMIT")
    key = next(k for k in c("KEYS", "mr:*:a:7"))
    for start in range(0, 30000, 1000):
        c("HSET", key, *(x for i in range(start, start + 1000) for x in (f"o:filler{i}", "add|x|1|2|3|4|5")))
    words = d("balance 7").split()
    packages = [w for w in words if w.startswith("p")]
    assert words[0] == "ST_OK" and len(packages) == 256, words[:8]
    assert packages[3] == "p3:1003:1003:0:0:0", packages[3]
    line = '{"id":"%s","x":"' + "y" * 100 + '"}'
    for start in range(0, 20000, 1000):
        c("HSET", "mr:{dir}:lines", *(x for i in range(start, start + 1000) for x in (f"k:{i}", line % i)))
    c("HSET", "mr:{dir}:version", "v", "20000")
    status, version, count, size = d("lines").split()
    assert (status, version, count) == ("ST_OK", "20000", "20000"), (status, version, count)
    assert int(size) == sum(len(line % i) for i in range(20000))
    d.end()
    server.kill()


def test_half_lost_ledger():
    """A part of the partitions without an identity: a new init would set their marks to 0 and count all again."""
    server = Server().start()
    init_ledger(f"redis://127.0.0.1:{server.port}")
    e = Emitter(f"redis://127.0.0.1:{server.port}")
    e("write 100")
    e.settle()
    assert e("stop 5") == "left 0"
    e.end()
    c = server.connect()
    for k in c("KEYS", "mr:{b00*"):
        c("DEL", k)
    d = driver(f"redis://127.0.0.1:{server.port}")
    assert d("uuid").startswith("ST_INVAL this Redis has lost part")
    assert d(f"init {UUID}").startswith("ST_INVAL this Redis has lost part")
    d.end()
    server.kill()


def test_command_line_holds_no_password():
    assert os.path.exists("/proc/self/cmdline") and socket and RedisError
    program = harness.Program(harness.PROGRAMS + "/redis_driver", "redis://u:secret@127.0.0.1:1")
    line = program.answer()
    assert line.startswith("open ST_INVAL") and "secret" not in line and "MILLRACE_REDIS_PASSWORD" in line, line


if __name__ == "__main__":
    main([test_tcp_and_unix, test_acl, test_settings, test_tls, test_long_hashes, test_half_lost_ledger,
          test_command_line_holds_no_password])
