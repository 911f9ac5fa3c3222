"""Set before torch is loaded: waiting OpenMP threads sleep, as in every process of a run; spinning, they would take the
cores from the servers, engines and actors that the tests start."""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
