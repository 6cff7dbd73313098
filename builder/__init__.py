"""Make versioned distillation datasets: sample a teacher, score with the student, select with SQL, release."""

from importlib.metadata import version

__version__ = version("tempered")
