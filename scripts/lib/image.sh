# shellcheck shell=bash
# What builds the container image where no Docker engine is: to be sourced.

# Installs buildah and debootstrap, or says in one line why the image is not built.
# Its exit status tells which. tests/deploy/test_image.py skips itself without them.
install_image_tools() {
    local log
    if command -v buildah >/dev/null && command -v debootstrap >/dev/null; then
        return 0
    fi
    if [ "$(id -u)" -ne 0 ] || ! command -v apt-get >/dev/null; then
        echo "Skipped: building the image needs buildah and debootstrap, or root and apt-get to install them."
        return 1
    fi
    echo "Installing buildah and debootstrap, to build the image"
    log=$(mktemp)
    if apt-get update -q >"$log" 2>&1 &&
        DEBIAN_FRONTEND=noninteractive apt-get install -q -y --no-install-recommends \
            buildah debootstrap >>"$log" 2>&1; then
        rm -f "$log"
        return 0
    fi
    tail -n 5 "$log"
    echo "Skipped: the image is not built, buildah and debootstrap cannot be installed; see $log."
    return 1
}
