"""Plots of a release: whole SVG files, every count drawn, strangers' names as text."""

from typing import Any
from xml.etree import ElementTree

from test_card import EVIL

from builder.card_plots import card_plots

SVG = "{http://www.w3.org/2000/svg}"
RATE = {"prompts": 6, "none_correct": 1, "all_correct": 2, "edges": [0.0, 0.5, 1.0], "counts": [2, 4]}


def series(config: str, temperature: float | None, *counts: int) -> dict[str, Any]:
    return {"config": config, "temperature": temperature, "counts": list(counts)}


def plots(*found: dict[str, Any], rate: dict[str, Any] | None = None) -> dict[str, ElementTree.Element]:
    histograms = [{"quantity": "student_tokens", "edges": [0, 10, 20], "series": list(found)}] if found else []
    made = card_plots({"histograms": histograms, "pass_rate": rate})
    return {path: ElementTree.fromstring(text) for path, text in made.items()}


def words(picture: ElementTree.Element) -> list[str]:
    return [element.text or "" for element in picture.iter(f"{SVG}text") if element.get("class") != "tick"]


def bars(picture: ElementTree.Element, kind: str) -> list[str]:
    found = [element.get("height") for element in picture.iter(f"{SVG}rect") if element.get("class") == kind]
    return [height for height in found if height is not None and height != "12"]  # less the legend


def test_each_config_is_drawn_within_the_candidates_of_its_temperature() -> None:
    rows = [series("low", 0.6, 1, 2), series("candidates", 0.6, 3, 6), series("candidates", 1.0, 5, 5)]
    found = plots(*rows, rate=RATE)
    assert list(found) == [".builder/plots/student-tokens.svg", ".builder/plots/pass-rate.svg"]
    lengths = found[".builder/plots/student-tokens.svg"]
    assert words(lengths) == [
        "Length of a row, student tokens", "candidates", "rows of the config", "low, temperature 0.6",
        "9 candidates, 3 of them in the config",
    ]  # fmt: skip
    assert bars(lengths, "all") == ["54.0", "108.0"]
    assert bars(lengths, "kept") == ["18.0", "36.0"]
    assert bars(found[".builder/plots/pass-rate.svg"], "all") == ["54.0", "108.0"]


def test_without_a_config_of_replies_the_candidates_are_drawn() -> None:
    (picture,) = plots(series("candidates", 0.6, 3, 6), series("candidates", 1.0, 5, 5)).values()
    assert words(picture)[1:] == [
        "candidates, temperature 0.6",
        "9 candidates",
        "candidates, temperature 1",
        "10 candidates",
    ]
    assert bars(picture, "kept") == []


def test_a_picture_is_as_tall_as_its_panels_and_brings_its_background() -> None:
    for number in (1, 3):
        (picture,) = plots(
            *[series(f"c{n}", 0.6, 1, 1) for n in range(number)], series("candidates", 0.6, 9, 9)
        ).values()
        assert picture.get("viewBox") == f"0 0 760 {52 + 186 * number}"
        ground = picture.find(f"{SVG}rect")
        assert ground is not None
        assert ground.get("fill") == "#fdfdfc"


def test_sixty_stages_make_one_picture_of_twelve() -> None:
    (picture,) = plots(*[series(f"c{n}", 0.6, 1, 1) for n in range(60)], series("candidates", 0.6, 60, 60)).values()
    assert words(picture)[0] == "Length of a row, student tokens: the first 12 of 60"
    assert len(list(picture.iter(f"{SVG}svg"))) == 1 + 3 * 12


def test_nothing_known_makes_no_picture() -> None:
    assert plots() == {}


def test_names_of_strangers_are_text() -> None:
    name = EVIL.replace("\n", " ")
    (picture,) = plots(series(name, 0.6, 1, 2), series("candidates", 0.6, 3, 6)).values()
    assert not list(picture.iter(f"{SVG}script"))
    assert f"{name}, temperature 0.6" in words(picture)
