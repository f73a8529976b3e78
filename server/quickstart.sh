#!/usr/bin/env bash
# quickstart.sh [serve options]: on a fresh Debian 12, from nothing to a server that answers on a real model.
# Installs what the build needs, builds, fetches SmolLM2-135M-Instruct (98 MB) and serves it on http://127.0.0.1:8000
# until Ctrl-C. Options are those of "millrace serve", e.g. --port 8080. Run again, it starts in a second.
set -euo pipefail
cd "$(dirname "$0")/.."
bash server/setup.sh packages
cmake --preset release -DMILLRACE_TESTS=OFF >/dev/null
cmake --build --preset release --target millrace
bash server/setup.sh model
cat <<'TEXT'

When the line "ready" appears, ask from another terminal:

  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' -d '{
    "model": "SmolLM2-135M-Instruct", "messages": [{"role": "user", "content": "What is a mill race?"}], "max_tokens": 60}'

TEXT
exec build/release/millrace serve models/SmolLM2-135M-Instruct.Q4_1.gguf --served-model-name SmolLM2-135M-Instruct "$@"
