"""docs/r1.md keeps its promise: every box and arrow of both diagrams, and only recipes and commands that exist."""

import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "r1.md").read_text(encoding="utf-8")
SCRIPT = ROOT / "docs" / "r1-loop.sh"
# The drawn arrows, from coordinates: 19 of diagram A, 14 of diagram B; one of B ends on the line from B12 to B13.
ARROWS = [
    *("A1→A3", "A1→A5", "A2→A3", "A3→A4", "A4→A8", "A5→A7", "A8→A9", "A9→A10", "A10→A15", "A11→A13", "A12→A13"),
    *("A13→A14", "A14→A15", "A15→A16", "A15→A20", "A16→A17", "A17→A18", "A19→A20", "A20→A21"),
    *("B1→B2", "B3→B2", "B2→B4", "B5→B4", "B4→B6", "B4→B7", "B6→B7", "B8→B7", "B7→B10", "B9→B10", "B10→B11"),
    *("B12→B13", "B6→(B12→B13)", "B13→B14"),
]


def section(title: str) -> str:
    return PAGE.partition(f"## {title}\n")[2].partition("\n## ")[0]


def test_the_map_names_every_box_of_both_diagrams() -> None:
    named: set[str] = set()
    for cell in re.findall(r"^\| ([^|]+) \|", section("The map").partition("| arrow |")[0], re.MULTILINE):
        for letter, first, last in re.findall(r"([AB])(\d+)(?: to [AB](\d+))?", cell):
            named |= {f"{letter}{number}" for number in range(int(first), int(last or first) + 1)}
    assert named == {f"A{number}" for number in range(1, 23)} | {f"B{number}" for number in range(1, 16)}


def test_the_map_names_every_arrow_of_both_diagrams_once() -> None:
    table = section("The map").partition("| arrow |")[2].partition("**Where")[0]
    found = [
        one for row in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE) for one in re.findall(r"[AB]\d+→\S+", row)
    ]
    assert sorted(one.strip(",") for one in found) == sorted(ARROWS)


def test_recipes_on_the_page_and_in_the_script_exist() -> None:
    there = {path.stem for package in ("builder", "trainer") for path in (ROOT / package / "recipes").glob("*.yaml")}
    named = set(re.findall(r"\br1-(?!loop)[a-z0-9.-]*[a-z0-9]", SCRIPT.read_text(encoding="utf-8")))
    boxes = {"r1-zero"}  # also the name of a box in the script
    assert named - boxes <= there
    assert set(re.findall(r"`(r1-[a-z0-9.-]+)`", PAGE)) <= there


@pytest.mark.skipif(not Path("/bin/bash").exists(), reason="the script is for bash")
def test_the_script_is_sound_bash() -> None:
    subprocess.run(["/bin/bash", "-n", str(SCRIPT)], check=True)
