"""What pip installs is whole: SQL, card template, recipes and toy weights are in the wheel."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_a_built_wheel_plans_gsm8k_in_an_empty_directory(tmp_path: Path) -> None:
    build = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True, timeout=120)
    (wheel,) = (tmp_path / "dist").glob("tempered-*.whl")
    installed = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(installed)
    top = {name.split("/")[0] for name in names if ".dist-info" not in name}
    assert top == {"builder", "trainer"}

    empty = tmp_path / "empty"
    empty.mkdir()
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(installed), "HF_HUB_OFFLINE": "1"}
    where = [sys.executable, "-c", "import builder, trainer; print(builder.__file__, trainer.__file__)"]
    found = subprocess.run(where, cwd=empty, env=environment, check=True, capture_output=True, text=True).stdout
    assert found.count(str(installed)) == 2
    line = [sys.executable, "-m", "builder.cli"]
    done = subprocess.run(
        [*line, "plan", "gsm8k"], cwd=empty, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert "7,473" in done.stdout
    rules = subprocess.run(
        [*line, "init", "mine"], cwd=empty, env=environment, capture_output=True, text=True, check=False
    )
    assert rules.returncode == 0, rules.stderr
    assert list((empty / "mine" / "sql" / "rules").glob("*.sql"))
