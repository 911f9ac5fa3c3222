"""Set before torch and Ray are loaded: waiting OpenMP threads sleep, as in every process of a run; spinning, they would
take the cores from the servers, engines and actors that the tests start. Ray's workers are as urgent as tests beside
them: in what those leave, they would be late."""

from __future__ import annotations

import os

os.environ.setdefault("GOMP_SPINCOUNT", "0")
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
os.environ.setdefault("RAY_worker_niceness", "0")
