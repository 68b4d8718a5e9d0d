# shellcheck shell=bash
# What tries the live page: to be sourced.

# Installs Debian's Chromium and its driver, or says in one line why the page is not
# tried in a browser. tests/browser skips itself without them.
install_browser() {
    local log
    if command -v chromium >/dev/null && command -v chromedriver >/dev/null; then
        return 0
    fi
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "Skipped: trying the live page needs chromium and chromium-driver, or root and apt-get to install them."
        return 1
    fi
    echo "Installing chromium and chromium-driver, to try the live page"
    log=$(mktemp)
    if apt-get update -q >"$log" 2>&1 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
            chromium chromium-driver >>"$log" 2>&1; then
        rm -f "$log"
        return 0
    fi
    tail -n 5 "$log"
    echo "Skipped: the live page is not tried, chromium cannot be installed; see $log."
    return 1
}
