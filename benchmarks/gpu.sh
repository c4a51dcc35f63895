#!/usr/bin/env bash
# Everything this project measures on one CUDA device, in one command of less than nine minutes:
#
#     benchmarks/gpu.sh                        all parts
#     benchmarks/gpu.sh --parts start,llama    some of them
#     benchmarks/gpu.sh --small                tiny sizes, to try the command itself; runs on a CPU too
#
# What it needs: PyTorch with CUDA, the packages of constraints.txt, and for the published sizes a device of 80 GB or
# more (a micro-batch that does not fit is halved until it does; --recompute full needs least).  PYTHON names the
# interpreter; without it .venv/bin/python is taken where `make` has made one, else python3.
#
# On a machine that has PyTorch but no package index, carry wheels in a folder:
#
#     WHEELS=wheels benchmarks/gpu.sh
#
# A wheel is installed only where the machine lacks the package or has an older one, into a folder for this run alone;
# torch and what belongs to it are never replaced.  To fill the folder, for Python 3.12 on x86-64:
#
#     pip download --no-deps --only-binary=:all: --python-version 3.12 --implementation cp \
#         --platform manylinux_2_28_x86_64 --platform manylinux_2_24_x86_64 --platform manylinux_2_17_x86_64 \
#         --platform manylinux2014_x86_64 -d wheels \
#         $(grep -E '^(megatron-core|pydantic|pydantic_core|annotated-types|typing-inspection|typing_extensions)==' constraints.txt) \
#         $(grep -E '^(hjson|msgpack|einops|zstandard|sentencepiece|xxhash|pyarrow|tokenizers)==' constraints.txt)
#     DS_BUILD_OPS=0 pip wheel --no-deps --no-build-isolation -w wheels $(grep '^deepspeed==' constraints.txt)
#
# (leave out what the machine already has).  Without deepspeed, `resume` is skipped and speeds are those of a plain
# PyTorch loop.
#
# Results: gpu.json, gpu.png and gpu.log in benchmarks/results, or in the folder that OUT names.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [ -z "${PYTHON:-}" ]; then
    PYTHON=python3
    [ -x .venv/bin/python ] && PYTHON=.venv/bin/python
fi

if [ -n "${WHEELS:-}" ]; then
    site=$(mktemp -d)
    trap 'rm -rf "$site"' EXIT
    mapfile -t missing < <("$PYTHON" - "$WHEELS" <<'PYTHON_END'
import importlib.metadata
import pathlib
import re
import sys

from packaging.version import Version

OF_TORCH = re.compile(r"(torch|triton|nvidia|cuda)")
present = {re.sub(r"[-_.]+", "-", d.name or "").lower(): d.version for d in importlib.metadata.distributions()}
for wheel in sorted(pathlib.Path(sys.argv[1]).glob("*.whl")):
    name, version = wheel.name.split("-")[:2]
    name = re.sub(r"[-_.]+", "-", name).lower()
    lacking = name not in present or Version(present[name]) < Version(version)
    if lacking and not OF_TORCH.match(name):
        print(wheel)
PYTHON_END
    )
    if [ ${#missing[@]} -gt 0 ]; then
        "$PYTHON" -m pip install -q --no-index --no-deps --no-compile --no-cache-dir --target "$site" "${missing[@]}"
    fi
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}"
fi

PYTHONUNBUFFERED=1 "$PYTHON" benchmarks/gpu.py "$@"
