#!/usr/bin/env bash
# All tests: style, one pytest process for each backend, then the files that
# each backend saves under all others. `tools/test.sh jax` runs one backend.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
.venv/bin/ruff check .
.venv/bin/ruff format --check .
status=0
for backend in "${@:-tensorflow jax torch}"; do
    for name in $backend; do
        echo "== $name"
        KERAS_BACKEND="$name" .venv/bin/python -m pytest \
            --ignore=tests/matrix || status=1
    done
done
if [ $# -eq 0 ]; then
    echo "== across backends"
    .venv/bin/python -m pytest tests/matrix || status=1
fi
exit $status
