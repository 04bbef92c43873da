#!/usr/bin/env bash
# The main job on real data. Options are those of
# examples/text_classification.py.
echo "Quickstart: sets up .venv if needed (4 GB, 2 to 5 minutes), then trains a" \
    "byte-level classifier of Reuters R8, tests it, saves it, exports it and" \
    "queries the export (1 to 2 minutes on 2 quiet cores)."
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
# JAX with tcmalloc is about as fast here as TensorFlow, see
# docs/fast_training.md. Two epochs of the example's four lose less than half a
# percent of accuracy.
export KERAS_BACKEND="${KERAS_BACKEND:-jax}"
echo "Backend $KERAS_BACKEND, allocator" \
    "${LD_PRELOAD:-glibc, which keeps freed memory}, 2 epochs."
exec .venv/bin/python examples/text_classification.py \
    --epochs 2 --out out/quickstart "$@"
