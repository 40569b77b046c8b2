#!/usr/bin/env bash
# All that a machine with a CUDA GPU can tell, in one go: first what is right, side by side, then what it costs, one after the other and by
# importance. Needs no network, installs nothing, and of Python packages only torch with CUDA and Triton, numpy, safetensors, grpcio, protobuf,
# pytest and hypothesis; transformers for `peers` and a part of `oracle`.
#
#   PARTS    which, in this order. Checks: triton gpu. Measurements: tiles kernels baseline_8b profile baseline_8b_int8 fast_decode
#            baseline_1b baseline_8b_int4 baseline_8b_fp8 no_graphs no_run_ahead invariant merge_step fetch_ahead attention_tiles oracle draw
#            peers. Default: all
#   TESTS    of Triton kernels, those that `triton` runs. Default: all
#   SIZES    requests that decode at once. Default: "1 16 64 128 256"
#   KV       formats of keys and values. Default: "auto int8-g8 int8-g64"
#   TILES    what of tests.bench.gpu.tiles `tiles` times. Default: "--format row-bf16 row-w8a8 --rows 1"
#   PYTHON   the interpreter; default: the first of .venv/bin/python, python3 and python whose torch finds a GPU
#   OUT      where results and logs go; default: tests/bench/results
#   BUNDLE   an archive of all that is in OUT, written anew after every part; default: none
#   TOTAL_S  seconds that all parts may take together: what has no time left is not begun; default: 3600
#   SHARDS   processes that the tests of Triton kernels are spread over, which compile much; default: one for each core but two
#   DEVICE   cuda; or cpu, to rehearse with small shapes, kernels in Triton's interpreter
#
# Some of it, within a time: OUT=results TOTAL_S=330 PARTS="triton kernels baseline_8b profile".
# A part that fails keeps no other from running; the exit status is 1 if any did.
set -uo pipefail
cd "$(dirname "$0")/../.."
DEVICE=${DEVICE:-cuda}
OUT=${OUT:-tests/bench/results}
TOTAL_S=${TOTAL_S:-3600}
# Two copies of an 8B model, and the keys and values of 256 requests twice: of 512 tokens each they fit.
peer_context=512
PARTS=${PARTS:-triton gpu kernels baseline_8b profile baseline_8b_int8 fast_decode baseline_1b baseline_8b_int4 baseline_8b_fp8 no_graphs no_run_ahead invariant merge_step tiles fetch_ahead attention_tiles oracle draw peers}
CHECKS=" triton gpu "
without_gpu=()
SHARDS=${SHARDS:-$(($(nproc) > 2 ? $(nproc) - 2 : 1))}
export PYTHONPATH="$PWD:$PWD/protos" PYTHONUNBUFFERED=1 HF_HUB_OFFLINE=1 TOKENIZERS_PARALLELISM=false PYTEST_DISABLE_PLUGIN_AUTOLOAD=1
mkdir -p "$OUT" || exit 1
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
# Kernels that one part has compiled are there for the next.
export TRITON_CACHE_DIR=${TRITON_CACHE_DIR:-$scratch/triton}

finds_gpu() {
    "$1" -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' >/dev/null 2>&1
}

if [ "$DEVICE" = cpu ]; then
    PYTHON=${PYTHON:-.venv/bin/python}
    big=tiny small=tiny trial=--trial sizes="1 3" few="1 3" context=20 prefill="1x40 2x9" kv="auto int8-g8" steps=4 draws="--rows 1 4 --widths 1000 --steps 2" ahead=0
    load="--requests 6 --at-once 3 --longest 40 --rounds 1"
    export TRITON_INTERPRET=1
    without_gpu=(-m "not gpu")
else
    for candidate in ${PYTHON:-.venv/bin/python python3 python}; do
        finds_gpu "$candidate" && found=$candidate && break
    done
    if [ -z "${found:-}" ]; then
        echo "no GPU: ${PYTHON:-.venv/bin/python, python3 or python} finds no CUDA device" >&2
        exit 1
    fi
    PYTHON=$found
    big=8b small=1b trial="" sizes="${SIZES:-1 16 64 128 256}" few="1 64" load="" context=1024 prefill="1x2048 8x512" kv="${KV:-auto int8-g8 int8-g64}" steps=32 draws="" ahead=4096
fi

# The project's pytest settings and fixtures ask for plugins and packages of the services, which these tests do without.
pytest_alone=("$PYTHON" -m pytest -c /dev/null --rootdir . --noconftest --import-mode=importlib -p no:cacheprovider -q --tb=short
    -o "markers=gpu: needs an accelerator
slow: costs seconds")
gpu_tests=(tests/unit/compute_svc/drawing/test_drawer.py tests/unit/compute_svc/drawing/test_prompt_logprobs.py tests/unit/compute_svc/kernels/attention/test_attention.py
    tests/unit/compute_svc/kernels/attention/test_attention_kv_formats.py tests/unit/compute_svc/kernels/test_linear.py tests/unit/compute_svc/layers/test_expert_mlp.py
    tests/unit/compute_svc/kernels/host/test_host_copy.py tests/unit/compute_svc/models/test_no_waiting.py)

failed=0
tell() { # name, exit status, seconds
    local verdict=ok
    [ "$2" = 0 ] || verdict="FAILED ($2)" failed=1
    echo "== $1: $verdict, $3 s" | tee -a "$OUT/gpu_parts.log"
}

left_s() {
    echo $((TOTAL_S - SECONDS))
}

bundle() {
    [ -z "${BUNDLE:-}" ] || { tar -czf "$scratch/bundle" -C "$OUT" . && mv "$scratch/bundle" "$BUNDLE"; }
}

limited() { # most seconds, command...
    local most=$1
    shift
    timeout --kill-after=5 "$((most < $(left_s) ? most : $(left_s)))" "$@"
}

beside() { # name, most seconds, command...: runs beside others; `await` tells how it ended
    local name=$1
    shift
    (
        began=$SECONDS
        limited "$@" >"$OUT/gpu_$name.log" 2>&1
        echo "$? $((SECONDS - began))" >"$scratch/$name.ended"
    ) &
    names+=("$name")
}

await() {
    wait
    local name status seconds
    for name in "${names[@]}"; do
        read -r status seconds <"$scratch/$name.ended"
        tell "$name" "$status" "$seconds"
        grep -E '^(FAILED|ERROR)|(passed|failed|error).* in ' "$OUT/gpu_$name.log" | tail -n 10 | cut -c 1-300
    done
    bundle
}

alone() { # name, most seconds, command...
    local name=$1 began=$SECONDS
    shift
    if [ "$(left_s)" -lt 15 ]; then
        echo "== $name: not begun, $(left_s) s are left" | tee -a "$OUT/gpu_parts.log"
        return
    fi
    echo "== $name"
    limited "$@" 2>&1 | tee "$OUT/gpu_$name.log" | cut -c 1-300
    tell "$name" "${PIPESTATUS[0]}" "$((SECONDS - began))"
    bundle
}

run_check() {
    case $1 in
        triton)
            for ((shard = 1; shard <= SHARDS; shard++)); do
                TEST_SHARD=$shard/$SHARDS beside "triton_$shard" 150 "${pytest_alone[@]}" -p tests.bench.gpu.shard "${without_gpu[@]}" ${TESTS:-tests/unit/compute_svc/*/test_triton_*.py tests/unit/compute_svc/*/triton/test_triton_*.py}
            done
            ;;
        gpu) beside gpu_tests 150 "${pytest_alone[@]}" -m gpu "${gpu_tests[@]}" ;;
    esac
}

measure() {
    case $1 in
        kernels) alone kernels 200 "$PYTHON" -m tests.bench.gpu.kernels --device "$DEVICE" $trial --output "$OUT/gpu_kernels.json" ;;
        baseline_8b) alone baseline_8b 180 "${baseline[@]}" --shape $big --alone --kv $kv --output "$OUT/gpu_baseline_8b.json" ;;
        baseline_8b_int8) alone baseline_8b_int8 180 "${baseline[@]}" --shape $big --alone --weights int8 --kv $kv --output "$OUT/gpu_baseline_8b_int8.json" ;;
        baseline_1b) alone baseline_1b 120 "${baseline[@]}" --shape $small --alone --kv $kv --output "$OUT/gpu_baseline_1b.json" ;;
        baseline_8b_int4) alone baseline_8b_int4 120 "${baseline[@]}" --shape $big --alone --weights int4 --kv auto --output "$OUT/gpu_baseline_8b_int4.json" ;;
        baseline_8b_fp8) alone baseline_8b_fp8 120 "${baseline[@]}" --shape $big --alone --weights fp8 --kv auto --output "$OUT/gpu_baseline_8b_fp8.json" ;;
        no_graphs) alone no_graphs 90 "${baseline[@]}" --shape $big --alone --no-graphs --kv auto --sizes $few --output "$OUT/gpu_no_graphs.json" ;;
        no_run_ahead) alone no_run_ahead 90 "${baseline[@]}" --shape $big --alone --no-run-ahead --kv auto --sizes $few --output "$OUT/gpu_no_run_ahead.json" ;;
        merge_step) alone merge_step 150 "$PYTHON" -m tests.bench.gpu.merge_step --device "$DEVICE" --shape $big $load --output "$OUT/gpu_merge_step.json" ;;
        fetch_ahead) for shape in $(printf '%s\n' $big $small | uniq); do
            alone "fetch_ahead_$shape" 60 "${baseline[@]}" --shape "$shape" --alone --fetch-ahead $ahead --kv auto --sizes 1 --output "$OUT/gpu_fetch_ahead_$shape.json"
        done ;;
        invariant) alone invariant 90 "${baseline[@]}" --shape $big --alone --batch-invariant --kv auto --output "$OUT/gpu_invariant.json" ;;
        tiles) alone tiles 200 "$PYTHON" -m tests.bench.gpu.tiles --device "$DEVICE" $trial ${TILES:---format row-bf16 row-w8a8 --rows 1} --output "$OUT/gpu_tiles.json" ;;
        attention_tiles) alone attention_tiles 200 "$PYTHON" -m tests.bench.gpu.attention_tiles --device "$DEVICE" $trial --output "$OUT/gpu_attention_tiles.json" ;;
        profile) alone profile 90 "$PYTHON" -m tests.bench.gpu.step_trace --device "$DEVICE" --shape $big --context-tokens $context --requests $few --output "$OUT/gpu_step_profile.json" ;;
        fast_decode) alone fast_decode 120 "$PYTHON" -m tests.bench.gpu.fast_decode --device "$DEVICE" --shapes $big $small --context $context --steps $steps --output "$OUT/gpu_fast_decode.json" ;;
        oracle) alone oracle 300 "$PYTHON" -m tests.oracle --device "$DEVICE" --json "$OUT/oracle_$DEVICE.json" ;;
        draw)
            alone draw_agreement 120 "$PYTHON" -m tests.bench.drawing.draw_agreement --device "$DEVICE" --output "$OUT/draw_agreement_$DEVICE.json"
            alone draw_speed 120 "$PYTHON" -m tests.bench.drawing.draw_speed --device "$DEVICE" $draws --output "$OUT/draw_speed_$DEVICE.json"
            ;;
        peers)
            for shape in $(printf '%s\n' $small $big | uniq); do
                alone "peers_$shape" 600 "${baseline[@]}" --context $peer_context --shape "$shape" --output "$OUT/device_baseline_${DEVICE}_$shape.json"
            done
            ;;
        *) echo "no part is called $1" >&2 && failed=1 ;;
    esac
}

baseline=("$PYTHON" -m tests.bench.gpu.device_baseline --device "$DEVICE" --dtype bfloat16 --context $context --steps $steps --sizes $sizes --prefill $prefill)
: >"$OUT/gpu_parts.log"
names=()
for part in $PARTS; do
    case $CHECKS in *" $part "*) run_check "$part" ;; esac
done
[ ${#names[@]} = 0 ] || await
for part in $PARTS; do
    case $CHECKS in *" $part "*) ;; *) measure "$part" ;; esac
done
{ "$PYTHON" -m tests.bench.gpu.comparisons "$OUT" && "$PYTHON" -m tests.bench.gpu.summary "$OUT"; } 2>&1 | tee "$OUT/gpu_summary.txt"
bundle
exit "$failed"
