#!/usr/bin/env bash
# All tests: style, one pytest process for each backend, then the files that
# each backend saves under all others. `tools/test.sh jax` runs one backend.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

run_backend() {
    echo "== $1"
    KERAS_BACKEND="$1" .venv/bin/python -m pytest --ignore=tests/matrix
}

.venv/bin/ruff check .
.venv/bin/ruff format --check .
status=0
if [ $# -gt 0 ]; then
    for backend in "$@"; do
        run_backend "$backend" || status=1
    done
    exit $status
fi
# JAX takes as long as the two others, most of it in a compiler that uses one
# core: it runs beside them and is shown after them.
log="$(mktemp)"
trap 'rm -f "$log"' EXIT
run_backend jax >"$log" 2>&1 &
run_backend tensorflow || status=1
run_backend torch || status=1
wait $! || status=1
cat "$log"
echo "== across backends"
.venv/bin/python -m pytest tests/matrix || status=1
exit $status
