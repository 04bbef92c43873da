#!/usr/bin/env bash
# The main job on real data. Options are those of
# examples/text_classification.py.
echo "Quickstart: sets up .venv if needed (4 GB, 2 to 5 minutes), then trains a" \
    "byte-level classifier of Reuters R8, tests it, saves it, exports it and" \
    "queries the export (2 to 4 minutes on 2 quiet cores)."
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export KERAS_BACKEND="${KERAS_BACKEND:-tensorflow}"
exec .venv/bin/python examples/text_classification.py \
    --out out/quickstart "$@"
