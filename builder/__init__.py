"""Make versioned distillation datasets: sample a teacher, score with the student, select with SQL, release."""

import os
from importlib.metadata import version

__version__ = version("tempered")

# Parquet's writer takes Arrow's own allocator unless this says otherwise before pyarrow is loaded: 20 MB for a small
# part, 50 MB for a large one, where the system's takes 5 and 15.
os.environ.setdefault("ARROW_DEFAULT_MEMORY_POOL", "system")
