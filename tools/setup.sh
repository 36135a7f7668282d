#!/bin/sh
# Build the virtual environment $1 with the CPU build of PyTorch and this package, editable, with its extras $2 ("dev" by default),
# in the versions of the tested set. CONSTRAINTS= (empty) takes the newest that fit.
set -eu
venv=$1
extras=${2:-dev}
constraints=${CONSTRAINTS-constraints.txt}
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
install() {  # what pip would compile in one process is compiled below
    "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile ${constraints:+--constraint "$constraints"} "$@"
}
echo "Installing into $venv (PyTorch first; this takes a minute or two) ..."
install torch
install --editable ".[$extras]"
# By all processors, and without what hardly anybody imports: that is compiled when somebody does.
"$venv/bin/python" -m compileall -qq -j 0 -x '/tests?/|/transformers/models/(?!auto/|__init__)' "$venv/lib" || true
