"""Holds the answers that api_bodies prints against the types of the openai package.

Usage: check_bodies.py PROGRAM. Every object must validate strictly (no coercion of types), and must have no field that the
type does not know, but for the extensions named here. Exit 77 without the openai package.
"""
import json
import subprocess
import sys

try:
    from openai.types import Completion, Model
    from openai.types.chat import ChatCompletion, ChatCompletionChunk
except ImportError as reason:
    print(f"skipped: {reason}")
    sys.exit(77)

# vLLM's names, beside OpenAI's.
EXTENSIONS = {"stop_reason", "reasoning", "token_ids", "prompt_token_ids", "root", "parent", "max_model_len"}


def unknown_fields(value, path=""):
    """Paths of members that the package's types do not declare, below a validated model."""
    extra = getattr(value, "model_extra", None) or {}
    found = [f"{path}.{name}" for name in extra if name not in EXTENSIONS]
    fields = getattr(type(value), "model_fields", {})
    for name in fields:
        found += unknown_fields(getattr(value, name), f"{path}.{name}")
    if isinstance(value, list):
        for i, item in enumerate(value):
            found += unknown_fields(item, f"{path}[{i}]")
    return found


def check(model, text):
    # null where the type says list of objects or numbers: OpenAI's own answers have it for the first echoed token
    data = json.loads(text)
    for choice in data.get("choices", []):
        logprobs = choice.get("logprobs") or {}
        for name in ("token_logprobs", "top_logprobs"):
            if logprobs.get(name) and logprobs[name][0] is None and model is Completion:
                logprobs[name][0] = {} if name == "top_logprobs" else 0.0
        if choice.get("finish_reason") is None and model is Completion:
            choice["finish_reason"] = "stop"  # null before a stream's end, though the type does not say so
    value = model.model_validate_json(json.dumps(data), strict=True)
    extra = unknown_fields(value)
    assert not extra, f"fields nobody knows: {extra}"
    return value


def check_usage(usage, value_choices=None):
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens
    assert usage.prompt_tokens_details.cached_tokens is not None
    assert usage.completion_tokens_details.reasoning_tokens is not None


def check_stream(model, text):
    events = text.split("\n\n")
    assert events[-1] == "" and events[-2] == "data: [DONE]", events[-2:]
    chunks = [check(model, event.removeprefix("data: ")) for event in events[:-2]]
    finished = set()
    for chunk in chunks[:-1]:
        assert chunk.usage is None and len(chunk.choices) == 1
    check_usage(chunks[-1].usage)
    assert chunks[-1].choices == []
    opened = set()
    raw = [json.loads(event.removeprefix("data: ")) for event in events[:-2]]
    for chunk in raw[:-1]:
        choice = chunk["choices"][0]
        idx = choice["index"]
        assert idx not in finished, "a chunk after the finish"
        if "delta" in choice:
            assert ("role" in choice["delta"]) == (idx not in opened), "role once, and first"
        opened.add(idx)
        if choice["finish_reason"] is not None:
            finished.add(idx)
    assert finished == opened and finished


def check_error(text):
    error = json.loads(text)["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str) and isinstance(error["type"], str)
    assert error["param"] is None or isinstance(error["param"], str)
    assert error["code"] is None or isinstance(error["code"], str)


def main():
    lines = subprocess.run([sys.argv[1]], check=True, capture_output=True).stdout.decode("utf-8").splitlines()
    assert lines
    for line in lines:
        row = json.loads(line)
        kind, output = row["kind"], row["output"]
        try:
            if kind == "chat":
                check_usage(check(ChatCompletion, output).usage)
            elif kind == "text":
                check_usage(check(Completion, output).usage)
            elif kind == "chat_stream":
                check_stream(ChatCompletionChunk, output)
            elif kind == "text_stream":
                check_stream(Completion, output)
            elif kind == "models":
                for card in json.loads(output)["data"]:
                    Model.model_validate_json(json.dumps(card), strict=True)
            else:
                assert kind == "error", kind
                check_error(output)
        except Exception:
            print(f"{row['name']}:\n{output}")
            raise
    print(f"{len(lines)} answers agree with the types")


main()
