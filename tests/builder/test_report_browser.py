"""The report in a real browser: it opens from disk, asks for nothing, and shows strangers' text as text.

Needs package playwright and a Chromium of the system (Debian: apt-get install chromium); AXE_CORE names axe.min.js of
npm package axe-core for the check of accessibility.
"""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from release_toys import fill, recipe, score_of, verdict_of
from score_toys import prompt, reply
from test_report import EVIL, sentences_of

from builder.lens import lens
from builder.report import collect
from builder.report_page import write_report
from builder.selection import select
from builder.store import Run, columns_table

playwright = pytest.importorskip(
    "playwright.sync_api", reason="package playwright is not installed: pip install playwright"
)
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("no Chromium on this machine: apt-get install chromium", allow_module_level=True)

HOSTILE = {
    "tags": "</script><script>window.hacked = 1</script><!-- <svg onload='window.hacked = 2'> "
    "<img src=x onerror='window.hacked = 3'>",
    "bidi": "start \u202egnp.exe\u202c \u2066inner\u2069 \u200f end",
    "controls": "null \x00 bell \x07 carriage \r\n escape \x1b[31m",
    "markup": "`<b>` $<i>x</i>$ ```\n</code></pre><script>window.hacked = 4</script>\n``` \\[ unclosed \\( $ `",
    "separators": "line\u2028paragraph\u2029mark\ufeff{{ 7 * 7 }} &lt;b&gt; &#60;",
}

# The text of a box with its code points as characters again
_SPELLED_BACK = """box => {
    const copy = box.cloneNode(true);
    for (const one of copy.querySelectorAll('b.code'))
        one.replaceWith(String.fromCodePoint(parseInt(one.textContent.slice(2), 16)));
    return copy.textContent;
}"""


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Three calm prompts with four candidates each, and a hostile one; sentences are scored, as scores say."""
    made = fill(Run(tmp_path_factory.mktemp("report") / "run"), ("p", "q", "s"))
    lines = [EVIL.strip(), *HOSTILE.values(), "x" * 1_000_000, "<" * 50_000]
    rows = [
        reply(f"h{place}", "evil", reasoning=text, sample_index=place, answer="It is 3.")
        for place, text in enumerate(lines)
    ]
    made.append(
        "prompts", columns_table("prompts", [{**prompt("evil", EVIL), "domain": HOSTILE["tags"], "gold": EVIL}])
    )
    made.append("responses", columns_table("responses", rows))
    made.append("verdicts", columns_table("verdicts", [verdict_of(row) for row in rows]))
    made.append("scores", columns_table("scores", [{**score_of(row), "teacher_counts": [0] * 10} for row in rows]))
    replies = made.read("responses").to_dicts()
    made.append("sentences", columns_table("sentences", [sentences_of(row) for row in replies]))
    select(made, recipe())
    return made


@pytest.fixture(scope="module")
def page_path(run: Run) -> Path:
    path = write_report(collect(run, recipe()), run.root / "report.html")
    assert path.stat().st_size < 5_000_000
    return path


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as play:
        found = play.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture
def page(browser: Any, page_path: Path) -> Iterator[Any]:
    """The page at 1,400 pixels. Afterwards: nothing was logged, asked for or run that the page did not bring."""
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    shown = context.new_page()
    said: list[str] = []
    asked: list[str] = []
    shown.on("console", lambda message: said.append(message.text))
    shown.on("pageerror", lambda error: said.append(str(error)))
    shown.on("dialog", lambda dialog: said.append(f"dialog {dialog.message}"))
    shown.on("request", lambda request: asked.append(request.url))
    shown.goto(page_path.as_uri())
    shown.wait_for_selector("#reader-title")
    yield shown
    assert said == []
    assert {url.partition("#")[0] for url in asked} == {page_path.as_uri()}
    assert shown.evaluate("window.hacked") is None
    context.close()


def open_reply(page: Any, identity: str, more: str = "") -> None:
    page.evaluate("hash => { location.hash = hash }", f"reply={identity}{more}")
    playwright.expect(page.locator("#reader-title")).to_have_text(f"Reply {identity}")


def kinds(page: Any, identity: str) -> list[str]:
    """Classes of the sentences of a reply as it is shown."""
    spans = page.locator(f"article[aria-label='Reply {identity}'] .text .s")
    found = spans.evaluate_all("all => all.map(one => [one.dataset.n, one.className])")
    return [name.split()[1] for _, name in dict(map(tuple, found)).items()]


@pytest.mark.parametrize("width", [360, 1400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_page_fits_and_follows_the_colours_of_the_system(
    browser: Any, page_path: Path, width: int, scheme: str
) -> None:
    context = browser.new_context(viewport={"width": width, "height": 800}, color_scheme=scheme)
    shown = context.new_page()
    shown.goto(page_path.as_uri())
    shown.wait_for_selector("#reader-title")
    assert shown.evaluate("document.documentElement.scrollWidth") == width
    paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) > 600) == (scheme == "light")
    context.close()


@pytest.mark.parametrize(
    ("choices", "wanted"),
    [
        ({}, 20),
        ({"temperature": "0.6 "}, 14),
        ({"domain": "math "}, 12),
        ({"verdict": "wrong "}, 3),
        ({"rule": "answer_wrong "}, 3),
        ({"rule": "breaks none", "temperature": "1 "}, 3),
        ({"stage": "in one", "domain": "math "}, 6),
    ],
)
def test_filters_leave_the_replies_that_they_name(page: Any, choices: dict[str, str], wanted: int) -> None:
    for name, begin in choices.items():
        labels = page.locator(f"#{name} option").all_text_contents()
        (label,) = (one for one in labels if one.startswith(begin))
        page.select_option(f"#{name}", label=label)
    assert page.locator("#found").text_content().startswith(f"{wanted} of 20 replies found")
    page.click("#filters button[type=reset]")
    playwright.expect(page.locator("#found")).to_contain_text("20 of 20 replies found")


def test_numbers_filter_and_sort(page: Any) -> None:
    page.fill("#teacher", "7")  # at margin 0.2, of the second reply at 0.6 and at 1.0
    assert page.locator("#found").text_content().startswith("6 of 20")
    page.fill("#teacher", "")
    page.click("#rows th:has-text('teacher sentences') button")
    values = [int(one) for one in page.locator("#rows tbody td:nth-child(5)").all_text_contents()]
    assert values == sorted(values, reverse=True)
    assert page.locator("#rows th[aria-sort]").get_attribute("aria-sort") == "descending"


def test_search_finds_ids_and_the_whole_text(page: Any) -> None:
    page.fill("#search", "THINKING OF Q | at 0.6, sample 1")
    assert page.locator("#rows tbody button").all_text_contents() == ["q-0.6-1"]
    page.fill("#search", "s-1.0-0")
    assert page.locator("#rows tbody button").all_text_contents() == ["s-1.0-0"]
    page.fill("#search", "window.hacked = 4")
    assert page.locator("#rows tbody button").all_text_contents() == ["h4"]
    page.fill("#search", "nowhere to be found")
    assert page.locator("#rows tbody button").count() == 0


def test_both_probabilities_are_shown_on_hover_and_by_keyboard(page: Any) -> None:
    open_reply(page, "p-0.6-1")
    spans = page.locator("article[aria-label='Reply p-0.6-1'] .s")
    spans.nth(1).hover()
    tip = page.locator("#tip")
    assert "Sentence 2 of 7: teacher sentence" in tip.text_content()
    assert "teacher 0.900 · student 0.500 · difference 0.400" in tip.text_content()
    page.mouse.move(5, 5)
    tip.wait_for(state="hidden")
    spans.nth(0).focus()
    assert "Sentence 1 of 7: student sentence" in tip.text_content()
    assert spans.nth(0).get_attribute("aria-describedby") == "tip"
    page.keyboard.press("ArrowRight")
    assert "Sentence 2 of 7" in tip.text_content()
    assert spans.nth(1).evaluate("one => one === document.activeElement")
    assert spans.nth(0).get_attribute("tabindex") == "-1"  # one stop for all sentences
    page.keyboard.press("Escape")
    tip.wait_for(state="hidden")


def test_margin_recolours_as_the_scores_are_counted(page: Any, run: Run) -> None:
    open_reply(page, "p-0.6-1")
    rows = {row["response_id"]: row for row in run.read("responses").to_dicts()}
    scores = {row["response_id"]: row for row in run.read("sentences").to_dicts()}
    seen = set()
    for margin in (0.2, 0.3, 0.35, 0.4, 0.5):
        page.locator("#margin").evaluate(
            "(slider, value) => { slider.value = value; slider.dispatchEvent(new Event('input', {bubbles: true})) }",
            str(margin),
        )
        row = rows["p-0.6-1"]
        found = lens(row["reasoning"], row["answer"], scores["p-0.6-1"], margin)
        assert kinds(page, "p-0.6-1") == [one.whose for one in found.sentences]
        seen.add(tuple(kinds(page, "p-0.6-1")))
        counted = page.locator("article[aria-label='Reply p-0.6-1'] .counts").text_content()
        assert counted.startswith(
            f"{found.count('teacher')} of 7 sentences the teacher's, {found.count('student')} the student's"
        )
        assert f"margin={margin}" in page.url
    assert len(seen) == 3


def test_deep_link_opens_its_reply_at_its_margin(browser: Any, page_path: Path) -> None:
    context = browser.new_context(viewport={"width": 1400, "height": 900})
    shown = context.new_page()
    shown.goto(f"{page_path.as_uri()}#reply=q-1.0-0&margin=0.35&beside=q-0.6-0")
    shown.wait_for_selector("#reader-title")
    assert shown.locator("#reader-title").text_content() == "Reply q-1.0-0"
    assert shown.locator("#margin-now").text_content() == "0.35"
    assert shown.locator(".columns article").count() == 2
    assert shown.locator("#reader").evaluate("one => one.getBoundingClientRect().top < innerHeight")
    link = shown.locator(".permalink").get_attribute("href")
    assert link == "#reply=q-1.0-0&margin=0.35&beside=q-0.6-0"
    shown.goto(f"{page_path.as_uri()}#reply=unknown-reply&margin=nonsense")
    playwright.expect(shown.locator("#reader")).to_contain_text("unknown-reply is not among those with text")
    assert shown.locator("#margin-now").text_content() == "0.20"
    context.close()


def test_candidates_stand_side_by_side_with_the_winner_and_why(page: Any) -> None:
    open_reply(page, "p-0.6-0")
    assert page.locator(".columns article").count() == 2
    assert page.locator(".columns article.kept h4").text_content() == "Reply p-0.6-1kept"
    why = page.locator(".why").text_content()
    assert why == (
        "p-0.6-1 is kept: rank 1 against 2 by teacher_sentence_count; teacher sentences at margin 0.2: 7 against 6; "
        "mean_delta 0.250 against 0.250."
    )
    page.select_option("#beside", label="p-1.0-1, T 1: dropped")
    assert "Dropped by answer_wrong" in page.locator("article[aria-label='Reply p-1.0-1'] .fate").text_content()
    page.locator("#reader table button", has_text="p-1.0-0").first.click()
    assert page.locator("#reader-title").text_content() == "Reply p-1.0-0"
    assert page.locator("#reader-title").evaluate("one => one === document.activeElement")


def test_reasoning_and_answer_are_shown_whole_and_apart(page: Any, run: Run) -> None:
    for row in run.read("responses").to_dicts():
        if row["prompt_id"] != "evil":
            open_reply(page, row["response_id"])
            boxes = page.locator(f"article[aria-label='Reply {row['response_id']}'] .text")
            assert boxes.all_text_contents() == [row["reasoning"], row["answer"]]


def test_hostile_text_is_shown_as_text(page: Any) -> None:
    for place, text in enumerate(HOSTILE.values(), start=1):
        open_reply(page, f"h{place}")
        box = page.locator(f"article[aria-label='Reply h{place}'] .text").first
        assert box.evaluate(_SPELLED_BACK) == text.strip()
        assert set(box.evaluate("box => [...box.querySelectorAll('*')].map(one => one.localName)")) <= {
            "span",
            "b",
            "code",
        }
    assert page.locator("#reader script, #reader img, #reader svg, #reader style").count() == 0


def test_a_line_of_a_megabyte_is_cut_and_scrolls_nothing_sideways(page: Any) -> None:
    open_reply(page, "h6")
    article = page.locator("article[aria-label='Reply h6']")
    assert "900,010 more characters are not shown" in article.text_content()
    assert page.evaluate("document.documentElement.scrollWidth") == 1400


def test_a_reply_without_text_here_says_where_its_text_is(
    browser: Any, run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("builder.report_samples.SAMPLES", 4)
    path = write_report(collect(run, recipe()), tmp_path / "page.html")
    context = browser.new_context()
    shown = context.new_page()
    shown.goto(path.as_uri())
    playwright.expect(shown.locator("#found")).to_have_text("4 of 20 replies found, 4 with text here")
    shown.uncheck("#texts")
    playwright.expect(shown.locator("#found")).to_have_text("20 of 20 replies found, 4 with text here")
    shown.fill("#search", "h6")
    shown.click("#rows tbody button")
    playwright.expect(shown.locator("#reader")).to_have_text(
        "Reply h6 has no text in this page. Breaks no rule, in no stage. builder explain toy h6 --text prints it."
    )
    context.close()


def test_axe_finds_nothing_serious(browser: Any, page_path: Path) -> None:
    axe = Path(os.environ.get("AXE_CORE", ""))
    if not axe.is_file():
        pytest.skip("AXE_CORE names no file: npm install axe-core, then AXE_CORE=node_modules/axe-core/axe.min.js")
    for width, scheme in ((360, "light"), (1400, "dark")):
        # the page's own policy would refuse axe as it refuses everything else
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True)
        shown = context.new_page()
        shown.goto(page_path.as_uri())
        shown.wait_for_selector("#reader-title")
        shown.evaluate("document.querySelectorAll('details').forEach(one => { one.open = true })")
        shown.add_script_tag(path=str(axe))
        found = shown.evaluate(
            "axe.run().then(done => done.violations.map(one => `${one.impact} ${one.id} ${one.nodes[0].html}`))"
        )
        assert found == []
        context.close()
