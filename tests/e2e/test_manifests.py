"""docker/kubernetes: every overlay, rendered, is taken by the schemas of the stated versions; what it says agrees with the server.
docker/systemd and docker/slurm: systemd takes the unit, and a job whose step is told to drain waits for its end.

Kustomize is in neither Debian 12 nor PyPI. The overlays keep to what render() knows: resources, and patches of JSON 6902 with add and
replace; anything else is refused, so that a file that Kustomize would read in another way cannot pass."""
import copy
import os
import pathlib
import re
import shutil
import signal
import subprocess
import tempfile
import time
import unittest

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2] / "docker/kubernetes"
TREES = ["base", "overlays/one-gpu", "overlays/gpus", "overlays/nodes"]
VERSIONS = ["1.29", "1.37"]


def patched(resource, operations):
    resource = copy.deepcopy(resource)
    for operation in operations:
        assert set(operation) == {"op", "path", "value"} and operation["op"] in ("add", "replace"), operation
        *way, last = [p.replace("~1", "/").replace("~0", "~") for p in operation["path"][1:].split("/")]
        at = resource
        for step in way:
            at = at[int(step)] if isinstance(at, list) else at[step]
        if last == "-":
            assert operation["op"] == "add" and isinstance(at, list), operation
            at.append(operation["value"])
            continue
        last = int(last) if isinstance(at, list) else last
        assert operation["op"] == "add" or isinstance(at, list) or last in at, operation
        at[last] = operation["value"]
    return resource


def render(folder):
    plan = yaml.safe_load((folder / "kustomization.yaml").read_text())
    assert plan["kind"] == "Kustomization" and set(plan) <= {"apiVersion", "kind", "resources", "patches"}, plan
    resources = []
    for name in plan["resources"]:
        path = folder / name
        resources += render(path) if path.is_dir() else list(yaml.safe_load_all(path.read_text()))
    for patch in plan.get("patches", []):
        chosen = [i for i, r in enumerate(resources) if r["kind"] == patch["target"]["kind"] and r["metadata"]["name"] == patch["target"]["name"]]
        assert len(chosen) == 1, patch["target"]
        resources[chosen[0]] = patched(resources[chosen[0]], yaml.safe_load(patch["patch"]))
    return resources


def pods(resource):
    """(name, pod template) of what starts pods."""
    spec = resource.get("spec", {})
    if "template" in spec:
        yield resource["metadata"]["name"], spec["template"]
    for role in ("leaderTemplate", "workerTemplate"):
        if role in spec.get("leaderWorkerTemplate", {}):
            yield role, spec["leaderWorkerTemplate"][role]


class Manifests(unittest.TestCase):
    def each_pod(self):
        for tree in TREES:
            for resource in render(ROOT / tree):
                for name, template in pods(resource):
                    with self.subTest(tree=tree, pod=name):
                        yield template["spec"]

    def test_schemas_take_them(self):
        for tree in TREES:
            for resource in render(ROOT / tree):
                if resource["kind"] == "LeaderWorkerSet":  # a custom resource: its pods are looked at
                    documents = [{"apiVersion": "v1", "kind": "Pod", "metadata": {"name": n.lower()}, "spec": t["spec"]} for n, t in pods(resource)]
                    self.assertEqual(len(documents), 2)
                else:
                    documents = [resource]
                for document in documents:
                    for version in VERSIONS:
                        with self.subTest(tree=tree, kind=document["kind"], version=version):
                            kubernetes_validate.validate(document, version, strict=True)

    def test_pods_may_little(self):
        for spec in self.each_pod():
            container = spec["containers"][0]
            self.assertTrue(spec["securityContext"]["runAsNonRoot"])
            self.assertFalse(spec["automountServiceAccountToken"])
            self.assertTrue(container["securityContext"]["readOnlyRootFilesystem"])
            self.assertFalse(container["securityContext"]["allowPrivilegeEscalation"])
            self.assertEqual(container["securityContext"]["capabilities"], {"drop": ["ALL"]})

    def test_a_pod_may_end_its_streams(self):
        for spec in self.each_pod():
            arguments = spec["containers"][0]["args"]
            drain = sum(int(arguments[arguments.index(name) + 1]) for name in ("--drain-delay", "--shutdown-timeout"))
            self.assertGreater(spec["terminationGracePeriodSeconds"], drain)

    def test_the_server_knows_every_option(self):
        help_text = subprocess.run([os.environ["MILLRACE_TEST_BINARY"], "serve", "--help"], capture_output=True, text=True, timeout=30).stdout
        for spec in self.each_pod():
            for argument in spec["containers"][0]["args"]:
                if argument.startswith("--"):
                    self.assertRegex(help_text, rf"{argument}\b")

    def test_what_scales_comes_from_the_adapter(self):
        made = {rule["name"]["as"] for rule in yaml.safe_load((ROOT / "prometheus-adapter.yaml").read_text())["rules"]}
        scaler = next(r for r in render(ROOT / "base") if r["kind"] == "HorizontalPodAutoscaler")
        self.assertEqual({m["pods"]["metric"]["name"] for m in scaler["spec"]["metrics"]}, made)


@unittest.skipUnless(shutil.which("systemd-analyze"), "no systemd-analyze (server/setup.sh test-packages installs systemd)")
class Unit(unittest.TestCase):
    def test_systemd_takes_it(self):
        text = (ROOT.parent / "systemd/millrace.service").read_text()
        self.assertGreater(int(re.search(r"(?m)^TimeoutStopSec=(\d+)$", text)[1]), 120)  # the default of --shutdown-timeout
        with tempfile.TemporaryDirectory(prefix="millrace-unit-") as folder:
            unit = pathlib.Path(folder, "millrace.service")
            unit.write_text(text.replace("/usr/bin/millrace", "/bin/true"))
            for check in (["verify"], ["security", "--offline=true", "--threshold=20"]):
                done = subprocess.run(["systemd-analyze", *check, str(unit)], capture_output=True, text=True, timeout=60)
                self.assertEqual(done.returncode, 0, done.stdout + done.stderr)
                if check == ["verify"]:
                    self.assertEqual([l for l in done.stderr.splitlines() if "millrace.service" in l], [])


class Job(unittest.TestCase):
    def test_a_job_that_is_told_to_end_waits_for_its_step(self):
        with tempfile.TemporaryDirectory(prefix="millrace-job-") as folder:
            srun = pathlib.Path(folder, "srun")  # in Slurm's place: says that it began, drains at SIGTERM, ends with 7
            srun.write_text(f"#!/bin/sh\ntrap 'sleep 0.5; echo drained >{folder}/end; exit 7' TERM\necho \"$@\" >{folder}/begin\n"
                            "i=0; while [ $i -lt 300 ]; do sleep 0.1; i=$((i+1)); done\n")
            srun.chmod(0o755)
            environment = {**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "MODEL": "/models/a b", "SECRET_FILE": f"{folder}/secret"}
            job = subprocess.Popen(["bash", str(ROOT.parent / "slurm/millrace.sbatch")], env=environment)
            for _ in range(300):
                if pathlib.Path(folder, "begin").exists():
                    break
                time.sleep(0.1)
            job.send_signal(signal.SIGTERM)
            self.assertEqual(job.wait(60), 7)
            self.assertEqual(pathlib.Path(folder, "end").read_text(), "drained\n")
            self.assertIn("serve /models/a b --device cuda", pathlib.Path(folder, "begin").read_text())
            self.assertGreaterEqual(len(pathlib.Path(folder, "secret").read_text().strip()), 16)
            self.assertEqual(pathlib.Path(folder, "secret").stat().st_mode & 0o777, 0o600)


if __name__ == "__main__":
    unittest.main()
