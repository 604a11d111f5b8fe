#!/usr/bin/env bash
# One host with NVIDIA GPUs: as local.sh, with JAX for the CUDA that the driver can run.
#
#   bash launch/gpu.sh demo --size=gpu
#   bash launch/gpu.sh study --config=configs/single_gpu.py --workdir=runs/gpu --config.data.source=text/
#   bash launch/gpu.sh --workers=all study --config=configs/single_gpu.py --workdir=runs/gpu
#
# --workers=all (or a number) trains as many runs of a study at once as there are GPUs, one worker a
# GPU, each with a log of its own; a worker that asks to be started again (exit 75) is.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launcher gpu "$@"
