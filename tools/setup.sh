#!/bin/sh
# Build the virtual environment $1 with the CPU build of PyTorch and this package, editable, with what its tests need.
set -eu
venv=$1
[ -x "$venv/bin/python" ] || "${PYTHON:-python3}" -m venv "$venv"
echo "Installing into $venv (PyTorch first; this takes a minute or two) ..."
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check torch==2.13.0
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --editable '.[dev]'
