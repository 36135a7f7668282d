"""A dispute for people: a table of who shows what, what it comes to, and what follows from none of it. On a page and on the
terminal."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proof_of_learning._version import __version__
from proof_of_learning.disputes.dependence import INDEPENDENT, MODEL
from proof_of_learning.disputes.likeness import Kind, Likeness
from proof_of_learning.disputes.table import Dependence, Dispute, Outcome, Row, Starts
from proof_of_learning.proof.files import write_atomic
from proof_of_learning.report import text, words
from proof_of_learning.report.html import environment
from proof_of_learning.verifier.verdict import Moment


class Said(NamedTuple):
    """An outcome in words. It has no colour and no tick: a table names no winner."""

    headline: str
    meaning: str


OUTCOME: dict[Outcome, Said] = {
    "shown": Said(
        "One proof shows the model",
        "One proof is valid and ends in the disputed model, and none of the others does. That is not yet ownership.",
    ),
    "none": Said("No proof shows the model", "None of the proofs is a valid one that ends in the disputed model."),
    "undecided": Said(
        "Not decided",
        "The proofs by themselves do not decide this. What each of them shows is in the table.",
    ),
}
END: dict[Kind, str] = {
    "exact": "exactly",
    "converted": "near: converted",
    "pruned": "near: pruned",
    "quantised": "near: quantised",
    "rearranged": "near: units rearranged",
    "near": "near",
    "start": "only the start in common",
    "related": "not near, not independent",
    "unrelated": "no: unrelated",
    "other": "no: other shapes",
    "missing": "not compared",
}
STARTS: dict[Starts, str] = {
    "equal": "the same bits",
    "alike": "not independent",
    "different": "different",
    "unknown": "not known",
}
GLOSSARY = [
    ("Valid is not ownership",
     "A valid proof says that a training took place and ended in this model. Whoever trained honestly, at any time, can have one. "
     "Whose the model is, is a matter of law, for which a proof is evidence."),
    ("A timestamp says “existed by then”",
     "Never since when, and never who made it. Dates rank by finished work: the earliest timestamp on the final state of a valid "
     "proof. Dates of claims, and of early states, rank nothing, for both are cheap."),
    ("Near is not equal",
     "A model that was converted, pruned, quantised, fine-tuned or rearranged has other bits than the proof's end. That it comes "
     "from it may be plain; that it is the model of the proof is not shown, and this report never counts it as such."),
    ("Dependence does not say who copied",
     "If two models are not independent, one may come from the other, or both from a third. Only dates, and what follows from a "
     "claim, speak to the direction."),
    ("Equal bits mean copying",
     "Two trainings under different claims or keys never arrive at the same bits. Under the same key whoever trains arrives at them."),
    ("Who did not register is no thief",
     "Registering before training is the strongest evidence, and nobody has to. A missing registration, signature or date speaks "
     "for nobody and against nobody."),
    ("One percent is per attempt",
     "The guarantees of a verification hold for one draw. Whoever had ten proofs verified, or one proof ten times, had ten chances. "
     "The same is true of a rank: of a hundred claims, one has a start that is by chance more like the model than 99 others."),
    ("Registered, and the rank among starts",
     "Of a registered proof the start follows from a claim that was stamped before. The disputed model is held against this start "
     "and against starts from fresh keys. The p-value is the probability that a model which has nothing to do with the run ranks "
     "as high, and exact."),
    ("The task is a program",
     "Each verdict is about the task that was named for that proof. If you have not read it, it is about a program that you have "
     "not read."),
    ("What the table cannot show",
     "Who trained first without stamping it, what was trained and thrown away, whose key a key is, and whether data and task were "
     "lawfully had."),
]  # fmt: skip


class Cell(NamedTuple):
    """One entry: its text, what is said below it; ``chip``: a word of the verifier's own; ``code``: a digest."""

    text: str
    note: str = ""
    chip: bool = False
    code: bool = False


class Line(NamedTuple):
    """One proof, in the table and in a section of its own."""

    label: str
    cells: list[Cell]
    details: list[tuple[str, list[Cell]]]


COLUMNS = ("Proof", "Verdict", "Ends in the model", "Final state dated", "Claim before training", "Grade", "Signed by")
PAIR_COLUMNS = ("Models", "Starts", "Score, 0 to 1", "Order of units", "In words")


def render_dispute(dispute: Dispute) -> str:
    """The report on a dispute, as a self-contained HTML document."""
    said = OUTCOME[dispute.outcome]
    return environment().get_template("dispute.html.j2").render(
        dispute=dispute,
        said=said,
        tone="table",
        schema=dispute.schema,
        version=__version__,
        words=words,
        columns=COLUMNS,
        lines=[_line(row) for row in dispute.proofs],
        pair_columns=PAIR_COLUMNS,
        pairs=[_pair(pair) for pair in dispute.dependence],
        terms=GLOSSARY,
    )  # fmt: skip


def write_dispute(dispute: Dispute, path: str | Path) -> None:
    """Write :func:`render_dispute` to ``path``, whole or not at all."""
    write_atomic(Path(path), [render_dispute(dispute).encode("utf-8")])


def print_dispute(dispute: Dispute, console: Console) -> None:
    """Print the table to ``console``, question by question; foreign strings are shown, never interpreted."""
    said = OUTCOME[dispute.outcome]
    lines = [_line(row) for row in dispute.proofs]
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("", style="dim", overflow="fold", max_width=22)
    for line in lines:
        table.add_column(f"proof {line.label}", overflow="fold")
    table.add_row("handed in as", *(_safe(row.proof, console) for row in dispute.proofs))
    for number, name in list(enumerate(COLUMNS))[1:]:
        table.add_row(name.lower(), *(_brief(line.cells[number], console) for line in lines))
    table.add_row("rank among starts", *(_safe(_rank(row).text, console) for row in dispute.proofs))
    console.print(table)
    console.print()
    headline = Text(said.headline.upper(), style="bold")
    headline.append(f"  {_safe(text.sentence(dispute.reason), console)}", style="default")
    console.print(headline, overflow="fold")
    for finding in dispute.findings:
        console.print(Text(f"- {_safe(finding, console)}"), overflow="fold")
    if dispute.dependence:
        console.print(Text("Have the models anything to do with each other? (Dependence does not say who copied.)"))
        quiet = [pair for pair in dispute.dependence if pair.summary == INDEPENDENT]
        for pair in [pair for pair in dispute.dependence if pair not in quiet]:
            models, starts, score, order, summary = (cell.text for cell in _pair(pair))
            known = [f"starts: {starts}"] if pair.starts != "unknown" else []
            known += [f"score {score}, from 0 independent to 1 the same hidden units"] if score != text.MISSING else []
            known += [f"order of units: {order} between independent models"] if order != text.MISSING else []
            shown = f"- {models}: {summary}" + (f" ({'; '.join(known)})" if known else "")
            console.print(Text(_safe(shown, console)), overflow="fold")
        if quiet:
            console.print(Text(f"- of {text.plural(len(quiet), 'pair')}: {INDEPENDENT}"), overflow="fold")
    console.print(
        Text("Valid is not ownership, a timestamp says “existed by then”, and near is not equal."), style="dim"
    )


def _brief(cell: Cell, console: Console) -> Text:
    shown = Text(_safe(cell.text, console), style="bold" if cell.chip else "")
    if cell.note:
        shown.append(f"\n{_safe(cell.note, console)}", style="dim")
    return shown


def _safe(value: str, console: Console) -> str:
    return text.line(value).encode(console.encoding, "backslashreplace").decode(console.encoding)


# ---- a row ------------------------------------------------------------------------------------------


def _line(row: Row) -> Line:
    verdict = row.verdict
    reason = "" if verdict.verdict == "valid" else text.shorten(verdict.reason, 160)
    cells = [
        Cell(row.label, row.proof),
        Cell(verdict.verdict, reason, chip=True),
        Cell(END[row.end.kind], _in_brief(row.end), chip=True),
        _finished(row),
        _before(row),
        Cell(verdict.assurance, f"randomness {verdict.randomness}, comparison {verdict.exactness}"),
        _signed(row),
    ]
    return Line(row.label, cells, _details(row))


def _in_brief(end: Likeness) -> str:
    """What is said of it in the table; the numbers are below."""
    if end.kind == "exact":
        return ""
    return "nothing in common was found" if end.kind == "unrelated" else end.summary


def _finished(row: Row) -> Cell:
    if row.finished is not None:
        return Cell(_by(row.finished), row.finished.authority)
    if row.verdict.verdict != "valid":
        return Cell("does not count", "the proof is not valid")
    return Cell("not dated", "no timestamp of an authority that you named is on it")


def _before(row: Row) -> Cell:
    if row.verdict.verdict == "invalid":
        return Cell("does not count", "the proof is not valid")
    if not row.unregistered:
        claims = [m for m in row.verdict.timeline if m.trusted and m.what == "claim"]
        return Cell("yes, registered", f"claim there {_by(claims[0])}; that date ranks nothing" if claims else "")
    return Cell("not shown", row.unregistered)


def _signed(row: Row) -> Cell:
    keys = words.signers(row.verdict)
    if not keys:
        return Cell("nobody")
    roles = []
    for signer in row.verdict.signers:
        role = [*(["known to you"] if signer.trusted else []), *(["owner by the claim"] if signer.owner else [])]
        roles.append(f"{signer.key[:15]}… ({' and '.join(role) or 'a witness'})")
    return Cell(text.plural(len(keys), "key"), ", ".join(roles[:3]) + (", …" if len(roles) > 3 else ""))


def _by(moment: Moment) -> str:
    return f"by {moment.latest.replace('T', ' ').replace('Z', ' UTC')}"


def _rank(row: Row) -> Cell:
    rank = row.rank
    if rank.p_value is None:
        return Cell("not ranked", rank.why)
    return Cell(
        f"p = {text.number(rank.p_value)}",
        "how probable as high a rank is for a model that has nothing to do with the run; "
        f"likeness {text.number(rank.own)} to its own start, at most {text.number(rank.largest)} to "
        f"{text.plural(rank.fresh, 'start')} "
        "from fresh keys (0 nothing in common, 1 the same)",
    )  # fmt: skip


def _details(row: Row) -> list[tuple[str, list[Cell]]]:
    verdict, end = row.verdict, row.end
    found: list[tuple[str, list[Cell]]] = [
        ("Handed in as", [Cell(row.proof)]),
        ("Task named for it", [Cell(row.task or "none"), Cell(words.condition(verdict.conditions.task), code=True)]),
        ("Data", [Cell(words.condition(verdict.conditions.data), code=True)]),
        ("Root", [Cell(verdict.proof.root or "unknown", code=True)]),
        ("Verdict", [Cell(verdict.verdict, text.sentence(text.shorten(verdict.reason, 600)))]),
        ("Ends in the model", [Cell(END[end.kind], text.sentence(end.summary)), *_numbers(end)]),
        ("Rank among starts", [_rank(row)]),
    ]
    if row.owners:
        found.append(("Owners by its claim", [Cell(key, code=True) for key in row.owners]))
    found += [("Key", [Cell(key, text.sentence(told), code=True)]) for key, told in words.signers(verdict)]
    for what, when, moment in words.moments(verdict):
        if moment.trusted:
            found.append((what, [Cell(when, f"{moment.shows} {moment.limits}")]))
        else:
            found.append((what, [Cell("a timestamp that counts for nothing", text.sentence(moment.limits))]))
    found.append(
        (
            "Unseen forgeries",
            [Cell(_guarantee(row), "Per attempt; see the report of the verification itself for the others.")],
        )
    )
    return found


def _numbers(end: Likeness) -> list[Cell]:
    if end.relative is None or end.kind == "exact":
        return []
    shown = [f"distance {text.percent(end.relative)} of the weights' length (independent models: about 141 %)"]
    shown += [f"cosine {text.number(end.cosine)} (1: the same direction)"]
    shown += [f"distance from the run's start {text.percent(end.to_start)}"] if end.to_start is not None else []
    shown += [f"distance with hidden units in order {text.percent(end.aligned)}"] if end.aligned is not None else []
    if end.order_p is not None:
        shown += [f"as much in common between independent models, unit by unit: p = {text.number(end.order_p)}"]
    most = ", ".join(f"{name} {text.percent(apart.relative)}" for name, apart in end.tensors.items())
    no_units = f" Hidden units were not matched: {end.no_units}." if end.no_units else ""
    return [
        Cell("; ".join(shown), f"Farthest, of each tensor's length: {most}.{no_units}" if most else no_units.strip())
    ]


def _guarantee(row: Row) -> str:
    given = row.verdict.guarantee
    if row.verdict.verdict == "invalid" or given.forged_fraction is None:
        return "no promise"
    return f"over {text.percent(given.forged_fraction)} of the segments: missed with at most {text.percent(given.miss_probability)}"


# ---- a pair -----------------------------------------------------------------------------------------


def _pair(pair: Dependence) -> list[Cell]:
    names = ["the model" if name == MODEL else name for name in (pair.first, pair.second)]
    if pair.same_bits or pair.score is None:
        score = Cell(text.MISSING, pair.why)
    else:
        score = Cell(
            text.number(round(pair.score, 2)),
            f"0 is a mean cosine of {text.number(pair.reference)}, as of independent starts",
        )
    order = text.MISSING if pair.order_p is None or pair.same_bits else f"p = {text.number(pair.order_p)}"
    return [Cell(" and ".join(names)), Cell(STARTS[pair.starts]), score, Cell(order), Cell(pair.summary)]
