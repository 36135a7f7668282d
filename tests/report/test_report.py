"""The report and the terminal output: what people are shown of a verdict, however hostile or incomplete it is."""

from __future__ import annotations

import io
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import msgspec
import pytest
from PIL import Image
from rich.console import Console

from proof_of_learning.replay.measure import Distance
from proof_of_learning.report import advice, figures, print_verdict, render_html, summary_table, words, write_html
from proof_of_learning.report.svg import Plot
from proof_of_learning.report.text import evidence_rows, number, percent, seconds, visible
from proof_of_learning.verifier.verdict import (
    CheckResult,
    Cost,
    Guarantee,
    Nonce,
    SegmentResult,
    Thresholds,
    Trajectory,
    Verdict,
)
from support_browser import Browser
from support_verdicts import (
    HOSTILE,
    bare,
    checks,
    digest,
    distance,
    inconclusive,
    invalid,
    poisoned,
    segment,
    trajectory,
    valid,
    verdict_of,
)


@pytest.fixture(autouse=True)
def drawn_once(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Figures of the same numbers are drawn for the first time only, but in the test that they are drawn alike."""

    def remembered(verdict: Verdict) -> list[Plot]:
        told = repr((verdict.trajectory, verdict.segments, verdict.proof, verdict.thresholds, verdict.exactness))
        if told not in DRAWN or "same_bytes" in request.node.name:
            DRAWN[told] = draw(verdict)
        return DRAWN[told]

    draw = figures.draw
    monkeypatch.setattr(figures, "draw", remembered)


DRAWN: dict[str, list[Plot]] = {}

# --- The page ----------------------------------------------------------------------------------------------------------


class Page(HTMLParser):
    """The page as a browser takes it apart: tags with their attributes, and the text outside of styles."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self._style = False
        self.feed(source)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._style = tag == "style"

    def handle_data(self, data: str) -> None:
        if not self._style:
            self.words.append(data)

    @property
    def text(self) -> str:
        return re.sub(r"\s+", " ", " ".join(self.words))


def test_the_page_says_what_was_decided_on_what_grounds_and_at_what_cost() -> None:
    verdict = valid()
    page = Page(render_html(verdict)).text.replace("\u00a0", " ")
    for expected in (
        "VALID", "Every mandatory check passed.", digest(1), digest(2), "which the verifier named", verdict.nonce.value,
        "Seed-derived", "Derived", "Exact", "9,750 of 50,000 steps replayed", "19.5 %", "3 min 23 s",
        "Had more than 7.8 % of the segments been forged, a forged segment would have been among the 57 drawn uniformly",
        "Had more than 9.9 % of the progress from what the first model computes",
        "Had more than 10.2 % of the progress from the first",
        "Had more than 29.8 % of the progress that one group", "Had more than 29.7 % of an excursion", "at least 99 %",
        "What was learned", "0.8", "step 640", "1.6 %", "What to do next", digest(4), digest(5), "examples/digits.py:task",
        "How to read this report",
    ):  # fmt: skip
        assert expected in page
    for check in verdict.checks:
        assert check.name in page and check.summary in page and check.meaning in page and check.limits in page
    assert "Self-chosen" not in page


def test_an_invalid_verdict_leads_with_the_failed_check_and_shows_its_evidence() -> None:
    verdict = invalid()
    source = render_html(verdict)
    page = Page(source).text
    assert (
        page.index("INVALID")
        < page.index("do not lead to the recorded state")
        < page.index("What the verdict rests on")
    )
    assert "Self-chosen nonce." in page
    opened = [attributes for tag, attributes in Page(source).tags if tag == "details" and "open" in attributes]
    assert len(opened) == 1
    assert "optimizer/state/0/step" in page


@pytest.mark.parametrize("make", [valid, invalid, inconclusive, bare])
def test_the_page_asks_for_nothing_and_runs_nothing(make: Any) -> None:
    page = Page(render_html(make()))
    tags = {tag for tag, _ in page.tags}
    assert not tags & {"script", "iframe", "object", "embed", "form", "base", "foreignobject", "animate", "set"}
    policy = next(a["content"] or "" for _, a in page.tags if a.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'") and "script-src" not in policy
    for _, attributes in page.tags:
        assert not any(name.startswith("on") for name in attributes)
        for name in ("src", "href", "xlink:href", "srcset", "poster", "action"):
            assert (attributes.get(name) or "#").startswith(("#", "data:"))
    assert "@import" not in (source := render_html(make()))
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", source))


@pytest.mark.parametrize("make", [valid, invalid, inconclusive, bare])
def test_hostile_strings_are_shown_and_change_nothing_else(make: Any) -> None:
    verdict = make()
    harmless, hostile = render_html(poisoned(verdict, " harmless")), render_html(poisoned(verdict))
    assert Page(hostile).tags == Page(harmless).tags
    text = Page(hostile).text
    assert "<script>alert(1)</script>" in text and "{{ 7*7 }}" in text
    assert "\\u{1b}[31mred" in text and "\\u{202e}" in text and "\\u{d800}" in text
    assert "\x1b" not in hostile and "\u202e" not in hostile
    hostile.encode("utf-8")


def test_a_verdict_without_anything_measured_is_a_page_too() -> None:
    page = Page(render_html(bare()))
    assert "svg" not in {tag for tag, _ in page.tags}
    for expected in ("neither a task nor data", "No segment was replayed", "No promise", "No replay", "unknown"):
        assert expected in page.text


def test_numbers_that_are_not_finite_or_missing_are_named() -> None:
    nothing, infinite = math.nan, math.inf
    run = Trajectory(
        displacement=[1.0, infinite, nothing, 1e300, 0.0, None],  # type: ignore[list-item]
        distance=[nothing] * 6,
        progress=[0.0, nothing, -infinite, 0.5, 1e-320, 1.0],
        loss=[(0, 2.0), (1, infinite), (2, nothing), (3, None)],  # type: ignore[list-item]
    )
    broken, unknown = Distance(nothing, infinite, infinite, nothing), Distance(l2=nothing)
    segments = [
        SegmentResult(
            index=1, start=10, stop=20, why=["top-q"], status="fail", error=broken, relative=broken, displacement=broken
        ),
        SegmentResult(index=2, start=20, stop=30, why=["uniform"], status="fail", error=unknown, relative=unknown),
        SegmentResult(
            index=3, start=30, stop=40, why=[], status="fail", error=distance(1e200), relative=distance(1e-310)
        ),
        SegmentResult(index=9**9, start=40, stop=50, why=["last"], status="skipped"),
    ]
    cost = Cost(steps_replayed=30, steps_total=60, share=nothing, seconds=infinite, phases={"replay": nothing})
    guarantee = Guarantee(forged_fraction=nothing, progress_fraction=infinite, uniform_draws=1)
    for exactness in ("exact", "calibrated"):
        for rho in (0.01, 0.0, infinite, nothing):
            verdict = verdict_of(
                run,
                segments,
                checks(),
                cost=cost,
                guarantee=guarantee,
                exactness=exactness,
                thresholds=Thresholds(rho=rho),
            )
            page = Page(render_html(verdict)).text.replace("\u00a0", " ")
            assert "∞" in page and "not a number" in page and "No promise" in page
    assert "2 values not finite" not in page and "3 values are not finite" in page


def test_thousands_of_segments_stay_a_small_page_that_hides_no_failure() -> None:
    run = trajectory(6000, jump=5987)
    segments = [
        segment(index, run, ["all"], 1.0 if index > 5980 else 0.0, "fail" if index > 5980 else "pass")
        for index in range(6000)
    ]
    source = render_html(verdict_of(run, segments, checks()))
    assert len(source) < 1_500_000
    page = Page(source)
    rows = [attributes for tag, attributes in page.tags if tag == "tr" and attributes.get("class") in ("pass", "fail")]
    assert len(rows) == 1000 and sum(row["class"] == "fail" for row in rows) == 19
    assert "5,000 more segments" in page.text


def test_axes_are_labelled_in_full() -> None:
    run = msgspec.structs.replace(trajectory(20), loss=[(step, 10.0 ** (1 - step / 20)) for step in range(100)])
    page = Page(render_html(verdict_of(run, [segment(3, run, ["uniform"], 1e-6)], checks())))
    labels = {word.strip() for word in page.words}
    assert {"10", "1", "0.1", "0.01", "0.001", "10⁻⁶", "exact", "100 %", "step", "segment"} <= labels


def test_evidence_is_bounded_however_deep_and_long_it_is() -> None:
    deep: Any = "bottom"
    for _ in range(20_000):
        deep = {"in": deep}
    evidence = {
        "deep": deep,
        "long": list(range(10**5)),
        "text": "x" * 10**6,
        "wide": {str(i): {"a": i} for i in range(10**4)},
    }
    source = render_html(
        verdict_of(trajectory(20), [], [CheckResult(name="c", status="fail", summary="s", evidence=evidence)])
    )
    assert len(source) < 400_000
    assert "nested deeper" in source and "more characters" in source and "99,960 more" in source


def test_evidence_reads_as_indented_lines() -> None:
    rows = evidence_rows(
        {"flat": 0.25, "list": [1, 2.5, None, True], "in": {"key": b"\x01", "none": []}, "odd": 10**5000}
    )
    assert [tuple(row) for row in rows] == [
        (0, "flat", "0.25"), (0, "list", "1, 2.5, –, yes"), (0, "in", ""), (1, "key", "01"), (1, "none", "none"),
        (0, "odd", "a very large number"),
    ]  # fmt: skip


@pytest.mark.quick
def test_the_same_verdict_gives_the_same_bytes_with_ids_that_occur_once() -> None:
    source = render_html(invalid())
    assert source == render_html(invalid())
    identifiers = re.findall(r'\bid="([^"]+)"', source)
    assert len(identifiers) == len(set(identifiers))
    used = re.findall(r'(?:xlink:href="#|url\(#|aria-labelledby=")([^")]+)', source)
    assert used and set(used) <= set(identifiers)
    assert source.count("<svg") == 6


def test_the_report_is_written_whole(tmp_path: Path) -> None:
    path = tmp_path / "report.html"
    path.write_text("old")
    write_html(bare(), str(path))
    assert path.read_text(encoding="utf-8") == render_html(bare())
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


# --- The page in a browser ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as opened:
        yield opened


SAMPLES = {
    "valid": valid,
    "invalid": invalid,
    "inconclusive": inconclusive,
    "bare": bare,
    "hostile": lambda: poisoned(inconclusive(), HOSTILE + "W" * 300),
}
OPEN_ALL = "document.querySelectorAll('details').forEach(d => { d.open = true })"
# Elements that stick out of the page, and figure labels that stick out of their figure.
STICKING_OUT = """
(() => {
  const beyond = [...document.querySelectorAll("main *")].filter(e => e.getClientRects().length && !e.closest("svg, thead"))
    .filter(e => e.getBoundingClientRect().right > innerWidth + 0.5 || e.scrollWidth > e.clientWidth + 1 && e.clientWidth > 0)
  const cut = [...document.querySelectorAll("svg text")].filter(e => e.getClientRects().length).filter(e => {
    const inner = e.getBoundingClientRect(), outer = e.ownerSVGElement.getBoundingClientRect()
    return inner.left < outer.left - 0.5 || inner.right > outer.right + 0.5 || inner.bottom > outer.bottom + 0.5
  })
  return [...beyond, ...cut].map(e => `${e.tagName} ${e.className.baseVal ?? e.className}: ${e.textContent.slice(0, 60)}`)
})()
"""


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The page of each sample, written once."""
    folder = tmp_path_factory.mktemp("pages")
    made = {name: folder / name / "report.html" for name in SAMPLES}
    for name, path in made.items():
        path.parent.mkdir()
        write_html(SAMPLES[name](), path)
    return made


# Each page on one of them, the hostile one on both.
LEFT = {("valid", 390), ("invalid", 1280), ("inconclusive", 390), ("bare", 1280)}
AGAIN = pytest.mark.slow(reason="the same page on a screen that others are shown on")


@pytest.mark.parametrize(
    ("name", "width"),
    [
        pytest.param(name, width, marks=AGAIN if (name, width) in LEFT else ())
        for name in SAMPLES
        for width in (1280, 390)
    ],
)
def test_the_page_fits_desk_and_phone(browser: Browser, pages: dict[str, Path], name: str, width: int) -> None:
    path = pages[name]
    browser.open(path, width)
    assert browser.evaluate("innerWidth") == width
    picture = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    assert picture.width == width and picture.height > 1000
    for top in range(0, picture.height - 600, 600):
        assert picture.crop((0, top, width, top + 600)).getcolors(20) is None  # there are more

    browser.evaluate(OPEN_ALL)
    assert browser.evaluate("document.documentElement.scrollWidth") <= width
    assert browser.evaluate(STICKING_OUT) == []
    shown, hidden = ("wide", "narrow") if width > 760 else ("narrow", "wide")
    assert browser.evaluate(f"[...document.querySelectorAll('.{hidden}')].every(e => !e.getClientRects().length)")
    assert browser.evaluate(f"[...document.querySelectorAll('.{shown}')].every(e => e.clientHeight > 100)")

    assert browser.requests() == [path.resolve().as_uri()]
    assert browser.complaints() == []
    assert not [event for event in browser.events if event.get("method") == "Page.javascriptDialogOpening"]


def test_the_page_follows_the_dark_scheme(browser: Browser, pages: dict[str, Path]) -> None:
    ink = "getComputedStyle(document.querySelector('.wide svg text')).fill"
    seen = []
    for dark in (False, True):
        browser.open(pages["invalid"], 1280, dark=dark)
        seen.append((browser.evaluate(ink), browser.evaluate("getComputedStyle(document.body).backgroundColor")))
    assert seen[0][0] != seen[1][0] and seen[0][1] != seen[1][1]


# --- The terminal ------------------------------------------------------------------------------------------------------


def printed(verdict: Verdict, *, width: int = 80, terminal: bool = False, encoding: str = "utf-8") -> str:
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, encoding=encoding, newline="")
    print_verdict(verdict, Console(file=stream, width=width, force_terminal=terminal, legacy_windows=False))
    stream.flush()
    return raw.getvalue().decode(encoding)


@pytest.mark.parametrize("make", [valid, invalid, inconclusive, bare])
def test_the_terminal_shows_checks_verdict_and_conditions_within_80_columns(make: Any) -> None:
    verdict = make()
    output = printed(verdict)
    assert all(len(line) <= 80 for line in output.splitlines())
    flat = re.sub(r"\s+", " ", output)
    assert f"{verdict.verdict.upper()} {verdict.reason}" in flat
    for check in verdict.checks:
        assert check.name in flat
    for digest_ in (verdict.conditions.task, verdict.conditions.data):
        assert (digest_ or "none named") in output
    assert ("Self-chosen nonce." in flat) == (verdict.nonce.origin == "self-chosen")
    assert "\x1b" not in output


def test_the_terminal_says_what_the_draws_promise_and_what_it_cost() -> None:
    flat = re.sub(r"\s+", " ", printed(valid()))
    for share in (
        "7.8 % of the segments",
        "9.9 % of the progress of what",
        "10.2 % of the progress of its weights",
        "29.8 %",
    ):
        assert share in flat
    assert "first to final: 0.8, 95 % of the way: step 640" in flat
    assert "9,750 of 50,000 steps replayed (19.5 %), in 3 min 23 s" in flat
    assert "forgery is hit" in flat and "forgery is hit" not in printed(invalid())
    assert "threads: recorded 8, here 2" in printed(inconclusive())


def test_hostile_strings_cannot_drive_the_terminal() -> None:
    for make in (valid, invalid, inconclusive, bare):
        output = printed(poisoned(make()))
        assert "\x1b" not in output and "\u202e" not in output
    flat = re.sub(r"\s+", "", printed(poisoned(bare()), width=200))
    assert "[boldred]rich[/]" in flat and "\\u{1b}[31mred" in flat
    assert "\x1b[31mred" not in printed(poisoned(bare()), terminal=True)


def test_an_output_that_knows_only_ascii_is_enough() -> None:
    check = CheckResult(name="drift", status="fail", summary="ρ = 0.01 is exceeded – by far")
    assert "\\u03c1 = 0.01" in printed(verdict_of(trajectory(20), [], [check]), encoding="ascii")


def test_the_summary_table_is_short_and_aligned() -> None:
    stream = io.StringIO()
    rows = [("honest.pol", valid()), ("spoof [red].pol", invalid()), ("other.pol", inconclusive()), ("cut.pol", bare())]
    Console(file=stream, width=80).print(summary_table(rows))
    lines = stream.getvalue().splitlines()
    assert all(len(line) <= 80 for line in lines)
    assert re.search(r"honest\.pol +VALID +every mandatory check passed +19\.5 %", stream.getvalue())
    assert "spoof [red].pol" in stream.getvalue() and "INCONCLUSIVE" in stream.getvalue()
    assert len(lines) < 20


# --- Promises, learning and advice -------------------------------------------------------------------------------------


def test_a_promise_that_could_not_be_made_is_said_and_not_left_out() -> None:
    given = Guarantee(forged_fraction=0.1, uniform_draws=43)
    promises = {
        promise.about: promise
        for promise in words.guarantees(verdict_of(trajectory(20), [], checks(), guarantee=given))
    }
    assert promises["The segments"].share == 0.1
    assert (
        promises["What the model computes"].share is None and "No promise" in promises["What the model computes"].text
    )
    assert promises["Its weights"].share is None


def test_whoever_verifies_an_opening_is_told_nothing_that_openings_do_not_have() -> None:
    opening = CheckResult(name="opening", status="pass", summary="")
    rule = CheckResult(name="policy", status="inconclusive", summary="", evidence={"broken": ["drawn_nonce"]})
    for results in ([opening], [opening, rule]):
        handed_in = Nonce(value=digest(6)[7:], origin="self-chosen")
        steps = " ".join(advice.next_steps(verdict_of(trajectory(20), [], results, nonce=handed_in)))
        assert "your own copy of the second challenge (`--challenge`)" in steps and "--nonce" not in steps


def test_where_every_segment_was_replayed_nothing_is_said_of_draws() -> None:
    run = trajectory(20)
    none = Guarantee(
        forged_fraction=0.0, function_fraction=0.0, progress_fraction=0.0, group_fraction=0.0, excursion_fraction=0.0,
        uniform_draws=20, progress_draws=20,
    )  # fmt: skip
    every = [segment(index, run, ["all"]) for index in range(20)]
    verdict = verdict_of(run, every, checks(), guarantee=none)
    said = "Nothing was sampled: all 20 segments were replayed"
    for shown in (re.sub(r"\s+", " ", printed(verdict)), render_html(verdict)):
        assert said in shown and "99 %" not in shown and "could be forged unseen:" not in shown
    every[3] = segment(3, run, ["all"], status="inconclusive")
    open_ = verdict_of(run, every, checks(), guarantee=none)
    for shown in (re.sub(r"\s+", " ", printed(open_)), render_html(open_)):
        assert said not in shown and "only if the challenged segments that could not be judged (1)" in shown


def test_outputs_without_a_scale_are_told_as_a_multiple_of_their_unrest() -> None:
    evidence = {"first_to_final": 0.33, "final_unrest": 0.11, "compared": "values"}
    check = CheckResult(name="learning", status="pass", summary="s", evidence=evidence)
    (fact,) = words.learned(verdict_of(trajectory(20), [], [check]))
    assert fact.value == "3.0 times"
    hostile = CheckResult(
        name="learning", status="pass", summary="s", evidence={"first_to_final": "<b>", "idle_states": math.nan}
    )
    assert words.learned(verdict_of(trajectory(20), [], [hostile])) == []


@pytest.mark.parametrize(
    ("check", "expected"),
    [
        (CheckResult(name="policy", status="inconclusive", summary="", evidence={"broken": ["drawn_nonce"]}), "without `--nonce`"),
        (CheckResult(name="policy", status="inconclusive", summary="", evidence={"broken": ["every_guarantee"]}), "`pol regenerate`"),
        (CheckResult(name="policy", status="inconclusive", summary="", evidence={"broken": 7}), "verify again"),
        (CheckResult(name="learning", status="skipped", summary=""), "call its networks as modules"),
        (CheckResult(name="learning", status="inconclusive", summary=""), "`training.max_idle_share`"),
        (CheckResult(name="order", status="inconclusive", summary=""), "`--accept-order`"),
        (CheckResult(name="data", status="inconclusive", summary="", evidence={"root": "r"}), "`pol challenge`"),
        (CheckResult(name="data", status="inconclusive", summary="", evidence={"opened": 3}), "`--data-root`"),
        (CheckResult(name="task", status="fail", summary=""), "`--set`"),
        (CheckResult(name="trajectory", status="fail", summary=""), "Do not accept"),
    ],
)  # fmt: skip
def test_each_reason_has_its_advice(check: CheckResult, expected: str) -> None:
    verdict = verdict_of(trajectory(20), [], [check])
    steps = advice.next_steps(verdict)
    assert any(expected in step for step in steps) and len(steps) <= advice.MAX_STEPS
    assert "<code>" in render_html(verdict) or not any("`" in step for step in steps)


def test_data_that_were_not_looked_at_have_no_advice_of_their_own() -> None:
    unseen = CheckResult(name="data", status="skipped", summary="not run: an earlier check failed")
    stopped = CheckResult(name="order", status="inconclusive", summary="")
    both = advice.next_steps(verdict_of(trajectory(20), [], [stopped, unseen]))
    assert both == advice.next_steps(verdict_of(trajectory(20), [], [stopped]))


# --- Numbers and words -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("shown", "expected"),
    [
        (number(None), "–"), (number(0.0), "0"), (number(1234567), "1,234,567"), (number(0.123456), "0.123"),
        (number(1.5e-7), "1.50 × 10⁻⁷"), (number(12345.6), "12,346"), (number(math.inf), "∞"), (number(-math.inf), "−∞"),
        (number(math.nan), "not a number"), (percent(None), "–"), (percent(0.0), "0 %"), (percent(0.0777), "7.8 %"),
        (percent(1.0), "100 %"), (percent(0.00012), "0.012 %"), (percent(1e-9), "<0.001 %"), (percent(math.nan), "not a number"),
        (seconds(0.01), "<0.1 s"), (seconds(9.96), "10 s"), (seconds(59.7), "1 min 0 s"), (seconds(203.4), "3 min 23 s"),
        (seconds(7500), "2 h 5 min"), (seconds(None), "–"), (visible("a\u0301"), "a\u0301"), (visible("\ta\nb"), "\ta\nb"),
        (visible("e" + "\u0301" * 9).count("\u0301"), 3), (visible("\x00\u200b\U000e0041"), "\\u{0}\\u{200b}\\u{e0041}"),
    ],
)  # fmt: skip
def test_numbers_and_foreign_text_read_well(shown: object, expected: object) -> None:
    assert shown == expected
