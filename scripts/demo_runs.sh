#!/usr/bin/env bash
# The committed evaluation runs of the embedded model, in float32 so that a CPU gives the same
# predictions. About two minutes on one H100; about two hours on two CPU cores.
#
#   scripts/demo_runs.sh            # writes to runs/, or to BIDIR_RUNS_DIR
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}

evaluate() {
    "$python" -m bidir_core eval --model smollm2-135m-instruct --dtype float32 "$@"
}

# As published: the first 500 items of each task, with texts and token scores.
evaluate --limit 500 --name limit500
evaluate --limit 500 --name limit500 --prefill-bidirectional
evaluate --limit 500 --name limit500-sink1 --regime bidirectional:sink=1

# The whole validation sets, without texts.
evaluate --compact --name full
evaluate --compact --name full --prefill-bidirectional
evaluate --compact --name full-sink1 --regime bidirectional:sink=1
evaluate --compact --name full-no-context --context none
