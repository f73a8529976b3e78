"""The CPU image without an engine: the same steps as docker/Dockerfile's running stage, then its command in that root, read-only and as
its user. What only an engine can show (layers, HEALTHCHECK's timer) is not shown here."""
import os
import pathlib
import re
import shutil
import subprocess
import tempfile
import time
import unittest

from harness import BINARY, MODEL, free_port

DOCKER = pathlib.Path(__file__).resolve().parents[2] / "docker"
# The root is mounted over itself read-only in a mount namespace of its own; argument 1 is the root, 2 the model, 3 the journal's folder.
ENTER = """set -e
mount --bind "$1" "$1"
mkdir -p "$1/proc"
mount --bind "$2" "$1/models/model.gguf"
mount --bind "$3" "$1/var/lib/millrace"
mount --rbind /proc "$1/proc"
mount -o remount,bind,ro "$1"
root=$1; shift 3
exec chroot --userspec=10001:10001 "$root" /usr/bin/millrace "$@"
"""


class Image(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.folder = tempfile.mkdtemp(prefix="millrace-image-")
        os.chmod(cls.folder, 0o755)
        cls.root, cls.data = f"{cls.folder}/root", f"{cls.folder}/data"
        subprocess.run(["bash", str(DOCKER / "runtime_root.sh"), BINARY, cls.root], check=True)
        pathlib.Path(cls.root, "models/model.gguf").touch()
        os.mkdir(cls.data)

    @classmethod
    def tearDownClass(cls):
        shutil.rmtree(cls.folder)

    def test_size_and_contents(self):
        files = [path for path in pathlib.Path(self.root).rglob("*") if path.is_file() and not path.is_symlink()]
        size = sum(path.stat().st_size for path in files)
        print(f"image: {size / 1e6:.1f} MB in {len(files)} files, of it the binary {os.path.getsize(self.root + '/usr/bin/millrace') / 1e6:.1f} MB")
        self.assertLess(size, 60e6)
        self.assertFalse([path for path in files if path.name in ("sh", "bash", "dash", "apt", "dpkg")])
        packages = {path.name for path in pathlib.Path(self.root, "var/lib/dpkg/status.d").iterdir()}
        self.assertLessEqual({"libc6", "libcurl4", "libssl3", "libhiredis0.14", "ca-certificates"}, packages)
        for package in packages:
            self.assertTrue(pathlib.Path(self.root, "usr/share/doc", package, "copyright").is_file(), package)

    def test_dockerfile_runs_what_is_tested(self):
        text = (DOCKER / "Dockerfile").read_text()
        self.assertIn("RUN bash docker/runtime_root.sh build/release/millrace /image\n", text)
        self.assertTrue(re.search(r"FROM scratch\nCOPY --from=build /image /\nUSER 10001:10001\n", text))

    def test_serves_bills_and_tells_its_health(self):
        if os.geteuid() != 0 or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode:
            self.skipTest("needs root, to mount in a namespace of its own")
        os.chown(self.data, 10001, 10001)
        url = f"http://127.0.0.1:{(port := free_port())}"
        enter = ["unshare", "-m", "sh", "-c", ENTER, "sh", self.root, MODEL, self.data]
        environment = {"PATH": os.environ["PATH"]}
        server = subprocess.Popen([*enter, "serve", "/models/model.gguf", "--port", str(port), "--journal", "/var/lib/millrace/journal"],
                                  env=environment, stderr=subprocess.PIPE, text=True)
        try:
            end = time.monotonic() + 60
            while (health := subprocess.run([*enter, "health", url], env=environment, capture_output=True, text=True)).returncode != 0:
                self.assertEqual(health.returncode, 1, health.stderr)
                if server.poll() is not None or time.monotonic() > end:
                    server.kill()
                    self.fail(health.stderr + server.stderr.read())
                time.sleep(0.05)
            self.assertIn('"status":"ok"', health.stdout)
            ask = subprocess.run(["curl", "-sS", url + "/v1/completions", "-H", "Content-Type: application/json",
                                  "-d", '{"prompt": "A mill race is", "max_tokens": 5}'], capture_output=True, text=True, timeout=60)
            self.assertIn('"completion_tokens":5', ask.stdout, ask.stderr)
        finally:
            server.terminate()
            _, log = server.communicate(timeout=60)
        self.assertEqual(server.returncode, 0, log)
        self.assertTrue(list(pathlib.Path(self.data, "journal").iterdir()))
        self.assertEqual({path.stat().st_uid for path in pathlib.Path(self.data).rglob("*")}, {10001})
        gone = subprocess.run([BINARY, "health", url], capture_output=True, text=True, timeout=30)
        self.assertEqual(gone.returncode, 1)
        for words in (["nonsense"], ["--wrong"], ["a", "b"]):
            self.assertEqual(subprocess.run([BINARY, "health", *words], capture_output=True, timeout=30).returncode, 2, words)


if __name__ == "__main__":
    unittest.main()
