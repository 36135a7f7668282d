"""A verdict as one HTML page: no script, no request, every foreign string escaped."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from proof_of_learning._version import __version__
from proof_of_learning.proof.files import write_atomic
from proof_of_learning.report import advice, text, words
from proof_of_learning.verifier.verdict import CheckResult, SegmentResult, Verdict

MAX_SEGMENTS = 1000
OPEN_SEGMENTS = 12


def render_html(verdict: Verdict) -> str:
    """The report on one verdict, as a self-contained HTML document; the same verdict gives the same bytes."""
    shown, left_out = _shown_segments(verdict.segments)
    plots = _plots(verdict)  # None: they cannot be drawn
    return environment().get_template("template.html.j2").render(
        verdict=verdict,
        tone=verdict.verdict,
        schema=verdict.schema,
        words=words,
        version=__version__,
        checks=[_CheckView(check, text.evidence_rows(check.evidence)) for check in verdict.checks],
        figures=plots or (),
        undrawn=plots is None,
        segments=shown,
        segments_left_out=left_out,
        segments_open=len(verdict.segments) <= OPEN_SEGMENTS,
        reasons=Counter(words.why(reason) for segment in verdict.segments for reason in segment.why).most_common(),
        guarantees=words.guarantees(verdict),
        learned=words.learned(verdict),
        next_steps=advice.next_steps(verdict),
        markup=Markup,
    )  # fmt: skip


def write_html(verdict: Verdict, path: str | Path) -> None:
    """Write :func:`render_html` to ``path``, whole or not at all."""
    write_atomic(Path(path), [render_html(verdict).encode("utf-8")])


def _plots(verdict: Verdict) -> list[Any] | None:
    """The report's figures; None without matplotlib, which only they need."""
    try:
        from proof_of_learning.report import figures
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        return None
    return figures.draw(verdict)


class _CheckView(NamedTuple):
    check: CheckResult
    evidence: list[text.Row]


def _shown_segments(segments: list[SegmentResult]) -> tuple[list[SegmentResult], int]:
    """All of them, or of very many those that did not pass first, in the order of the run."""
    if len(segments) <= MAX_SEGMENTS:
        return segments, 0
    urgent = sorted(segments, key=lambda segment: segment.status == "pass")[:MAX_SEGMENTS]
    return sorted(urgent, key=lambda segment: segment.index), len(segments) - MAX_SEGMENTS


@functools.cache
def environment() -> Environment:
    """What fills in the templates of reports: whatever it prints is visible text, and escaped."""
    made = Environment(
        loader=PackageLoader("proof_of_learning.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters.update(
        number=_unbroken(text.number),
        percent=_unbroken(text.percent),
        seconds=_unbroken(text.seconds),
        size=_unbroken(text.size),
        plural=text.plural,
        sentence=text.sentence,
        shorten=text.shorten,
        typed=_typed,
        unbroken=_unbroken(str),
    )
    return made


def _unbroken(form: Callable[[Any], str]) -> Callable[[Any], str]:
    """The same text, but never broken between a number and its unit."""
    return lambda value: form(value).replace(" ", "\u00a0")


def _typed(sentence: str) -> Markup:
    """One of our own sentences, in which what is between backquotes is code."""
    parts = sentence.split("`")
    return Markup("").join(Markup("<code>{}</code>").format(p) if number % 2 else p for number, p in enumerate(parts))


def _finalize(value: Any) -> Any:
    """Applied to whatever the template prints, before it is escaped."""
    return text.visible(value) if isinstance(value, str) and not isinstance(value, Markup) else value
