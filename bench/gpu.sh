#!/usr/bin/env bash
# Builds, tests, checks and times bm_fast on the GPU of this machine, from a clean checkout and without network:
#     bench/gpu.sh [result.json]
# PYTHON (default python3) must have torch with CUDA, numpy, pytest, pybind11, scikit-build-core, safetensors and tqdm.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
python=${PYTHON:-python3}
out=${1:-bench/results/gpu-$(date -u +%Y-%m-%d-%H%M).json}
site=$PWD/build/gpu/site

"$python" -m pip install --quiet --no-index --no-deps --no-build-isolation --upgrade --target "$site" \
    --config-settings build-dir=build/gpu/build --config-settings cmake.define.BM_CUDA=ON .
export PYTHONPATH=$site
# Without a GPU all its tests would be skipped and look well.
"$python" -c "from bm_fast import ops; gpu = ops.info()['gpu']; assert not gpu.startswith('none'), gpu; print(gpu)"
"$python" -m pytest -q -k "device or gpu or compute_sanitizer" tests/test_cuda_*.py
"$python" bench/gpu.py "$out"
