#!/usr/bin/env bash
# Builds the source distribution and the wheel into dist/, checks both, and runs
# a smoke test of the wheel in clean environments, each from an empty folder.
#
#     bash tools/release.sh                  all of it, 20 to 40 minutes
#     bash tools/release.sh build            build and check only
#     bash tools/release.sh newest-jax ...   these environments only
#
# Environments are made in .venv-release/NAME and removed after their test.
# Nothing is uploaded.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
root="$PWD"
all=(newest-tensorflow newest-jax newest-torch
    extras extra-nlp extra-onnx extra-serving extra-viz extra-examples
    oldest-tensorflow oldest-jax oldest-torch)

python_of() { # VERSION...: the first of these that is installed
    local version python
    for version in "$@"; do
        for python in "python$version" \
            "$HOME/.pyenv/versions/$version".*/bin/python; do
            # pyenv has a command for versions that it will not run, and
            # Debian packages ensurepip, which a venv needs, by itself.
            "$python" -c "import ensurepip" 2>/dev/null && echo "$python" \
                && return
        done
    done
    command -v python3
}

build() {
    echo "== Build"
    local tools=.venv-release/tools/bin/python
    [ -x "$tools" ] || "$(python_of 3.11)" -m venv .venv-release/tools
    "$tools" -m pip install -qq build twine
    rm -rf dist
    "$tools" -m build --outdir dist . >.venv-release/build.log \
        || { cat .venv-release/build.log >&2; return 1; }
    "$tools" -m twine check --strict dist/*
    "$tools" tools/check_distribution.py dist
}

# Which Python, which packages beside the wheel, and under which backend.
describe() { # NAME
    local torch
    torch="$(grep '^torch==' tools/constraints.txt)"
    extras="" packages=() backend="${1#*-}" tried=""
    case "$1" in
        newest-tensorflow) versions=(3.12 3.11) extras=tensorflow ;;
        newest-jax) versions=(3.13 3.12 3.11) extras=jax ;;
        # The pin: PyPI's newest may be a CUDA build of several gigabytes.
        newest-torch) versions=(3.11) extras=torch packages=("$torch") ;;
        extras)
            versions=(3.11) backend=jax
            tried="nlp onnx serving viz examples"
            extras="jax,${tried// /,}"
            ;;
        extra-onnx | extra-serving)
            versions=(3.11) backend=tensorflow tried="${1#extra-}"
            extras="tensorflow,$tried"
            ;;
        extra-nlp | extra-viz | extra-examples)
            versions=(3.11) backend=jax tried="${1#extra-}"
            extras="jax,$tried"
            ;;
        oldest-tensorflow)
            versions=(3.11)
            packages=(keras==3.11.0 tensorflow-cpu==2.18.0)
            ;;
        oldest-jax)
            versions=(3.11)
            packages=(keras==3.11.0 jax==0.4.34 jaxlib==0.4.34)
            ;;
        # 3 GB where the index of CPU builds cannot be reached.
        oldest-torch) versions=(3.11) packages=(keras==3.11.0 torch==2.6.0) ;;
        *)
            echo "Unknown environment: $1. There are: ${all[*]}." >&2
            exit 2
            ;;
    esac
}

smoke() { # NAME
    describe "$1"
    local folder=".venv-release/$1" wheel empty pip index=()
    wheel="$(echo "$root"/dist/*.whl)"
    echo "== $1"
    rm -rf "$folder"
    "$(python_of "${versions[@]}")" -m venv "$folder"
    pip=("$folder/bin/python" -m pip install -qq --disable-pip-version-check)
    if [[ "$1" == *-torch ]]; then
        # Alone and first: as a dependency, pip may choose a CUDA build.
        local torch="${packages[*]##keras*}"
        "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu \
            $torch 2>/dev/null || "${pip[@]}" $torch
    fi
    "${pip[@]}" "$wheel${extras:+[$extras]}" "${packages[@]}"
    "$folder/bin/python" -m pip check
    empty="$(mktemp -d)"
    (cd "$empty" && KERAS_BACKEND="$backend" TF_CPP_MIN_LOG_LEVEL=3 \
        PATH="$root/$folder/bin:$PATH" "$root/$folder/bin/python" \
        "$root/tools/release_smoke.py" $tried)
    rm -rf "$empty" "$folder"
}

[ $# -gt 0 ] || set -- build "${all[@]}"
mkdir -p .venv-release
[ "$1" = build ] || compgen -G "dist/*.whl" >/dev/null || build
status=0
for name in "$@"; do
    if [ "$name" = build ]; then
        build
    else
        set +e  # an environment that fails does not end the others
        (set -e && smoke "$name")
        [ $? = 0 ] || { echo "FAILED: $name" >&2; status=1; }
        set -e
    fi
done
exit $status
