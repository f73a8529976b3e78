"""redis-server for tests: servers on free loopback ports in folders of tempfile, ended by their
pid. Standard library only."""
import os
import resource
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, '..', 'support'))
from resp import RedisError, Resp  # noqa: E402

LUA_PATH = os.environ.get('MILLRACE_LEDGER_LUA') or os.path.join(HERE, '..', '..', 'server', 'billing', 'ledger.lua')
with open(LUA_PATH, 'rb') as file:
    LUA = file.read()
with open(os.path.join(HERE, '..', '..', 'server', 'billing', 'ledger_lua.h')) as file:
    VERSION = int(file.read().split('LEDGER_LUA_VERSION = ')[1].split()[0])    # what the binary believes it to be


def free_port():
    with socket.socket() as s:
        s.bind(('127.0.0.1', 0))
        return s.getsockname()[1]


SERVERS = []


class Server:
    """fsize: no file of it grows past that, as on a full disk. truncated: aof-load-truncated yes, Redis' default, which breaks
    exactness (test_aofcut)."""
    def __init__(self, *options, aof='everysec', fsize=None, truncated=False, environment=None):
        self.dir = tempfile.mkdtemp(prefix='mr-ledger-')
        self.port, self.fsize, self.truncated, self.process, self.repaired = free_port(), fsize, truncated, None, 0
        self.conf, self.environment = self.dir + '/conf', environment
        lines = ['port %d' % self.port, 'bind 127.0.0.1', 'dir ' + self.dir, 'daemonize no', 'logfile ' + self.dir + '/log',
                 'save ""', 'maxmemory-policy noeviction', 'appendonly ' + ('yes' if aof else 'no'),
                 'appendfsync ' + (aof or 'no'), 'enable-debug-command local', 'auto-aof-rewrite-min-size 4mb',
                 'aof-load-truncated ' + ('yes' if truncated else 'no')]
        with open(self.conf, 'w') as f:
            f.write('\n'.join(lines + list(options)) + '\n')
        SERVERS.append(self)

    def start(self):
        try:
            return self.start_once()
        except AssertionError:                                # a cut AOF: what a unit's ExecStartPre does
            manifest = self.dir + '/appendonlydir/appendonly.aof.manifest'
            if self.truncated or not os.path.exists(manifest):
                raise
            subprocess.run(['redis-check-aof', '--fix', manifest], input=b'y\ny\n', stdout=subprocess.DEVNULL,
                           stderr=subprocess.DEVNULL)
            self.repaired += 1
            return self.start_once()

    def start_once(self):
        def limit():
            if self.fsize:                                    # write() gives EFBIG instead of a signal
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (self.fsize, resource.RLIM_INFINITY))
        self.process = subprocess.Popen(['redis-server', self.conf], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                                        preexec_fn=limit, restore_signals=False, env=self.environment)
        end = time.time() + 60
        while True:
            try:
                c = self.conn()
                c('PING')
                c.close()
                return self
            except (OSError, RedisError):
                if time.time() > end or self.process.poll() is not None:
                    with open(self.dir + '/log') as f:
                        raise AssertionError('server did not start: ' + f.read()[-600:])
                time.sleep(0.005)

    def kill(self):
        if self.process and self.process.poll() is None:
            self.process.send_signal(signal.SIGKILL)
            self.process.wait()

    def conn(self, timeout=5.0):
        return Resp(self.port, timeout)

    def load(self):
        c = self.conn()
        c('FUNCTION', 'LOAD', 'REPLACE', LUA)
        return c

    def growing_aof(self):
        folder = self.dir + '/appendonlydir'
        names = [n for n in os.listdir(folder) if '.incr.' in n]
        return os.path.join(folder, max(names, key=lambda n: int(n.split('.')[-3])))

    def end(self):
        self.kill()
        shutil.rmtree(self.dir, ignore_errors=True)


def end_servers():
    while SERVERS:
        SERVERS.pop().end()
