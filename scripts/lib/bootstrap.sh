# Makes .venv with this project and its pinned dependencies. Sourced by the scripts,
# which call `ensure_venv EXTRAS` from the project's folder.
# shellcheck shell=bash

readonly ROOM_TO_INSTALL_MB=1000
readonly NO_NETWORK='NewConnection|ConnectTimeout|NameResolution|ProxyError|Max retries'
readonly INSTALL_LOG=.heartbeat/install.log

fail() {
    printf '%s\n' "$@" >&2
    exit 1
}

# Run a command, its output in a log, and tell every two seconds how far it is.
with_progress() {
    local what=$1 log=$2 begin=$SECONDS status=0
    shift 2
    printf '%s\n' "$what"
    # A process group of its own, so that Ctrl-C ends all of it, helpers too.
    set -m
    "$@" >"$log" 2>&1 &
    local pid=$!
    set +m
    # shellcheck disable=SC2064 # the pid of now
    trap "kill -- -$pid 2>/dev/null; exit 130" INT TERM HUP
    local ticks=0
    while kill -0 "$pid" 2>/dev/null; do
        sleep 0.2
        ticks=$((ticks + 1))
        if ((ticks % 10 == 0)); then
            printf '  %3d s  %s\n' "$((SECONDS - begin))" "$(last_line "$log")"
        fi
    done
    wait "$pid" || status=$?
    trap - INT TERM HUP
    return "$status"
}

last_line() {
    tr '\r' '\n' <"$1" | grep -v '^[[:space:]]*$' | tail -n 1 | cut -c 1-70
}

is_python_311() {
    "$1" -c 'import sys; sys.exit(sys.version_info[:2] != (3, 11))' 2>/dev/null
}

find_python() {
    local python
    for python in python3.11 python3 python; do
        if command -v "$python" >/dev/null && is_python_311 "$python"; then
            command -v "$python"
            return
        fi
    done
    return 1
}

# Install only when something changed since: setup.cfg, the pins, the folder.
ensure_venv() {
    local extras=$1 stamp=.venv/.installed-$1 wanted
    wanted=$(cat setup.cfg constraints.txt | cksum)
    if [[ -f $stamp && $(<"$stamp") == "$wanted" ]] && is_whole_venv; then
        return
    fi
    local folder
    for folder in .venv .heartbeat; do
        if [[ -e $folder && ! -O $folder ]]; then
            fail "$PWD/$folder belongs to another user." \
                "Run this as that user, or remove $folder and start again."
        fi
    done
    [[ ! -e .heartbeat || -d .heartbeat ]] ||
        fail "$PWD/.heartbeat is no folder. Move it away and start again."
    mkdir -p -m 700 .heartbeat
    is_whole_venv || make_venv
    install "$extras"
    printf '%s\n' "$wanted" >"$stamp"
}

# A .venv that was moved or copied has programs that point to the old place.
is_whole_venv() {
    [[ -f .venv/.made-in && $(<.venv/.made-in) == "$PWD" ]] &&
        is_python_311 .venv/bin/python
}

make_venv() {
    local python free
    if [[ ! -f .venv/.made-in ]] && .venv/bin/python -m pip --version &>/dev/null; then
        # Somebody made it by hand: use it, or leave it alone.
        is_python_311 .venv/bin/python || fail \
            "There is a .venv in $PWD, but not with Python 3.11." \
            "Move it away, and start again."
        printf '%s\n' "$PWD" >.venv/.made-in
        return
    fi
    python=$(find_python) || fail \
        "Python 3.11 is needed and was not found." \
        "Install it: \`sudo apt install python3.11 python3.11-venv\` (Debian 12)," \
        "\`brew install python@3.11\` (macOS), or from https://www.python.org/." \
        "Then start again."
    "$python" -c 'import ensurepip, venv' 2>/dev/null || fail \
        "$python cannot make virtual environments: a part of it is missing." \
        "Install it: \`sudo apt install python3.11-venv\` (Debian). Then start again."
    free=$(df -Pm . | awk 'NR == 2 { print $4 }')
    ((free >= ROOM_TO_INSTALL_MB)) || fail \
        "The disk of $PWD is nearly full: $free MB are free," \
        "the installation needs $ROOM_TO_INSTALL_MB MB. Make room and start again."
    with_progress "Making .venv with $python" "$INSTALL_LOG" \
        "$python" -m venv --clear .venv || explain_failure
    printf '%s\n' "$PWD" >.venv/.made-in
}

install() {
    with_progress "Installing the pinned packages (about 200 MB, once)" \
        "$INSTALL_LOG" \
        .venv/bin/python -m pip install --disable-pip-version-check --no-input \
        --progress-bar off --retries 2 --timeout 15 \
        -c constraints.txt -e ".[$1]" || explain_failure
}

explain_failure() {
    printf '%s\n' "This failed. The last lines of $INSTALL_LOG:" >&2
    tail -n 12 "$INSTALL_LOG" | sed 's/^/    /' >&2
    if grep -q 'No space left on device' "$INSTALL_LOG"; then
        fail "The disk is full. Make room and start again."
    elif grep -qE "$NO_NETWORK" "$INSTALL_LOG"; then
        fail "The first start needs the network (the Python Package Index and Maven" \
            "Central). Check it, and HTTPS_PROXY if you are behind a proxy. Then start" \
            "again: what came in so far is kept."
    fi
    fail "Mend what it names and start again."
}
