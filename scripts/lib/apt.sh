# shellcheck shell=bash
# Installs Debian's packages that some tests need and skip themselves without: to be
# sourced.

# Installs the packages unless the commands are there, or says in one line why what
# needs them is not tried. Its exit status tells which.
#
#   install_packages WHAT "PACKAGE ..." COMMAND ...
install_packages() {
    local what=$1 packages log command missing=
    read -ra packages <<<"$2"
    for command in "${@:3}"; do
        command -v "$command" >/dev/null || missing=1
    done
    if [ -z "$missing" ]; then
        return 0
    fi
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "Skipped: $what needs ${packages[*]}, or root and apt-get to install them."
        return 1
    fi
    echo "Installing ${packages[*]}, for $what"
    log=$(mktemp)
    if apt-get update -q >"$log" 2>&1 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
            "${packages[@]}" >>"$log" 2>&1; then
        rm -f "$log"
        return 0
    fi
    tail -n 5 "$log"
    echo "Skipped: $what; ${packages[*]} cannot be installed, see $log."
    return 1
}
