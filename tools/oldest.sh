#!/usr/bin/env bash
# The conformance suite and some layers on the oldest packages that
# pyproject.toml allows, in .venv-oldest. Run by `tools/test.sh --release`.
#
#     tools/oldest.sh              each backend, half an hour on two quiet cores
#     tools/oldest.sh torch        one backend alone
#
# The packages take 2 GB, and 7 GB (10 minutes) where the index of torch's CPU
# builds cannot be reached. The folder stays for the next time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
backends=("$@")
[ $# -gt 0 ] || backends=(tensorflow torch jax)
oldest=(keras==3.11.0 jax==0.4.34 jaxlib==0.4.34 tensorflow-cpu==2.18.0)
if [ ! -f .venv-oldest/installed ]; then
    echo "Installing the oldest packages into .venv-oldest..."
    "$(command -v python3.11 || command -v python3)" -m venv .venv-oldest
    pip=(.venv-oldest/bin/python -m pip install -qq --disable-pip-version-check)
    # Alone and first: as a dependency, pip may choose a CUDA build.
    "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu torch==2.6.0 \
        || "${pip[@]}" torch==2.6.0
    "${pip[@]}" "${oldest[@]}" pytest hypothesis
    touch .venv-oldest/installed
fi
# What calls the attention layer, hooks included, and operations that Keras has
# changed since. Tests that compare with Keras' newest arguments are not here.
layers=(tests/layers/attention/test_linear_self_attention.py
    tests/layers/blocks tests/models/test_time_series.py)
# Old JAX recomputes gradients of some thousands to 2e-7 of them, not to the
# bit, and from Keras' older initial values the series are learnt a bit slower.
others="not learns_a_season and not remat_changes_no_gradient"
status=0
for backend in "${backends[@]}"; do
    # Warnings of old packages about each other are no fault of ours. Old XLA
    # ends the process at a flag of tests/conftest.py that it does not know.
    XLA_FLAGS=--xla_backend_optimization_level=0 KERAS_BACKEND="$backend" \
        PYTHONPATH=. .venv-oldest/bin/python -m pytest \
        tests/test_conformance.py "${layers[@]}" -k "$others" -W default \
        | sed -u "s/^/oldest $backend | /" || status=1
done
exit $status
