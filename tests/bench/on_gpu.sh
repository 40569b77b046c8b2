#!/usr/bin/env bash
# All that a machine with a CUDA GPU can tell, in one go: the tests that need one, the oracle table, drawing, the baseline of some models. Needs no network,
# installs nothing, and of Python packages only torch with CUDA, numpy, safetensors, grpcio, protobuf, transformers, pytest and hypothesis.
#
#   PYTHON   the interpreter; default: the first of .venv/bin/python, python3 and python whose torch finds a GPU
#   OUT      where results and logs go; default: tests/bench/results
#   SHAPES   models with random weights to measure; default: "1b 8b"
#   LIMIT_S  seconds each part may take; default: 900
#
# A part that fails keeps no other from running; the exit status is 1 if any did.
set -uo pipefail
cd "$(dirname "$0")/../.."
OUT=${OUT:-tests/bench/results}
SHAPES=${SHAPES:-1b 8b}
LIMIT_S=${LIMIT_S:-900}
export PYTHONPATH="$PWD:$PWD/protos" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
mkdir -p "$OUT" || exit 1

finds_gpu() {
    "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' >/dev/null 2>&1
}

if [ -z "${PYTHON:-}" ]; then
    for candidate in .venv/bin/python python3 python; do
        finds_gpu "$candidate" && PYTHON=$candidate && break
    done
fi
if [ -z "${PYTHON:-}" ] || ! finds_gpu "$PYTHON"; then
    echo "no GPU: ${PYTHON:-.venv/bin/python, python3 or python} finds no CUDA device" >&2
    exit 1
fi

failed=0
part() { # name, command...
    local name=$1
    shift
    echo "== $name"
    if ! timeout "$LIMIT_S" "$@" 2>&1 | tee "$OUT/gpu_$name.log"; then
        echo "== $name failed"
        failed=1
    fi
}

# The project's pytest settings and fixtures ask for plugins and packages of the services, which these tests do without.
part tests "$PYTHON" -m pytest -c /dev/null --rootdir . --noconftest --import-mode=importlib -p no:cacheprovider -o markers='gpu: needs an accelerator' -q -m gpu tests/unit/compute_svc/drawing/test_drawer.py tests/unit/compute_svc/drawing/test_prompt_logprobs.py tests/unit/compute_svc/kernels/test_attention.py tests/unit/compute_svc/kernels/test_attention_kv_formats.py \
    tests/unit/compute_svc/kernels/test_linear.py tests/unit/compute_svc/layers/test_expert_mlp.py tests/unit/compute_svc/kernels/test_host_copy.py \
    tests/unit/compute_svc/models/test_no_waiting.py
part oracle "$PYTHON" -m tests.oracle --device cuda --json "$OUT/oracle_cuda.json"
part draw_agreement "$PYTHON" -m tests.bench.draw_agreement --device cuda --output "$OUT/draw_agreement_cuda.json"
part draw_speed "$PYTHON" -m tests.bench.draw_speed --device cuda --output "$OUT/draw_speed_cuda.json"
for shape in $SHAPES; do
    part "baseline_$shape" "$PYTHON" -m tests.bench.device_baseline --device cuda --shape "$shape" --dtype bfloat16 --output "$OUT/device_baseline_cuda_$shape.json"
done
exit "$failed"
