#!/usr/bin/env bash
# Measures this package on one NVIDIA GPU in a quarter of an hour, install and compiling included,
# and prints a section for docs/reference/measurements.md. benchmarks/gpu/run_all.py says what is measured.
#
#   bash benchmarks/gpu.sh [--output=runs/gpu.json] [--budget_s=600] [--tiny]
#
# An interpreter that has the packages and sees a GPU is used as it is: that of PYTHON, else python3.
# If it has not, .venv gets them (requirements-gpu.txt), which needs a network. --tiny: a dry run.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../launch/setup.sh"
cd "$ROOT"
export PYTHONPATH="$ROOT"

is_ready() {
    "$1" -c 'import sys, benchmarks.gpu.run_all, jax
if "--tiny" not in sys.argv and jax.devices()[0].platform != "gpu": sys.exit("JAX sees no GPU")' "${@:2}"
}

python="${PYTHON:-python3}"
if ! reason="$(is_ready "$python" "$@" 2>&1)"; then
    echo "$python is not ready: $(tail -n 1 <<<"$reason")"
    set_up requirements-gpu.txt
    python="$PYTHON_BIN"
fi
exec "$python" -m benchmarks.gpu.run_all "$@"
