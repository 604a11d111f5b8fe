#!/usr/bin/env bash
# A TPU host: as local.sh, with JAX for TPU. The chips of one host:
#   bash launch/tpu.sh study --config=configs/single_gpu.py --workdir=runs/tpu --config.data.source=text/ \
#     --config.mesh.fsdp=-1 --config.budget.batch_multiple=8
# A whole slice: the same command on every host (gcloud ... ssh --worker=all --command=...), with a
# --workdir on a disk that all hosts see and --coordinator=auto. This way through several processes
# is tested on CPUs; on a slice nobody has run it yet (README, "What is not claimed").
set -euo pipefail
export EXTRA=tpu
exec bash "$(dirname "${BASH_SOURCE[0]}")/local.sh" "$@"
