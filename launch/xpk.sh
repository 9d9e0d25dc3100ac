#!/usr/bin/env bash
# GKE: one JobSet through xpk (pip install xpk). It restarts by itself after a host has died or was
# preempted, and continues from the last checkpoint.
#
#   bash launch/xpk.sh --cluster=CLUSTER --zone=ZONE --name=emu3-stage1 --type=v5p-512 [--slices=1] \
#     [--image=IMAGE] [--restarts=50] [--dry_run] train --config=FILE --workdir=gs://BUCKET/RUN
#
# Without --image the last commit is added to python:3.12, and each host installs requirements-tpu.txt
# at its start; an image must have the repository as its working directory, with them installed.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"

cluster='' zone='' name='' type='' slices=1 image='' restarts=50
while [[ $# -gt 0 ]]; do
    case "$1" in
        --cluster=*) cluster="${1#*=}" ;;
        --zone=*) zone="${1#*=}" ;;
        --name=*) name="${1#*=}" ;;
        --type=*) type="${1#*=}" ;;
        --slices=*) slices="${1#*=}" ;;
        --image=*) image="${1#*=}" ;;
        --restarts=*) restarts="${1#*=}" ;;
        --dry_run) DRY_RUN=1 ;;
        *) break ;;
    esac
    shift
done
for option in cluster zone name type; do
    [[ -n "${!option}" ]] || fail "--$option is needed"
done
check_command "$@"
[[ "$1" == train ]] || fail "only train runs here; docs/how_to/data.md describes tokenize on many machines"

# exec: SIGTERM must reach the training process, which saves and exits with 143.
line="exec python -m emu3_jax.train $(quoted "${@:2}") --coordinator=auto"
if [[ -n "$image" ]]; then
    code=(--docker-image="$image")
else
    folder="TEMPORARY_FOLDER"
    if [[ -z "$DRY_RUN" ]]; then
        folder="$(mktemp -d)"
        trap 'rm -rf "$folder"' EXIT
    fi
    pack_code "$folder"
    # The copy belongs to another user; git would refuse to report its revision.
    line="git config --global --add safe.directory '*' && \
pip install --quiet -r requirements-tpu.txt && $line"
    code=(--base-docker-image=python:3.12 --script-dir="$folder/emu3_jax")
fi
# Exit 1 is an unexpected error, 3 a lost host; xpk adds codes from 127 on, including 143. Exit 2, a
# wrong input, is final.
run xpk workload create --cluster="$cluster" --zone="$zone" --workload="$name" --tpu-type="$type" \
    --num-slices="$slices" --max-restarts="$restarts" --restart-on-exit-codes=1,3 \
    --termination-grace-period-seconds=300 "${code[@]}" --command="$line"
