"""A rendering process: `python -m rrg.data.renderworker FOLDER`, with pickled (study id, signs) pairs on stdin.

A plain subprocess instead of a multiprocessing pool, because a spawned pool imports the caller's main module first:
`learner.main` would load torch in every worker, and a script without a `__main__` guard would start itself again.
"""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

from rrg.data.rendercache import render_chunk

if __name__ == "__main__":
    render_chunk(Path(sys.argv[1]), pickle.load(sys.stdin.buffer))
