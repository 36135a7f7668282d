#!/bin/sh
# The report's tests open it in a real browser. Where there is none and we may install packages, install Chromium.
set -eu
for name in chromium chromium-browser google-chrome; do
    command -v "$name" >/dev/null 2>&1 && exit 0
done
if [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null 2>&1; then
    echo "Installing Chromium for the tests of the report ..."
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >/dev/null 2>&1 \
        || echo "Chromium could not be installed; the tests that need a browser are skipped (or fail under CI=true)."
else
    echo "No Chromium found; the tests that need a browser are skipped. Install it to run them."
fi
