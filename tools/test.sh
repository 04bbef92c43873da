#!/usr/bin/env bash
# All tests: style, one pytest run for each backend, then the files that each
# backend saves under all others. `tools/test.sh jax` runs one backend.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

# Without the recordings, the tests that read them are skipped by name.
[ -d .data/speech_prompts ] || bash tools/speech_prompts.sh \
    || echo "No recordings: the speech tests will be skipped."

# Two workers share a run: most of the time goes to compilers of one thread.
run_backend() {
    echo "== $1"
    KERAS_BACKEND="$1" .venv/bin/python -m pytest --ignore=tests/matrix \
        --numprocesses=2 --dist=worksteal
}

.venv/bin/ruff check .
.venv/bin/ruff format --check .
status=0
backends=("$@")
[ $# -gt 0 ] || backends=(tensorflow torch jax)
for backend in "${backends[@]}"; do
    run_backend "$backend" || status=1
done
if [ $# -eq 0 ]; then
    echo "== across backends"
    # Each file starts processes of its own: two files at a time.
    .venv/bin/python -m pytest tests/matrix --numprocesses=2 --dist=loadfile \
        || status=1
fi
exit $status
