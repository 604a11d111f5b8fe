#!/usr/bin/env bash
# TPU slices on Google Cloud: asks for them, runs a study on them, gives them back.
#
#   bash launch/tpu.sh up --type=v6e-16 --slices=4 --spot --project=P --zone=us-east5-b --hours=12 \
#     -- study --config=configs/paper_2b.py --workdir=gs://B/a
#   bash launch/tpu.sh status|logs|ssh|stop|down|sweep ...
#
# `bash launch/tpu.sh up --help` lists the options. On a TPU machine itself, install and run by
# `EXTRA=tpu bash launch/local.sh`. launch/README.md says what happens when something fails, and that
# this script has not met a cloud yet.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launcher tpu "$@"
