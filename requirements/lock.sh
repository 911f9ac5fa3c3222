#!/usr/bin/env bash
# lock.sh PYTHON DEVICE [ARGS]: resolves DEVICE.in into DEVICE.lock with uv, in a throwaway environment; pins stay as they
# are unless ARGS are `--upgrade`.
set -euo pipefail
python=$1 device=$2
here=$(cd "$(dirname "$0")" && pwd)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
"$python" -m venv "$scratch"
"$scratch/bin/python" -m pip --disable-pip-version-check install --quiet uv
"$scratch/bin/uv" pip compile "$here/$device.in" --override "$here/$device.overrides" --python-version 3.11 \
    --python-platform x86_64-manylinux_2_28 --no-header --no-annotate --output-file "$here/$device.lock" --quiet "${@:3}"
echo "requirements/$device.lock: $(wc -l < "$here/$device.lock") packages"
