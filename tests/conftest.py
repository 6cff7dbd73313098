"""Before anything imports torch: threads that wait soon sleep, so that tests keep their pace beside other work."""

import os

os.environ.setdefault("GOMP_SPINCOUNT", "10000")
