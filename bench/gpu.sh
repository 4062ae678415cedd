#!/usr/bin/env bash
# Builds, tests, times and checks bm_fast on the GPU of this machine, from a clean checkout and without network, in at
# most eight minutes:
#     bench/gpu.sh [result.json]
# Every step has its own limit. One that fails or runs out of time is named at the end and stops none of the others but
# a failed build; without a GPU none begins. What all of them said is in the .log beside the result.
# PYTHON (default python3) must have torch with CUDA, numpy, pytest, hypothesis, pybind11, scikit-build-core, cmake,
# ninja, safetensors, matplotlib and tqdm. COMMIT names the commit where the checkout has no history.
set -uo pipefail
case ${1-} in
    -h | --help) sed -n '/^#!/d; /^#/!q; s/^# \?//p' "${BASH_SOURCE[0]}" && exit ;;
    -*) echo "bench/gpu.sh: expected a file for the result, got $1" >&2 && exit 2 ;;
esac
cd "$(dirname "${BASH_SOURCE[0]}")/.." || exit

readonly LIMIT=480
python=${PYTHON:-python3}
out=${1:-bench/results/gpu-$(date -u +%Y-%m-%d-%H%M).json}
site=$PWD/build/gpu/site
failed=()

# step NAME SECONDS COMMAND...: at most this long, and no longer than the script has
step() {
    local name=$1 seconds=$2 left=$((LIMIT - SECONDS)) begin=$SECONDS
    shift 2
    ((seconds < left)) || seconds=$left
    printf '== %s, at most %d s\n' "$name" "$seconds"
    if ((seconds <= 0)) || ! timeout --signal=INT --kill-after=5 "$seconds" "$@"; then
        failed+=("$name")
        printf '== %s FAILED after %d s\n' "$name" $((SECONDS - begin))
        return 1
    fi
    printf '== %s took %d s\n' "$name" $((SECONDS - begin))
}

gpu_tests() {
    local limit=$1 which=$2
    # warnings of libraries that the tests were not written with are no failures here
    step "tests: $which" "$limit" "$python" -m pytest -q -p no:cacheprovider -W default --durations=5 -k "$which" \
        tests/test_cuda_*.py
}

steps() {
    nvidia-smi --query-gpu=name,driver_version,memory.total --format=csv,noheader
    # architectures beside each other: one source takes as long as the slowest
    NVCC_APPEND_FLAGS="--threads 4" step build 240 "$python" -m pip install --quiet --no-index --no-deps \
        --no-build-isolation --upgrade --target "$site" --config-settings build-dir=build/gpu/build \
        --config-settings cmake.define.BM_CUDA=ON . || return
    export PYTHONPATH=$site${PYTHONPATH:+:$PYTHONPATH}
    # without a GPU all its tests would be skipped and look well
    step device 60 "$python" -c \
        "from bm_fast import ops; gpu = ops.info()['gpu']; print(gpu); raise SystemExit(gpu.startswith('none'))" || return
    gpu_tests 150 "(device or gpu) and not compute_sanitizer"
    step table $((LIMIT - SECONDS - 60)) "$python" bench/gpu.py "$out"
    gpu_tests 120 "compute_sanitizer"
}

main() {
    steps
    if ((${#failed[@]})); then
        printf '%s\n' "failed: ${failed[*]}"
        return 1
    fi
    echo "all steps passed"
}

# torch's own reason, before a minute is spent on the build
if ! reason=$("$python" -c "import torch; torch.cuda.init()" 2>&1); then
    echo "bench/gpu.sh: $python cannot use a GPU: ${reason##*$'\n'}" >&2
    exit 1
fi
mkdir -p "$(dirname "$out")"
main 2>&1 | tee "${out%.json}.log"
