#!/usr/bin/env bash
# One host with NVIDIA GPUs: as local.sh, with JAX for CUDA.
#   bash launch/gpu.sh study --config=configs/single_gpu.py --workdir=runs/gpu --config.data.source=text/
set -euo pipefail
export EXTRA=gpu
exec bash "$(dirname "${BASH_SOURCE[0]}")/local.sh" "$@"
