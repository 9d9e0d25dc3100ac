#!/usr/bin/env bash
# A pod on this machine: N processes run one command together, with the code path of a pod's hosts.
#
#   bash launch/local_pod.sh [--processes=2] [--port=PORT] [--dry_run] train --config=FILE --workdir=DIR
#   bash launch/local_pod.sh [--processes=2] [--dry_run] tokenize --config=FILE
#
# Each line of output begins with the number of its process. Ctrl-C and SIGTERM reach all processes,
# which save and end; the same command continues. Runs on CPUs unless JAX_PLATFORMS is set.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"

processes=2
port=
while [[ $# -gt 0 ]]; do
    case "$1" in
        --processes=*) processes="${1#*=}" ;;
        --port=*) port="${1#*=}" ;;
        --dry_run) DRY_RUN=1 ;;
        *) break ;;
    esac
    shift
done
check_command "$@"
[[ "$processes" =~ ^[1-9][0-9]*$ ]] || fail "--processes must be at least 1, found $processes"

[[ -x "$PYTHON_BIN" ]] || run set_up requirements.txt
cd "$ROOT"
export JAX_PLATFORMS="${JAX_PLATFORMS:-cpu}"
if [[ -z "$port" ]]; then
    port=$((20000 + RANDOM % 20000))
fi

trap 'kill -TERM $(jobs -p) 2>/dev/null || true' INT TERM
pids=()
for ((i = 0; i < processes; i++)); do
    read -ra own <<<"$(share "$1" "localhost:$port" "$processes" "$i")"
    command=("$PYTHON_BIN" -m "emu3_jax.$1" "${@:2}" "${own[@]}")
    if [[ -n "$DRY_RUN" ]]; then
        run "${command[@]}"
    else
        "${command[@]}" > >(exec sed -u "s/^/[$i] /") 2>&1 &
        pids+=($!)
    fi
done

status=0
for pid in ${pids[@]+"${pids[@]}"}; do
    while :; do # a signal ends `wait`, not the process
        wait "$pid" && code=0 || code=$?
        kill -0 "$pid" 2>/dev/null || break
    done
    [[ "$status" -ne 0 ]] || status=$code
done
exit "$status"
