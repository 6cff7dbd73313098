"""Before anything imports torch: waiting threads sleep, so that tests keep their pace beside other work."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
