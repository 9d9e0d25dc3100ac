#!/usr/bin/env bash
# Builds the documentation into docs/_build/html and serves it at http://localhost:8000. A warning is an
# error. --build only builds; --links also opens every external link. PORT=8001 is another port.
#
#   bash launch/docs.sh [--build] [--links]

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/setup.sh"
cd "$ROOT"

serve=1
builders=(html)
for argument in "$@"; do
    case "$argument" in
        --build) serve='' ;;
        --links) builders+=(linkcheck) ;;
        *) fail "expected --build or --links, found $argument" ;;
    esac
done

set_up requirements-docs.txt
export JAX_PLATFORMS=cpu
for builder in "${builders[@]}"; do
    "$PYTHON_BIN" -m sphinx -W --keep-going -q -b "$builder" docs "docs/_build/$builder"
done
echo "The site is in $ROOT/docs/_build/html"
if [[ -n "$serve" ]]; then
    exec "$PYTHON_BIN" -m http.server "${PORT:-8000}" --bind 127.0.0.1 --directory docs/_build/html
fi
