"""`python -m rrg.data {check,convert,prepare,sheet}`: see `rrg.data.cli`."""

from __future__ import annotations

import sys

from rrg.data.cli import main

if __name__ == "__main__":
    sys.exit(main())
