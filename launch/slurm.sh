#!/usr/bin/env bash
# A cluster of GPU nodes under Slurm: one process a node, which drives all GPUs of its node.
#
#   sbatch --nodes=16 --gpus-per-node=8 launch/slurm.sh train --config=FILE --workdir=DIR
#   sbatch --nodes=16 --gpus-per-node=8 launch/slurm.sh tokenize --config=FILE
#
# Submit from the repository, whose .venv (requirements-gpu.txt) and the run directory all nodes see. For
# longer than the time limit: submit it several times with --dependency=singleton; each goes on where the
# one before was ended. `bash launch/slurm.sh --dry_run train ...` says what would run.

#SBATCH --job-name=emu3
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=emu3-%j.log
# Five minutes before the time limit, and when preempted: SIGTERM to the processes, which save and end.
#SBATCH --signal=TERM@300

set -euo pipefail
# Slurm runs a copy of this file, so the repository is where it was submitted from.
cd "${SLURM_SUBMIT_DIR:-$(dirname "${BASH_SOURCE[0]}")/..}"
source launch/commands.sh

if [[ "${1:-}" == --dry_run ]]; then
    DRY_RUN=1
    shift
fi
check_command "$@"
[[ -n "$DRY_RUN" || -n "${SLURM_JOB_ID:-}" ]] || fail "this runs under sbatch, or with --dry_run"

first="${SLURM_JOB_NODELIST:-FIRST_NODE}"
if [[ -n "${SLURM_JOB_NODELIST:-}" ]]; then
    first="$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)"
fi
# A port of its own for each job of a node.
port=$((20000 + ${SLURM_JOB_ID:-0} % 20000))
# SLURM_PROCID is known where the process runs, hence the shell in between.
own="$(share "$1" "$first:$port" "${SLURM_NNODES:-NODES}" '$SLURM_PROCID')"
run srun --kill-on-bad-exit=0 bash -c "exec .venv/bin/python -m emu3_jax.$(quoted "$@") $own"
