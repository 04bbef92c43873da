#!/usr/bin/env bash
# The conformance suite on the oldest packages that pyproject.toml allows, in
# .venv-oldest. Run by `tools/test.sh --release`.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
oldest=(keras==3.11.0 jax==0.4.34 jaxlib==0.4.34 tensorflow-cpu==2.18.0)
if [ ! -x .venv-oldest/bin/python ]; then
    echo "Installing the oldest packages into .venv-oldest..."
    "$(command -v python3.11 || command -v python3)" -m venv .venv-oldest
    pip=(.venv-oldest/bin/python -m pip install -qq --disable-pip-version-check)
    # Alone and first: as a dependency, pip may choose a CUDA build.
    "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu torch==2.6.0 \
        || "${pip[@]}" torch==2.6.0
    "${pip[@]}" "${oldest[@]}" pytest hypothesis
fi
status=0
for backend in tensorflow torch jax; do
    # Warnings of old packages about each other are no fault of ours.
    KERAS_BACKEND="$backend" PYTHONPATH=. .venv-oldest/bin/python -m pytest \
        tests/test_conformance.py -W default \
        | sed -u "s/^/oldest $backend | /" || status=1
done
exit $status
