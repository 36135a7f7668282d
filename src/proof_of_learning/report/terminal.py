"""A verdict on the terminal: the checks, the verdict, what it promises, what it cost, what it rests on."""

from __future__ import annotations

from collections.abc import Iterable

from rich.console import Console
from rich.table import Table
from rich.text import Text

from proof_of_learning.report import advice, text, words
from proof_of_learning.verifier.verdict import Decision, Status, Verdict

_STATUS_STYLE: dict[Status, str] = {"pass": "green", "fail": "bold red", "inconclusive": "yellow", "skipped": "dim"}
_DECISION_STYLE: dict[Decision, str] = {"valid": "bold green", "invalid": "bold red", "inconclusive": "bold yellow"}
_MAX_REASON = 600
_MAX_WHY = 120
_MAX_LISTED = 12
_MAX_NEXT = 2
_MAX_STRETCHES = 6


def print_verdict(verdict: Verdict, console: Console) -> None:
    """Print the verdict to ``console``; foreign strings are shown, never interpreted.

    An invalid proof gets no promises about random draws: there is nothing left for them to cover.
    """
    if verdict.checks:
        console.print(_checks(verdict, console))
    console.print()
    headline = Text(verdict.verdict.upper(), style=_DECISION_STYLE[verdict.verdict])
    headline.append(f"  {_plain(verdict.reason, console, _MAX_REASON)}", style="default")
    console.print(headline, overflow="fold")
    console.print(_details(verdict, console))
    if verdict.nonce.round is not None:
        console.print(_plain(words.public(verdict.nonce), console))
    elif verdict.nonce.origin == "self-chosen":
        console.print(Text.assemble(("Self-chosen nonce. ", "bold yellow"), _plain(words.SELF_CHOSEN, console)))
    for line in verdict.warnings:
        console.print(
            Text.assemble(("Warning. ", "bold yellow"), _plain(text.sentence(line), console)), overflow="fold"
        )
    if verdict.unreproduced:
        console.print(Text("Not reproduced:"))
        for line in verdict.unreproduced[:_MAX_LISTED]:
            console.print(Text(f"  - {_plain(line, console)}"), overflow="fold")
        if len(verdict.unreproduced) > _MAX_LISTED:
            console.print(Text(f"  - {len(verdict.unreproduced) - _MAX_LISTED:,} more in the JSON verdict"))


def summary_table(rows: Iterable[tuple[str, Verdict]]) -> Table:
    """Several proofs side by side: proof, verdict, why, and the cost of verification as a share of training."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    table.add_column("proof", overflow="fold", max_width=24)
    table.add_column("verdict", no_wrap=True)
    table.add_column("why", overflow="fold", ratio=1)
    table.add_column("cost of check", no_wrap=True, justify="right")
    for name, verdict in rows:
        table.add_row(
            Text(text.line(name, 120)),
            Text(verdict.verdict.upper(), style=_DECISION_STYLE[verdict.verdict]),
            Text(text.shorten(text.line(verdict.reason), _MAX_WHY)),
            text.percent(verdict.cost.share) if verdict.cost.steps_replayed else text.MISSING,
        )
    return table


def _checks(verdict: Verdict, console: Console) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column("status", no_wrap=True)
    table.add_column("check", overflow="fold", max_width=20)
    table.add_column("summary", overflow="fold")
    for check in verdict.checks:
        status = Text(
            check.status.upper() if check.status == "fail" else check.status, style=_STATUS_STYLE[check.status]
        )
        name = _plain(check.name, console, 80) + ("" if check.mandatory else " (optional)")
        table.add_row(status, Text(name), Text(_plain(check.summary, console, _MAX_REASON)))
    return table


def _details(verdict: Verdict, console: Console) -> Table:
    """Aligned lines; a digest of 71 characters fits beside its label at 80 columns."""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), show_header=False)
    table.add_column(no_wrap=True, style="dim")
    table.add_column(overflow="fold")
    task, data = verdict.conditions.task, verdict.conditions.data
    lines = [
        *(("promise", line) for line in _promises(verdict)),
        *(("learned", line) for line in words.learned_briefly(verdict)),
        ("cost", f"{words.cost(verdict)}, in {text.seconds(verdict.cost.seconds)}"),
        *([("workers", own)] if (own := words.own_share(verdict)) else []),
        *([("kind", words.kind(verdict))] if verdict.proof.root else []),  # else nothing of the proof was read
        *([("bits", told)] if (told := words.arithmetic(verdict.proof.arithmetic)) else []),
        *(("signed", f"{key[:19]}… {told}") for key, told in words.signers(verdict)),
        *(
            ("time", f"{what}: {when} ({moment.authority})")
            for what, when, moment in words.moments(verdict)
            if moment.trusted
        ),
        *(("work", line) for line in _work(verdict)),
        ("task", words.condition(task)),
        *([("program", f"{shown} (by the prover's word)")] if (shown := words.program(verdict)) else []),
        *(("sources", line) for line in words.sources(verdict) if line),
        ("data", words.data(verdict)),
    ]
    if task and data:
        lines.append(("", "The verdict holds for this task and this data, which the verifier named."))
    lines += [("next", step) for step in advice.next_steps(verdict)[:_MAX_NEXT]]
    before = None
    for label, value in lines:
        table.add_row(Text("" if label == before else label), Text(_plain(value, console)))
        before = label
    return table


def _work(verdict: Verdict) -> list[str]:
    """By when the run had come how far; of many stretches the last ones, for these have the others in them."""
    found = [f"{steps}: {when}" for steps, when, _ in words.stretches(verdict)]
    more = len(found) - _MAX_STRETCHES
    return found if more <= 0 else [f"({more:,} earlier stretches are in the report)", *found[-_MAX_STRETCHES:]]


def _promises(verdict: Verdict) -> list[str]:
    """The promises, shorter than in the report: one line each, under what they have in common."""
    if verdict.verdict == "invalid":
        return []
    found = words.guarantees(verdict)
    if not found:
        return ["none: no segment was drawn at random"]
    if whole := words.whole(verdict):
        return [whole]
    kept = [promise for promise in found if promise.share]
    missed = max(verdict.guarantee.miss_probability, verdict.guarantee.progress_miss_probability)
    lines = [promise.text for promise in found if not promise.share]
    if kept:
        lines.append(f"With a probability of at least {text.likely(missed)} a forgery is hit that makes more than")
        lines += [f"- {text.percent(promise.share)} {promise.brief}" for promise in kept]
    return [*lines, *([unjudged] if (unjudged := words.unjudged(verdict)) else [])]


def _plain(value: str, console: Console, limit: int = text.MAX_TEXT) -> str:
    """Safe to print: no escape sequences, and nothing that the output's encoding cannot write."""
    shown = text.line(value, limit)
    return shown.encode(console.encoding, "backslashreplace").decode(console.encoding)
