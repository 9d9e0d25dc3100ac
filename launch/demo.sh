#!/usr/bin/env bash
# A page to play with the shipped models, or with others, in the browser of this machine:
# draw, chat about images, film, look inside an image.
#
#   bash launch/demo.sh [--help] [--port=7860] [--model=DIR --vision_tokenizer=DIR] ...
#
# Ready within a minute on two cores after the install. Ctrl-C ends it.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"
set_up requirements.txt
set_up requirements-demo.txt
exec "$PYTHON_BIN" -m emu3_jax.demo "$@"
