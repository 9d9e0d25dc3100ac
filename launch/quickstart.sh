#!/usr/bin/env bash
# The whole system on a CPU: images and captions -> token shards -> a transformer trained
# from scratch, interrupted and resumed -> evaluation -> samples -> runs/quickstart/report.html
#
#   bash launch/quickstart.sh [--help] [--directory=runs/quickstart] [--fresh] [--steps=N]
#
# Five to eleven minutes on two cores after the install. Ctrl-C at any point: the same command continues.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
set_up requirements.txt
exec "$PYTHON_BIN" -m emu3_jax.quickstart "$@"
