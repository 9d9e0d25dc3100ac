#!/usr/bin/env bash
# Runs the tests: a quarter of an hour on two cores; --slow adds the long ones. Other options go to
# pytest. --newest: a part of them, in .venv-newest/, on the newest Python that runs on this machine.
#
#   bash launch/test.sh [--slow] [--newest] [-k NAME] [tests/FOLDER/test_FILE.py] ...

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

# The parts most sensitive to a newer JAX: compiler texts, mesh, checkpoints, generation, weights.
PART=(
    aot aot_compiler aot_texts
    sharding shardings transformer_mesh attention_context zigzag
    checkpoint resume relayout bucket
    engine laws shared_prompts guidance
    official hf_layout vision_interop torch_pickle
)

slow=(-m "not slow")
newest=''
arguments=()
for argument in "$@"; do
    case "$argument" in
        --slow) slow=() ;;
        --newest) newest=1 ;;
        *) arguments+=("$argument") ;;
    esac
done

if [[ -n "$newest" ]]; then
    PYTHON="$(newer_python)"
    if [[ -z "$PYTHON" ]]; then
        echo "No Python newer than that of $VENV runs here; skipping the tests on the newest Python."
        exit
    fi
    VENV="$ROOT/.venv-newest/$("$PYTHON" -c 'import sys; print("%d.%d" % sys.version_info[:2])')"
    PYTHON_BIN="$VENV/bin/python"
    for name in "${PART[@]}"; do
        file="$(find tests -name "test_$name.py")"
        [[ -n "$file" ]] || fail "there is no test_$name.py in tests/" # of nothing, pytest runs all
        arguments+=("$file")
    done
fi

set_up requirements-test.txt
"$PYTHON_BIN" -m ruff check emu3_jax configs examples tests benchmarks docs
# Two workers: compiling uses one core, so two processes use two cores.
exec "$PYTHON_BIN" -m pytest -q -n "${TEST_WORKERS:-2}" --dist loadfile ${slow[@]+"${slow[@]}"} ${arguments[@]+"${arguments[@]}"}
