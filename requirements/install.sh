#!/usr/bin/env bash
# install.sh PYTHON VENV DEVICE: makes the environment from the pinned lock, with a clear word where that cannot be.
set -euo pipefail
python=$1 venv=$2 device=$3
here=$(cd "$(dirname "$0")" && pwd)
lock="$here/$device.lock"
declare -A need_gb=([cpu]=7 [gpu]=20)

die() { printf 'setup: %s\n' "$*" >&2; exit 1; }

[ -n "$python" ] || die "no Python found; install Python 3.11, or name it: make setup PYTHON=/path/to/python3.11"
version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || die "$python does not run; name another: make setup PYTHON=..."
[ "$version" = 3.11 ] || die "$python is Python $version, this project needs 3.11; name one: make setup PYTHON=/path/to/python3.11"
free_gb=$(($(df -Pk "$(dirname "$venv")" | awk 'NR == 2 {print $4}') / 1048576))
[ "$free_gb" -ge "${need_gb[$device]}" ] || [ -d "$venv" ] || die "only $free_gb GB free here, ${need_gb[$device]} GB needed; free some, or use another disk: make setup VENV=/other/disk/venv"

say() { printf 'setup: %s\n' "$*"; }
say "environment in $venv ($device; about 3 minutes, once)"
"$python" -m venv "$venv" || die "cannot make $venv; on Debian: apt-get install python3.11-venv"
pip=("$venv/bin/python" -m pip --disable-pip-version-check install --no-deps --quiet)

if [ "$device" = cpu ]; then
    # The CPU build of torch: from the configured registry or a local folder where it is there, else from PyTorch's own index.
    "${pip[@]}" "torch==2.13.0+cpu" 2>"$venv/pip.log" \
        || "${pip[@]}" --index-url https://download.pytorch.org/whl/cpu "torch==2.13.0+cpu" 2>>"$venv/pip.log" \
        || die "cannot install torch==2.13.0+cpu, neither from your package registry nor from PyTorch's CPU index: is there a network? (pip's words: $venv/pip.log)"
fi
"${pip[@]}" -r "$lock" 2>>"$venv/pip.log" \
    || die "cannot install $lock: is the package registry reachable and is there disk? (pip's words: $venv/pip.log)"
say "done"
