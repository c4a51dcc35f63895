#!/usr/bin/env bash
# Fill a folder with the wheels that a machine needs which has PyTorch with CUDA and common scientific packages, and no
# package index (benchmarks/gpu.sh installs from it).  The versions are those of constraints.txt.
#
#     benchmarks/wheelhouse.sh [FOLDER]        default: wheelhouse/
#
# TARGET_PYTHON is that machine's Python version (default 3.12), LIMIT the largest size of the folder in MiB (default 56,
# so that the repository fits beside it in 64).  pyarrow (48 MiB), mlflow, numpy and torch are left out: the first is
# commonly there, a run with tracking.enabled=false does not import the second.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
folder=${1:-wheelhouse}
python=${PYTHON:-python3}
if [ -z "${PYTHON:-}" ] && [ -x .venv/bin/python ]; then python=.venv/bin/python; fi
names='megatron-core|pydantic|pydantic_core|annotated-types|typing-inspection|typing_extensions|hjson|msgpack|einops'
names="$names|py-cpuinfo|ninja|zstandard|sentencepiece|xxhash|tokenizers|fsspec|rich|psutil|safetensors"
mapfile -t pins < <(grep -E "^($names)==" constraints.txt)
platforms=()
for version in manylinux_2_28 manylinux_2_27 manylinux_2_24 manylinux_2_17 manylinux2014 manylinux1; do
    platforms+=(--platform "${version}_x86_64")
done
mkdir -p "$folder"
rm -f "$folder"/*.whl # two versions of one package stop an installation
"$python" -m pip download -q --no-deps --only-binary=:all: --implementation cp \
    --python-version "${TARGET_PYTHON:-3.12}" "${platforms[@]}" -d "$folder" "${pins[@]}"
# DeepSpeed is published as source; without operators it is Python alone, the same for every version
DS_BUILD_OPS=0 "$python" -m pip wheel -q --no-deps --no-build-isolation -w "$folder" "$(grep '^deepspeed==' constraints.txt)"
size=$(du -sm "$folder" | cut -f1)
echo "$folder: $(ls "$folder"/*.whl | wc -l) wheels, $size MiB"
if [ "$size" -gt "${LIMIT:-56}" ]; then
    echo "$folder: $size MiB is more than LIMIT, ${LIMIT:-56}; raise LIMIT or leave wheels out" >&2
    exit 1
fi
