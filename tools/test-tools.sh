#!/bin/sh
# Two programs that tests use for real: a browser opens the report, bubblewrap confines the task's code. Where one is missing
# and we may install packages, install it; without it, its tests are skipped.
set -u
present() {
    for name in "$@"; do
        command -v "$name" >/dev/null 2>&1 && return 0
    done
    return 1
}

missing=""
present chromium chromium-browser google-chrome || missing="$missing chromium"
present bwrap || missing="$missing bubblewrap"
[ -z "$missing" ] && exit 0
if [ "$(id -u)" != 0 ] || ! command -v apt-get >/dev/null 2>&1; then
    echo "Not installed:$missing. The tests that need it are skipped; install it to run them."
    exit 0
fi
echo "Installing$missing for the tests ..."
apt-get update -qq >/dev/null 2>&1
for package in $missing; do
    DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends "$package" >/dev/null 2>&1 \
        || echo "$package could not be installed; the tests that need it are skipped (those of the browser fail under CI=true)."
done
