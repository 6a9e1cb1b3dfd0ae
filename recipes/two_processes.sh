#!/bin/sh
# SPDX-License-Identifier: Apache-2.0
# The accelerate recipe on two processes of one machine: one Poisson sample shared out, one noise, one ledger.
#
#   sh recipes/two_processes.sh runs/two [--tiny]
set -eu
run=${1:?usage: two_processes.sh RUN [--tiny]}
shift
mkdir -p "$run"
[ -e "$run/team.key" ] || python -c "import privguard, sys; privguard.Key.generate().write(sys.argv[1])" "$run/team.key"
# after -- everything is the script's: torchrun would take --run for one of its own options
ACCELERATE_USE_CPU=true OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 --master-port "${PORT:-29500}" -- \
    "$(dirname "$0")/accelerate_loop.py" --run "$run/run" "$@"
