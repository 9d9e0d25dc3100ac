#!/usr/bin/env bash
# Cloud TPU VMs as a queued resource: create them, run a command on every host, delete them.
#
#   Q="bash launch/queued_resource.sh"; N="--name=emu3 --zone=us-east5-a"
#   $Q create $N --type=v5p-512 [--slices=1] [--runtime=VERSION] [--spot | --reserved] [--service_account=EMAIL]
#   $Q start $N train --config=FILE --workdir=gs://BUCKET/RUN    # waits for the machines, copies the last commit
#   $Q log $N                                                    # of host 0, live
#   $Q stop $N                                                   # SIGTERM: each host saves and ends
#   $Q delete $N
#
# --dry_run after the verb prints the commands and runs none. After a preemption: delete, create,
# start with the same words; the run continues from its last checkpoint.

set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/commands.sh"

verb="${1:-}"
[[ "$verb" =~ ^(create|start|log|stop|delete)$ ]] ||
    fail "the first word must be one of create, start, log, stop, delete; found ${verb:-nothing}"
shift
name='' zone='' type='' slices=1 runtime='' extra=()
while [[ $# -gt 0 ]]; do
    case "$1" in
        --name=*) name="${1#*=}" ;;
        --zone=*) zone="${1#*=}" ;;
        --type=*) type="${1#*=}" ;;
        --slices=*) slices="${1#*=}" ;;
        --runtime=*) runtime="${1#*=}" ;;
        --service_account=*) extra+=("--service-account=${1#*=}") ;;
        --spot | --reserved) extra+=("$1") ;;
        --dry_run) DRY_RUN=1 ;;
        *) break ;;
    esac
    shift
done
[[ -n "$name" && -n "$zone" ]] || fail "$verb needs --name and --zone"
tpus=(gcloud compute tpus queued-resources)
on_all=(--zone="$zone" --node=all --worker=all)

create() {
    case "$type" in
        v4-*) runtime="${runtime:-tpu-ubuntu2204-base}" ;;
        v5litepod-*) runtime="${runtime:-v2-alpha-tpuv5-lite}" ;;
        v5p-*) runtime="${runtime:-v2-alpha-tpuv5}" ;;
        v6e-*) runtime="${runtime:-v2-alpha-tpuv6e}" ;;
        *) [[ -n "$runtime" ]] || fail "create needs --type=v4-N, v5litepod-N, v5p-N or v6e-N, or a --runtime too" ;;
    esac
    local nodes=(--node-id="$name")
    [[ "$slices" == 1 ]] || nodes=(--node-count="$slices" --node-prefix="$name")
    run "${tpus[@]}" create "$name" --zone="$zone" --accelerator-type="$type" \
        --runtime-version="$runtime" "${nodes[@]}" ${extra[@]+"${extra[@]}"}
}

wait_until_active() {
    local describe=("${tpus[@]}" describe "$name" --zone="$zone" --format="value(state.state)") state
    if [[ -n "$DRY_RUN" ]]; then
        run "${describe[@]}"
        return
    fi
    while state="$("${describe[@]}")" && [[ "$state" != ACTIVE ]]; do
        [[ ! "$state" =~ FAILED|SUSPEND|DELETING ]] || fail "$name is $state; delete and create it again"
        echo "$name is $state; checking again in a minute"
        sleep 60
    done
    [[ "$state" == ACTIVE ]] || fail "$name: its state cannot be read; the lines above give the reason"
}

# The shell line for a host; train finds the other hosts by itself.
host_line() {
    if [[ "$1" == train ]]; then
        quoted .venv/bin/python -m emu3_jax.train "${@:2}" --coordinator=auto
        return
    fi
    # Workers are independent: each host receives its number and uses only its own four chips.
    local metadata='curl -sH Metadata-Flavor:Google http://metadata.google.internal/computeMetadata/v1/instance/attributes'
    echo "env TPU_PROCESS_BOUNDS=1,1,1 TPU_CHIPS_PER_PROCESS_BOUNDS=2,2,1 TPU_VISIBLE_CHIPS=0,1,2,3" \
        "$(quoted .venv/bin/python -m emu3_jax.tokenize "${@:2}")" \
        "--config.worker=\$($metadata/agent-worker-number)" \
        "--config.workers=\$($metadata/worker-network-endpoints | tr , '\\n' | grep -c .)"
}

start() {
    check_command "$@"
    [[ "$1" == train || "$slices" == 1 ]] || fail "tokenize runs on one slice; create one resource per slice"
    wait_until_active
    folder="TEMPORARY_FOLDER" # not local: the EXIT trap runs after this function
    if [[ -z "$DRY_RUN" ]]; then
        folder="$(mktemp -d)"
        trap 'rm -rf "$folder"' EXIT
    fi
    pack_code "$folder"
    run "${tpus[@]}" scp "$folder/emu3_jax.tar.gz" "$name:" "${on_all[@]}"
    # The machines' own Python is 3.10; uv brings a newer one.
    run "${tpus[@]}" ssh "$name" "${on_all[@]}" --command="tar -xzf emu3_jax.tar.gz && cd emu3_jax && \
{ [ -e .venv ] || { python3 -m pip install --quiet --user uv && ~/.local/bin/uv venv --quiet --seed --python=3.12 .venv; }; } && \
source launch/setup.sh && set_up requirements-tpu.txt"
    run "${tpus[@]}" ssh "$name" "${on_all[@]}" --command="cd emu3_jax && \
{ nohup bash -c $(quoted "echo \$\$ > run.pid; exec $(host_line "$@")") > run.log 2>&1 < /dev/null & }"
}

case "$verb" in
    create) create ;;
    start) start "$@" ;;
    log) run "${tpus[@]}" ssh "$name" --zone="$zone" --command="tail -n 100 -F emu3_jax/run.log" ;;
    stop) run "${tpus[@]}" ssh "$name" "${on_all[@]}" --command='kill -TERM $(cat emu3_jax/run.pid)' ;;
    delete) run "${tpus[@]}" delete "$name" --zone="$zone" --force ;;
esac
