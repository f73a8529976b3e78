"""A blocking RESP2 client for the tests that speak to Redis or stand between it and a server. Standard library alone."""
import socket


class RedisError(Exception):
    pass


def pack(words):
    out = [b"*%d\r\n" % len(words)]
    for word in words:
        word = word if isinstance(word, bytes) else str(word).encode()
        out.append(b"$%d\r\n%s\r\n" % (len(word), word))
    return b"".join(out)


class Resp:
    """address: a port of 127.0.0.1, or the path of a Unix socket; context: for TLS. After any exception but RedisError the
    connection is dead, as with hiredis."""

    def __init__(self, address, timeout=10.0, context=None):
        if isinstance(address, str):
            self.socket = socket.socket(socket.AF_UNIX)
            self.socket.settimeout(timeout)
            self.socket.connect(address)
        else:
            self.socket = socket.create_connection(("127.0.0.1", address), timeout)
            self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if context:
            self.socket = context.wrap_socket(self.socket)
        self.file = self.socket.makefile("rb", 1 << 16)

    def read(self):
        """The next reply; an error is one too."""
        line = self.file.readline()
        if not line.endswith(b"\r\n"):
            raise ConnectionError("closed")
        kind, value = line[:1], line[1:-2]
        if kind == b"+":
            return value.decode()
        if kind == b":":
            return int(value)
        if kind == b"-":
            return RedisError(value.decode())
        length = int(value)
        if length < 0:
            return None
        if kind == b"*":
            return [self.read() for _ in range(length)]
        data = self.file.read(length + 2)
        if len(data) != length + 2:
            raise ConnectionError("closed")
        return data[:-2]

    def send(self, *words):
        self.socket.sendall(pack(words))

    def __call__(self, *words):
        self.send(*words)
        reply = self.read()
        if isinstance(reply, RedisError):
            raise reply
        return reply

    def many(self, commands):
        self.socket.sendall(b"".join(pack(words) for words in commands))
        return [self.read() for _ in commands]

    def hash(self, key):
        flat = self("HGETALL", key)
        return {flat[i].decode(): flat[i + 1].decode() for i in range(0, len(flat), 2)}

    def close(self):
        try:
            self.file.close()
            self.socket.close()
        except OSError:
            pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
