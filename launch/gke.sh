#!/usr/bin/env bash
# A study on Google Kubernetes Engine: JobSets on TPU slices, or an indexed Job on GPUs.
#
#   bash launch/gke.sh submit --type=v6e-16 --workers=4 --queue=research --image=IMAGE \
#     -- study --config=configs/paper_2b.py --workdir=gs://B/a
#   bash launch/gke.sh delete --name=a
#
# `bash launch/gke.sh submit --help` lists the options; launch/README.md says what a cluster needs.
set -euo pipefail
# shellcheck source=launch/common.sh
. "$(dirname "${BASH_SOURCE[0]}")/common.sh"
launcher gke "$@"
