"""Unpacks a RadGraph archive (tar.gz) safely.

Contract: only regular files that RadGraph needs are written, below the target; an archive with links, devices, absolute
or climbing paths is refused as a whole. The target appears complete or not at all, also with several processes at once.
"""

from __future__ import annotations

import os
import re
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath

from reward_server.errors import RewardSetupError

_NEEDED = re.compile(r"config\.json|weights\.th|model\.safetensors|vocabulary/[^/]+\.txt")
_MAX_BYTES = 8 << 30  # the real archives hold 0.5 GB


def unpack(archive: Path, target: Path) -> Path:
    """Writes the archive's files into the new folder `target` and returns it; RewardSetupError says what is wrong."""
    scratch = Path(tempfile.mkdtemp(prefix=".partial-", dir=target.parent))
    try:
        _extract(archive, scratch)
        scratch.chmod(0o755)
        os.rename(scratch, target)
    except (tarfile.TarError, zlib.error, EOFError) as error:
        raise RewardSetupError(f"{archive} is damaged or not a tar.gz archive ({error}): download it again") from error
    except OSError as error:
        if not target.is_dir():  # else another process was faster, with the same content
            raise RewardSetupError(f"{archive} can't be unpacked into {target} ({error})") from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return target


def _extract(archive: Path, folder: Path) -> None:
    left = _MAX_BYTES
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            name = PurePosixPath(member.name)
            if name.is_absolute() or ".." in name.parts or not (member.isfile() or member.isdir()):
                raise RewardSetupError(
                    f"{archive} was refused: {member.name!r} is a link, a device or a path outside of the archive; "
                    "download it again from a source that you trust"
                )
            if not member.isfile() or not _NEEDED.fullmatch(name.as_posix()):
                continue
            left -= member.size
            if left < 0:
                raise RewardSetupError(f"{archive} was refused: it unpacks to more than {_MAX_BYTES >> 30} GB")
            content = tar.extractfile(member)
            assert content is not None  # it is a regular file
            (folder / name).parent.mkdir(exist_ok=True)
            with (folder / name).open("wb") as file:
                shutil.copyfileobj(content, file, 1 << 20)
