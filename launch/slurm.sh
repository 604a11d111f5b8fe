#!/usr/bin/env bash
# A study on a Slurm cluster: an array of workers that Slurm starts, warns, and starts again.
#
#   bash launch/slurm.sh submit --workers=8 --hours=4 --gpus=1 -- study --config=configs/single_gpu.py \
#     --workdir=/shared/runs/a --config.data.source=text/
#
# `bash launch/slurm.sh submit --help` lists the options. squeue and scancel do the rest.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launcher slurm "$@"
