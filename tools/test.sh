#!/usr/bin/env bash
# All tests: style, one pytest process for each backend, then the files that
# each backend saves under all others.
#
#     tools/test.sh                of each change
#     tools/test.sh jax            one backend alone
#     tools/test.sh across         what each backend saves, under the others
#     tools/test.sh --release      and all that a release needs
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"

release=
if [ "${1:-}" = --release ]; then
    release=yes
    shift
fi
# Keep in step with tests/conftest.py.
cache="${XDG_CACHE_HOME:-$HOME/.cache}/keras_linattn"
backends=("$@")
[ $# -gt 0 ] || backends=(tensorflow jax torch)
not_release="not release"
[ -z "$release" ] || not_release=""

if [ -n "$release" ]; then
    echo "Style, all tests of ${backends[*]}, conformance at XLA's defaults and" \
        "on the oldest packages: some hours on two quiet cores."
elif [ $# -gt 0 ]; then
    echo "Style and the tests of ${backends[*]}:" \
        "5 to 10 minutes for each on two quiet cores."
else
    echo "Style and the tests of ${backends[*]}: about 12 minutes on two quiet" \
        "cores, less when JAX finds what it compiled before in $cache."
fi
# Without the recordings, the tests that read them are skipped by name.
[ -d .data/speech_prompts ] || bash tools/speech_prompts.sh \
    || echo "No recordings: the speech tests will be skipped."
# Without a browser, the tests that open the site are skipped by name.
if ! command -v chromium chromium-browser google-chrome >/dev/null \
    && [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    echo "Installing Chromium (1 minute)..."
    { apt-get update && apt-get install --yes --no-install-recommends chromium
    } >/dev/null 2>&1 || echo "No Chromium: the site is not opened in it."
fi
# What JAX compiled for code that is no more, and the oldest of over 512 MB.
if [ -d "$cache" ]; then
    find "$cache" -type f -mtime +14 -delete
    find "$cache" -type f -printf '%T@ %s %p\n' | sort -rn \
        | awk '{ size += $2 } size > 512e6 { print $3 }' | xargs -r rm -f --
fi

.venv/bin/ruff check .
.venv/bin/ruff format --check .

lane() { # NAME BACKEND ARGUMENTS: one pytest run, its name before each line
    local name="$1" backend="$2"
    shift 2
    KERAS_BACKEND="$backend" .venv/bin/python -m pytest "$@" 2>&1 \
        | sed -u "s/^/$name | /"
}

marks() { # BACKEND: which tests it runs; what no backend changes, the last
    local wanted="$not_release"
    if [ "$1" != "${backends[-1]}" ]; then
        wanted="${wanted:+$wanted and }not once"
    fi
    echo "$wanted"
}

all_of() { # BACKEND ARGUMENTS
    local backend="$1"
    shift
    lane "$backend" "$backend" --ignore=tests/matrix -m "$(marks "$backend")" "$@"
}

jobs_in_pairs() { # JOBS: two at a time; when one ends, the next starts
    local running=0 failed=0 job
    for job in "$@"; do
        if [ "$running" -eq 2 ]; then
            wait -n || failed=1
            running=1
        fi
        $job &
        running=$((running + 1))
    done
    while [ "$running" -gt 0 ]; do
        wait -n || failed=1
        running=$((running - 1))
    done
    return "$failed"
}

# Parts of a backend, not workers that share its tests: what one worker has
# compiled, the others compile again.
ARITHMETIC=(tests/test_conformance.py tests/mechanisms tests/core)
arithmetic() { all_of "$1" "${ARITHMETIC[@]}"; }
others() { all_of "$1" tests "${ARITHMETIC[@]/#/--ignore=}"; }
# What XLA's optimisations could change: under JAX the conformance suite as at
# a landing, under TensorFlow what asks for XLA.
at_defaults() { # BACKEND
    local tests=()
    case "$1" in
        jax) tests=(-m "not release") ;;
        tensorflow) tests=(-m "" -k compiles) ;;
        *) return 0 ;;
    esac
    XLA_FLAGS="" lane "$1, XLA's defaults" "$1" tests/test_conformance.py \
        "${tests[@]}"
}

# Starts processes of its own.
across() { lane across tensorflow tests/matrix -m "$(marks "${backends[-1]}")"; }

status=0
if [ ${#backends[@]} -eq 3 ]; then
    # The longest first, so that both cores end at nearly the same time.
    jobs_in_pairs "all_of tensorflow" "all_of torch" "others jax" \
        "arithmetic jax" across || status=1
elif [ "$1" = across ]; then
    across || status=1
else
    for backend in "${backends[@]}"; do
        jobs_in_pairs "others $backend" "arithmetic $backend" || status=1
    done
fi
if [ -n "$release" ] && [ "${backends[0]}" != across ]; then
    for backend in "${backends[@]}"; do
        at_defaults "$backend" || status=1
    done
    bash tools/oldest.sh "${backends[@]}" || status=1
fi
exit $status
