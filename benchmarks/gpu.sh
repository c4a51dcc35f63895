#!/usr/bin/env bash
# Everything this project measures on one CUDA device:
#
#     benchmarks/gpu.sh                        all parts that fit into --budget seconds (510)
#     benchmarks/gpu.sh --parts start,llama    some of them
#     benchmarks/gpu.sh --small                tiny sizes, to try the command itself; runs on a CPU too
#
# For a device that is lent for minutes, two visits: what a user meets first, then each fast path on and off.
#
#     benchmarks/gpu.sh --budget 300 --parts start,run,llama,lm2,delta
#     benchmarks/gpu.sh --budget 540 --parts attention,engine,llama-paths,lm2-paths,delta-paths,causality,resume,parity
#
# What it needs: PyTorch with CUDA, the packages of constraints.txt, and for the published sizes a device of 80 GB (the
# most samples a micro-batch that fit are taken, and said).  PYTHON names the interpreter; without it .venv/bin/python
# is taken where `make` has made one, else python3.
#
# On a machine that has PyTorch but no package index, carry wheels in a folder, which `make wheelhouse` fills:
#
#     WHEELS=wheelhouse benchmarks/gpu.sh
#
# A wheel is installed only where the machine lacks the package or has an older one, into a folder for this run alone;
# torch and what belongs to it are never replaced.  Without deepspeed, `run` and `resume` are skipped and speeds are
# those of a plain PyTorch loop.
#
# Results: gpu.json, gpu.jsonl (a line a measurement, as soon as it is made), gpu.png and gpu.log in benchmarks/results,
# or in the folder that OUT names.
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
    export PYTHONPATH="$site${PYTHONPATH:+:$PYTHONPATH}" PATH="$site/bin:$PATH"
fi

PYTHONUNBUFFERED=1 "$PYTHON" benchmarks/gpu.py "$@"
