"""Where a saved policy lies. Importable without torch."""

from __future__ import annotations

from pathlib import Path
from typing import Final

POLICY_FILE: Final = "policy.json"


def policy_in(folder: Path) -> Path | None:
    """The policy's folder: that of a checkpoint, or `folder` itself; None where there is no policy in either."""
    return next((one for one in (folder / "policy", folder) if (one / POLICY_FILE).is_file()), None)
