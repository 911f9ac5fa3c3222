#!/usr/bin/env bash
# setup.sh [PYTHON [FOLDER]]: installs what the benchmarks need besides the lock into a folder of its own, so that the
# environment stays as it is locked.
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
python=${1:-$here/../.venv/bin/python} folder=${2:-$here/../.cache/benchmarks}
mkdir -p "$folder"
"$python" -m pip --disable-pip-version-check install --quiet --no-deps --upgrade --target "$folder" -r "$here/requirements.txt" \
    2>"$folder/pip.log" || { echo "setup: cannot install $here/requirements.txt; pip's words: $folder/pip.log" >&2; exit 1; }
echo "setup: done; now python -m benchmarks.reward"
