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
backends=("$@")
[ $# -gt 0 ] || backends=(tensorflow jax torch)
not_release="not release"
[ -z "$release" ] || not_release=""

if [ -n "$release" ]; then
    echo "Style, all tests of ${backends[*]}, conformance at XLA's defaults and" \
        "on the oldest packages: about an hour on two quiet cores."
elif [ $# -gt 0 ]; then
    echo "Style and the tests of ${backends[*]}:" \
        "5 to 25 minutes for each on two quiet cores."
else
    echo "Style and the tests of ${backends[*]}: about 27 minutes on two quiet" \
        "cores, less when JAX finds what it compiled before in .cache/jax."
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
# What JAX compiled for code that is no more.
[ ! -d .cache/jax ] || find .cache/jax -type f -mtime +14 -delete

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

status=0
if [ ${#backends[@]} -eq 3 ]; then
    # A core for JAX, which takes as long as the two others: a process for each
    # backend makes once what two workers would both make.
    all_of jax &
    first=$!
    all_of tensorflow || status=1
    all_of torch || status=1
    wait "$first" || status=1
elif [ "${1:-}" != across ]; then
    for backend in "${backends[@]}"; do
        all_of "$backend" --numprocesses=2 --dist=worksteal || status=1
    done
fi
if [ $# -eq 0 ] || [ "$1" = across ]; then
    # Each file starts processes of its own: two files at a time.
    lane across tensorflow tests/matrix -m "$not_release" \
        --numprocesses=2 --dist=loadfile || status=1
fi
if [ -n "$release" ]; then
    for backend in "${backends[@]}"; do
        [ "$backend" = torch ] || XLA_FLAGS="" lane "$backend, XLA's defaults" \
            "$backend" tests/test_conformance.py -m "" || status=1
    done
    bash tools/oldest.sh || status=1
fi
exit $status
