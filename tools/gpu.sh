#!/usr/bin/env bash
# Checks and measures the package on a machine with one NVIDIA GPU.
#
#   bash tools/gpu.sh prepare              # here: fetches wheels into .gpu/
#   bash tools/gpu.sh run FOLDER [PART]    # there: results in FOLDER
#
# PART is `times` (4 minutes), `conformance` (2 minutes) or, by default, both.
# The other machine needs no network and no Keras: Python 3.12 with CUDA builds
# of torch and JAX, pytest and matplotlib. Copy the working tree with .gpu/ to
# it. FOLDER/<backend>/benchmarks.json is what `tools.bench --join` reads.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

mechanisms=(modified_linformer linear_transformer gated_delta retention kda
    mamba2 local)
cases=(floor both:modified_linformer linear:modified_linformer
    linear:linear_transformer linear:gated_delta linear:retention
    linear:gated_linear linear:kda linear:mamba2
    keras_mha keras_mha_both)

prepare() {
    local platforms=()
    for version in 2_28 2_27 2_17; do
        platforms+=(--platform "manylinux_${version}_x86_64")
    done
    mkdir -p .gpu
    # The pins of constraints.txt, except fla-core, which only a GPU can run.
    python3 -m pip download --quiet --no-deps --only-binary=:all: --dest .gpu \
        --python-version 3.12 --implementation cp "${platforms[@]}" \
        $(grep -E '^(keras|namex|optree)==' tools/constraints.txt) \
        fla-core==0.6.0
    echo "Wheels in .gpu/: $(ls .gpu | tr '\n' ' ')"
}

install() {
    site="$(mktemp -d)"
    python3 -m pip install --quiet --no-index --no-deps --no-compile \
        --target "$site" .gpu/*.whl
    export PYTHONPATH="$site:$PWD${PYTHONPATH:+:$PYTHONPATH}"
    export PYTHONUNBUFFERED=1
    # The processes of the tests share the GPU: JAX must not take all of it.
    export XLA_PYTHON_CLIENT_PREALLOCATE=false
    # Triton tunes fla's kernels for 45 s; a later process takes the result.
    export TRITON_CACHE_AUTOTUNING=1
}

conformance() {
    echo "== $1: conformance"
    # JAX rounds float32 products to TF32 on a GPU unless told not to.
    KERAS_BACKEND="$1" JAX_DEFAULT_MATMUL_PRECISION=highest XLA_FLAGS="" \
        timeout 120 python3 -m pytest -o filterwarnings= -o addopts= -q \
        --numprocesses=14 --dist=worksteal tests/test_conformance.py tests/gpu \
        -k "$(join_by ' or ' test_fla "${mechanisms[@]}")" \
        >"$2/conformance.txt" 2>&1 || true
    tail -n 15 "$2/conformance.txt"
}

join_by() {
    local joined="$2"
    for word in "${@:3}"; do joined+="$1$word"; done
    echo "$joined"
}

times() {
    local extra=()
    [ "$1" != torch ] || extra=(peer:fla_gated_delta peer:fla_kda)
    echo "== $1: times"
    timeout 200 python3 -m tools.bench --backend "$1" --group times \
        --case "${cases[@]}" "${extra[@]}" --length 8192 2048 \
        --batch 8 --dtype bfloat16 --rounds 10 --verify no \
        --write --out "$2" || echo "$1: not everything was measured"
}

run() {
    mkdir -p "$1/torch" "$1/jax"
    install
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv \
        | tee "$1/gpu.txt"
    for part in $2; do
        for backend in torch jax; do
            "$part" "$backend" "$1/$backend"
        done
    done
}

case "${1:-}" in
    prepare) prepare ;;
    run)
        folder="${2:?usage: bash tools/gpu.sh run FOLDER [PART]}"
        run "$folder" "${3:-times conformance}"
        ;;
    *)
        sed -n '2,10p' "${BASH_SOURCE[0]}" | cut -c3-
        exit 2
        ;;
esac
