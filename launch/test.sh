#!/usr/bin/env bash
# The tests. A quarter of an hour on two cores; --slow adds the long ones. Other options go to pytest.
#
#   bash launch/test.sh [--slow] [-k NAME] [tests/test_FILE.py] ...

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

slow=(-m "not slow")
arguments=()
for argument in "$@"; do
    if [[ "$argument" == --slow ]]; then
        slow=()
    else
        arguments+=("$argument")
    fi
done

set_up requirements-test.txt
"$PYTHON_BIN" -m ruff check emu3_jax configs examples tests benchmarks
# Two workers: compiling uses one core, so two processes keep two cores busy.
exec "$PYTHON_BIN" -m pytest -q -n "${TEST_WORKERS:-2}" --dist loadfile ${slow[@]+"${slow[@]}"} ${arguments[@]+"${arguments[@]}"}
