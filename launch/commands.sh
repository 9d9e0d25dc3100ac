# Sourced by the scripts that start one command in many processes.
#
#   run WORD ...       runs a command; with DRY_RUN=1 prints it instead, so that it can be pasted
#   check_command ...  checks the words after a script's own options: train or tokenize, then flags
#   quoted WORD ...    prints the words as one line for another shell
#   share COMMAND COORDINATOR PROCESSES PROCESS
#                      prints the flags that give one process of several its part
#   pack_code FOLDER   writes the last commit as FOLDER/emu3_jax and FOLDER/emu3_jax.tar.gz
#
# No script here needs a key or a token. gcloud, xpk and the machines that they start use the account
# they are signed in with or the service account they run as (docs/how_to/pods.md).

source "$(dirname "${BASH_SOURCE[0]}")/setup.sh" # ROOT, PYTHON_BIN, fail, set_up
DRY_RUN="${DRY_RUN:-}"

quoted() {
    local word line=''
    for word in "$@"; do
        if [[ ! "$word" =~ ^[A-Za-z0-9_./:=,@%+~-]+$ ]]; then
            word="'${word//\'/\'\\\'\'}'"
        fi
        line+="$word "
    done
    echo "${line% }"
}

run() {
    if [[ -n "$DRY_RUN" ]]; then
        quoted "$@"
    else
        "$@"
    fi
}

check_command() {
    case "${1:-}" in
        train | tokenize) ;;
        "") fail "no command; give train or tokenize with its flags after the options" ;;
        *) fail "expected train or tokenize after the options, found $1" ;;
    esac
}

share() {
    if [[ "$1" == tokenize ]]; then
        echo "--config.worker=$4 --config.workers=$3"
    else
        echo "--coordinator=$2 --processes=$3 --process=$4"
    fi
}

# Packs the last commit of this repository, with its revision but without its history, as one file:
# the revision in a run directory is then the code that ran.
pack_code() {
    if [[ -n "$(git -C "$ROOT" status --porcelain)" ]]; then
        echo "Warning: there are uncommitted changes; the last commit runs" >&2
    fi
    run git clone --quiet --depth=1 "file://$ROOT" "$1/emu3_jax"
    run tar -czf "$1/emu3_jax.tar.gz" -C "$1" emu3_jax
}
