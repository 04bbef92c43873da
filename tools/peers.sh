#!/usr/bin/env bash
# Makes .venv-peers: the libraries of linear attention that tools/bench compares
# ours with, with torch and this package. Never a dependency of it. Needs
# Python 3.11, pip's index and a C++ compiler (pytorch-fast-transformers
# compiles its kernels). Does nothing when all is there.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

peers=(
    linear-attention-transformer==0.19.1
    performer-pytorch==1.1.4
    nystrom-attention==0.0.14
    linformer==0.2.3
)
compiled=pytorch-fast-transformers==0.4.0

install() {
    echo "Installing into .venv-peers (5 to 10 minutes)..."
    python="$(command -v python3.11 || command -v python3)"
    [ -x .venv-peers/bin/python ] || "$python" -m venv .venv-peers
    pip=(.venv-peers/bin/python -m pip install -qq --disable-pip-version-check
        --constraint tools/constraints.txt)
    "${pip[@]}" torch setuptools wheel
    "${pip[@]}" --editable . matplotlib
    "${pip[@]}" "${peers[@]}"
    # It asks for CUDA's compiler if there is one on the path, and builds for
    # the CPU alone if not.
    PATH="$PWD/.venv-peers/bin:/usr/bin:/bin" \
        "${pip[@]}" --no-build-isolation "$compiled"
}

wanted="$(cat pyproject.toml tools/constraints.txt tools/peers.sh | sha256sum)"
if [ "$(cat .venv-peers/installed 2>/dev/null)" != "$wanted" ]; then
    install
    echo "$wanted" >.venv-peers/installed
fi
echo "Measure them: .venv-peers/bin/python -m tools.bench --peers" \
    "--backend torch --group times --length 1024 4096 8192" \
    "--case floor linear:linear_transformer both:modified_linformer"
