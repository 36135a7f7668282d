#!/bin/sh
# Build dist/ with the Python $1, install the wheel into an empty environment outside the checkout, and run its demo there.
# Dependencies are shared with $1, so nothing is fetched: they lie on the new environment's path, after its own packages.
set -eu
python=$(cd "$(dirname "$1")" && pwd)/$(basename "$1")
rm -rf dist
"$python" -m build --no-isolation
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"$python" -m venv "$folder/venv"
packages=$("$folder/venv/bin/python" -c 'import sysconfig; print(sysconfig.get_path("purelib"))')
"$folder/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-index --no-deps dist/*.whl
"$python" -c 'import sys; print(*(p for p in sys.path if p.endswith("site-packages")), sep="\n")' >"$packages/shared.pth"
cd "$folder"
unset PYTHONPATH
venv/bin/python -c '
import sys
from pathlib import Path
import proof_of_learning
from proof_of_learning.cli.demo import example
for place in (Path(proof_of_learning.__file__), example("digits.py")):
    assert place.is_relative_to(sys.prefix), f"{place} is not part of the wheel"
'
venv/bin/pol demo -o demo --steps 300
test -s demo/report.html
venv/bin/pol environment demo/honest.pol -o environment
echo "The wheel works: $(cd "$OLDPWD" && ls dist/*.whl)"
