#!/usr/bin/env bash
# The committed evaluation runs of the embedded model. As published, in float32, so that a CPU gives
# the same predictions; the whole sets in bfloat16, like the fine-tunes that are compared with them.
# Minutes on a GPU; hours on two CPU cores.
#
#   scripts/demo_runs.sh            # writes to runs/, or to BIDIR_RUNS_DIR
set -euo pipefail
cd "$(dirname "$0")/.."
python=${PYTHON:-python}

evaluate() {
    "$python" -m bidir_core eval --model smollm2-135m-instruct "$@"
}

# As published: the first 500 items of each task, with texts and token scores.
evaluate --dtype float32 --limit 500 --name limit500
evaluate --dtype float32 --limit 500 --name limit500 --prefill-bidirectional
evaluate --dtype float32 --limit 500 --name limit500-sink1 --regime bidirectional:sink=1

# The whole validation sets, without texts (`python -m scripts.repair_runs` makes the same).
evaluate --dtype bfloat16 --compact --name bf16-causal
evaluate --dtype bfloat16 --compact --name bf16-bidirectional --prefill-bidirectional
evaluate --dtype bfloat16 --compact --name bf16-sink1 --regime bidirectional:sink=1
evaluate --dtype bfloat16 --compact --name bf16-no-context --context none
