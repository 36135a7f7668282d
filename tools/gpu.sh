#!/bin/sh
# Everything that needs a CUDA device: the tests, then experiments/gpu.py (replay, portable arithmetic against the CPU, costs), which
# writes docs/evidence/gpu.md. About eight minutes on one GPU with eight cores or more; nothing is downloaded.
#
#   tools/gpu.sh DATA [--quick | --tiny]
#
# DATA: the folder with fashion_mnist.npz, cifar10.npz and tiny_shakespeare.txt. PYTHON: an interpreter with PyTorch for CUDA and this
# project's dependencies (default: .venv/bin/python). OUT: where the results go (default: docs/evidence).
set -e
cd "$(dirname "$0")/.."
data=${1:?name the folder with the data: tools/gpu.sh DATA}
shift
python=${PYTHON:-.venv/bin/python}
out=${OUT:-docs/evidence}
export PYTHONPATH="src:tests${PYTHONPATH:+:$PYTHONPATH}" PYTHONUNBUFFERED=1
mkdir -p "$out/data"
"$python" -m pytest tests/cuda -q -rs -p no:cacheprovider || failed=1
"$python" experiments/gpu.py --data "$data" --json "$out/data/gpu.json" --output "$out" "$@"
exit "${failed:-0}"
