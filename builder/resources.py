"""Where `sql/` and `data_cards/` are: beside the package in a checkout, inside it in a wheel."""

from pathlib import Path


def resource(*parts: str) -> Path:
    """Path of a packaged file or folder such as `resource("sql", "rules")`.

    Raises FileNotFoundError when neither the checkout nor the wheel holds it: the installation is broken.
    """
    package = Path(__file__).resolve().parent
    for root in (package / "resources", package.parent):
        candidate = root.joinpath(*parts)
        if candidate.exists():
            return candidate
    raise FileNotFoundError(f"{'/'.join(parts)} is missing from this installation of tempered; reinstall it.")
