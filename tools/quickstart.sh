#!/usr/bin/env bash
# The main job on real data: trains a byte-level classifier of Reuters R8 with
# linear attention, tests it, saves it, exports it and queries the export.
# Options are those of examples/text_classification.py.
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
export KERAS_BACKEND="${KERAS_BACKEND:-tensorflow}"
exec .venv/bin/python examples/text_classification.py \
    --out out/quickstart "$@"
