#!/usr/bin/env bash
# A TPU host: as local.sh, with JAX for TPU. One host of a slice trains on one of its chips for now:
# experts over a mesh, and so whole slices, are not built yet (README, "What is not claimed").
#   bash launch/tpu.sh study --config=configs/single_gpu.py --workdir=runs/tpu --config.data.source=text/
set -euo pipefail
export EXTRA=tpu
exec bash "$(dirname "${BASH_SOURCE[0]}")/local.sh" "$@"
