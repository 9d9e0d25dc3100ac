#!/usr/bin/env bash
# A cluster of GPU nodes under Slurm: one process per node, which uses all GPUs of its node.
#
#   sbatch --nodes=16 --gpus-per-node=8 launch/slurm.sh train --config=FILE --workdir=DIR
#   sbatch --nodes=16 --gpus-per-node=8 launch/slurm.sh tokenize --config=FILE
#
# Submit from the repository; all nodes must share its .venv (requirements-gpu.txt) and the run
# directory. For more than the time limit, submit several times with --dependency=singleton; each job
# continues the one before. `bash launch/slurm.sh --dry_run train ...` prints what would run.

#SBATCH --job-name=emu3
#SBATCH --ntasks-per-node=1
#SBATCH --exclusive
#SBATCH --requeue
#SBATCH --open-mode=append
#SBATCH --output=emu3-%j.log
# SIGTERM to the processes, which save and end: five minutes before the limit, and on preemption.
#SBATCH --signal=TERM@300

set -euo pipefail
# Slurm runs a copy of this file, so the repository is the folder of submission.
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
# Each job of a node has its own port.
port=$((20000 + ${SLURM_JOB_ID:-0} % 20000))
# SLURM_PROCID exists only where the process runs, hence the shell in between.
own="$(share "$1" "$first:$port" "${SLURM_NNODES:-NODES}" '$SLURM_PROCID')"
run srun --kill-on-bad-exit=0 bash -c "exec .venv/bin/python -m emu3_jax.$(quoted "$@") $own"
