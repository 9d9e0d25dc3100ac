# Sourced by the other scripts: a virtual environment with the packages of a requirements file.
#
#   source launch/setup.sh
#   set_up requirements.txt      # makes or completes .venv, and sets PYTHON_BIN
#
# Settings: PYTHON (an interpreter, 3.11 or newer) and VENV (the folder, default .venv). pip uses
# the machine's configuration.

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)"
VENV="${VENV:-$ROOT/.venv}"
PYTHON_BIN="$VENV/bin/python"
# Compiled programs are kept between processes and runs.
export JAX_COMPILATION_CACHE_DIR="${JAX_COMPILATION_CACHE_DIR:-$ROOT/.cache/jax}"

fail() {
    echo "Error: $*" >&2
    exit 1
}

is_new_enough() {
    "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

find_python() {
    local candidate
    if [[ -n "${PYTHON:-}" ]]; then
        is_new_enough "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or newer"
        echo "$PYTHON"
        return
    fi
    for candidate in python3 python3.11 python3.12 python3.13 python3.14 python; do
        if is_new_enough "$candidate"; then
            echo "$candidate"
            return
        fi
    done
    fail "no Python 3.11 or newer was found; install one, or name it: PYTHON=/path/to/python3.11"
}

# Prints the newest Python on PATH and among pyenv's, or nothing if $VENV already has it. Each is run:
# a shim may fail.
newer_python() {
    local about candidate default newest
    about='import ensurepip, sys, venv; v = sys.version_info
if v >= (3, 11) and v.releaselevel == "final": print(v[1], sys.executable)'
    newest="$(
        for candidate in python3.{11..40} "${PYENV_ROOT:-${HOME:-}/.pyenv}"/versions/*/bin/python3; do
            "$candidate" -c "$about" 2>/dev/null || true
        done | sort -n | tail -n 1
    )"
    default="$PYTHON_BIN"
    is_new_enough "$default" || default="$(find_python)"
    if [[ "${newest%% *}" -gt "$("$default" -c 'import sys; print(sys.version_info[1])')" ]]; then
        echo "${newest#* }"
    fi
}

make_venv() {
    local python
    python="$(find_python)"
    echo "Making the virtual environment $VENV with $("$python" --version)"
    # --clear replaces the folder of an interrupted start.
    "$python" -m venv --clear "$VENV" || fail \
        "$python cannot make a virtual environment; on Debian and Ubuntu install python3-venv"
}

set_up() {
    local requirements="$ROOT/$1" stamp
    # The stamp names the content of all requirement files: a change installs again.
    stamp="$VENV/installed-${1%.txt}-$(cat "$ROOT"/requirements*.txt | cksum | cut -d' ' -f1)"
    if [[ -e "$stamp" ]]; then
        return
    fi
    if ! is_new_enough "$PYTHON_BIN" || ! "$PYTHON_BIN" -m pip --version >/dev/null 2>&1; then
        make_venv
    fi
    echo "Installing $1 into $VENV (once; some 300 MB, a few minutes)"
    "$PYTHON_BIN" -m pip install --quiet --disable-pip-version-check -r "$requirements" || fail \
        "installing $1 failed; the lines above give the reason. Run the same command again to continue"
    touch "$stamp"
}
