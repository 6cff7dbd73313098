"""Copy a recipe and the SQL that it runs into a folder of one's own."""

import shutil
from pathlib import Path

from builder.decision import plan_selection
from builder.errors import UsageError
from builder.recipe import find_recipe, load_recipe


def copy_recipe(folder: Path, name: str) -> list[Path]:
    """The copied files. The recipe's own folder is looked into first, so edits there take effect."""
    if folder.exists() and any(folder.iterdir()):
        raise UsageError(f"{folder} is not empty; builder init never writes over files. Choose a new folder.")
    source = find_recipe(name)
    recipe = load_recipe(source)
    plan = plan_selection(recipe, source.parent, mixed=recipe.mixed_policy is not None)
    folder.mkdir(parents=True, exist_ok=True)
    copied = [Path(shutil.copy(source, folder / source.name))]
    for file in plan.files:
        target = folder / "sql" / file.kind / file.path.name
        target.parent.mkdir(parents=True, exist_ok=True)
        copied.append(Path(shutil.copy(file.path, target)))
    return copied
