# Sourced by the scripts that start one command in many processes.
#
#   run WORD ...       runs a command; with DRY_RUN=1 says it instead, so that it can be pasted
#   check_command ...  the words behind a script's own options: train or tokenize, then their flags
#   quoted WORD ...    the words as one line for another shell
#   share COMMAND COORDINATOR PROCESSES PROCESS
#                      the flags that tell one process of several which part is its own
#   pack_code FOLDER   the last commit as FOLDER/emu3_jax and FOLDER/emu3_jax.tar.gz
#
# No script here takes a key or a token. gcloud, xpk and the machines they start use the account they
# are signed in with or the service account they run as (docs/pods.md).

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
        "") fail "no command; behind the options comes train or tokenize with its flags" ;;
        *) fail "expected train or tokenize behind the options, found $1" ;;
    esac
}

share() {
    if [[ "$1" == tokenize ]]; then
        echo "--config.worker=$4 --config.workers=$3"
    else
        echo "--coordinator=$2 --processes=$3 --process=$4"
    fi
}

# The last commit of this repository, with its revision but without its history, as one file: what a
# run directory calls its revision is then what really ran.
pack_code() {
    if [[ -n "$(git -C "$ROOT" status --porcelain)" ]]; then
        echo "Warning: there are changes that are not committed; the last commit is what runs" >&2
    fi
    run git clone --quiet --depth=1 "file://$ROOT" "$1/emu3_jax"
    run tar -czf "$1/emu3_jax.tar.gz" -C "$1" emu3_jax
}
