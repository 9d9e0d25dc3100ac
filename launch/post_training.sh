#!/usr/bin/env bash
# Post-training of the shipped nano model on a CPU: questions -> a model that chats (also with LoRA);
# candidates, preferences -> a model that draws better; all measured -> runs/post_training/report.html
#
#   bash launch/post_training.sh [--help] [--directory=runs/post_training] [--fresh] [--chat_steps=N] ...
#
# About 20 minutes on two idle cores after the install. Ctrl-C at any point: the same command continues.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
set_up requirements.txt
set_up requirements-questions.txt
exec "$PYTHON_BIN" -m emu3_jax.post_training "$@"
