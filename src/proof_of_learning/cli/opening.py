"""``pol manifest``, ``pol challenge``, ``pol answer`` and ``pol open``: a verification of what stays with its owner."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from proof_of_learning.cli import common, options
from proof_of_learning.cli.sign import PASSPHRASE_HELP, passphrase
from proof_of_learning.errors import UsageError

OUT, PROOF = "A new folder to write to.", "The proof's directory."
TASK, DAYS = (
    "The task.",
    "Days in which an answer is expected; what comes later, or never, is held against root and claim (--docket).",
)


@common.command("interrupted; nothing was written")
def manifest(
    proof: Annotated[Path, typer.Argument(help=PROOF)],
    out: Annotated[Path, typer.Option("-o", "--out", help=OUT)],
) -> None:
    """What a verifier of a private proof needs first: header, log and blocks, with no state and no sample.

    **Example**

    `pol manifest run.pol -o manifest.pol`
    """
    from proof_of_learning.disputes.answering import manifest as write
    from proof_of_learning.proof.reader import Proof

    written = Proof.open(write(proof, out))
    common.say(f"{out}: {written.steps:,} steps in {len(written.segments):,} segments, no state, no sample")
    common.say(f"root {written.root}")


@common.command("interrupted; no challenge was written")
def challenge(
    manifest: Annotated[Path, typer.Argument(help="What the owner handed out (`pol manifest`).")],
    out: Annotated[Path, typer.Option("-o", "--out", help="The challenge to write; never over another one.")],
    answers: Annotated[
        Path | None, typer.Option(help="The owner's answers (`pol answer`): this is the second round.")
    ] = None,
    first: Annotated[Path | None, typer.Option(help="Your own copy of the first challenge, which they answer.")] = None,
    task: Annotated[str | None, typer.Option(help="The task, in the second round.")] = None,
    random: Annotated[
        int | None,
        typer.Option(min=0, help="Random segments to draw.  [default: enough for all guarantees, 10 % / 1 %]"),
    ] = None,
    due: Annotated[float, typer.Option(help=DAYS)] = 30.0,
    docket: Annotated[
        Path | None, typer.Option(help="A file that keeps what you asked, and whether it was answered.")
    ] = None,
    trusted_tsa: options.TrustedTsa = None,
    revoked: options.Revoked = None,
    sandbox: Annotated[str, typer.Option(help="Confine the task's code: `auto`, `require` or `off`.")] = "auto",
    set_: options.Settings = None,
) -> None:
    """Challenge a private proof, in two rounds: what is looked at in every state, then what is to be opened.

    Keep a copy of what you send: who verifies has to know that the nonce was theirs.

    **Examples**

    `pol challenge manifest.pol -o first.json --due 7 --docket docket.json`

    `pol challenge manifest.pol -o second.json --first first.json --answers answers --task task.py:task --docket docket.json`
    """
    from proof_of_learning.disputes import challenging, documents, ledger
    from proof_of_learning.verifier.options import Options

    kept, keys = ledger.load(docket, ledger.Docket), list[str]()
    if (answers is None) != (first is None) or (answers is None) != (task is None):
        raise UsageError("the second round takes --answers, --first and --task together; the first one none of them")
    if answers is None and (trusted_tsa or revoked):
        raise UsageError("--trusted-tsa and --revoked say whose answers count, and have no meaning in the first round")
    made: documents.First | documents.Second
    if answers is None or first is None or task is None:
        made = challenging.challenge_first(manifest, days=due)
        told = [f"{out}: send it to the owner, who answers with `pol answer`"]
    else:
        asked = documents.load(first, documents.First)
        named = common.reference(task, common.settings(set_), None)
        chosen = Options.of({"sandbox": sandbox, "trusted_tsa": trusted_tsa or (), "revoked": revoked or ()})
        with common.progress_bar() as progress:
            made, picked = challenging.challenge_second(
                manifest, asked, answers, named, random=random, days=due, options=chosen,
                progress=progress,
            )  # fmt: skip
        kept, keys = kept.answered(asked.digest()), challenging.answered_by(manifest, answers, chosen)
        proof = challenging.opened_proof(manifest)
        told = [
            f"{out}: {len(made.segments):,} of {len(proof.segments):,} segments are to be opened; send it to the owner (`pol open`)",
            challenging.chance(picked, proof),
        ]
    documents.write_new(out, made)
    if docket is not None:
        ledger.save(docket, kept.asking(made, keys))
    for line in [*told, f"challenge {made.digest()}"]:
        common.say(line)
    for entry in kept.failures(made.root, made.claim):
        common.say(f"not answered in time (by {entry.due}): challenge {entry.challenge} to this root or claim")


@common.command("interrupted; nothing was answered")
def answer(
    proof: Annotated[Path, typer.Argument(help=PROOF)],
    challenge: Annotated[Path, typer.Argument(help="The verifier's first challenge.")],
    task: Annotated[str, typer.Option(help=TASK)],
    key: Annotated[Path, typer.Option("--key", help="The key to sign with, a PEM file (`pol keygen`).")],
    out: Annotated[Path, typer.Option("-o", "--out", help=OUT)],
    segments: Annotated[
        int | None, typer.Option(min=0, help="Open at most so many of the segments that will be drawn.  [default: all]")
    ] = None,
    budget: Annotated[
        float | None,
        typer.Option(help="The same, as many as keep the share of samples that was ever opened below this (0.25)."),
    ] = None,
    book: Annotated[Path | None, typer.Option("--ledger", help="Your ledger of what was opened so far.")] = None,
    passphrase_env: Annotated[str | None, typer.Option("--passphrase-env", help=PASSPHRASE_HELP)] = None,
    set_: options.Settings = None,
    data: options.DataFolder = None,
) -> None:
    """Answer a first challenge: of every state a few hundred numbers, and what it computes on a few samples. Signed.

    A budget is part of the answers: it cannot be set, or changed, when the draw is known.

    **Example**

    `pol answer run.pol first.json --task task.py:task --key key.pem -o answers --budget 0.25 --ledger ledger.json`
    """
    common.use_data(data)
    from proof_of_learning.attestation.signatures import load_private
    from proof_of_learning.disputes import answering, challenging, documents, ledger, opening

    if budget is not None and segments is not None:
        raise UsageError("--budget says how many --segments there are; name one of them")
    asked, signer = documents.load(challenge, documents.First), load_private(key, passphrase(key, passphrase_env))
    named = common.reference(task, common.settings(set_), None)
    opened = challenging.opened_proof(proof)
    if budget is not None:
        segments = opening.affordable(opened, named, budget, ledger.load(book, ledger.Ledger))
        segments = min(segments, len(opened.segments))
    if segments is not None:
        common.say(opening.left(opened, segments))
    with common.progress_bar() as progress:
        made = answering.answer(proof, asked, named, signer, out, segments=segments, progress=progress)
    common.say(
        f"{out}: {len(made.sizes):,} states, {made.coordinates} numbers of each larger tensor; hand it to the verifier"
    )
    common.say(f"answers {made.digest()}")


@common.command("interrupted; look into the ledger whether anything was opened")
def open_(
    proof: Annotated[Path, typer.Argument(help=PROOF)],
    challenge: Annotated[Path, typer.Argument(help="The verifier's second challenge.")],
    first: Annotated[Path, typer.Option(help="The verifier's first challenge.")],
    answers: Annotated[Path, typer.Option(help="Your answers to it.")],
    task: Annotated[str, typer.Option(help=TASK)],
    key: Annotated[Path, typer.Option("--key", help="The key that signed the answers.")],
    out: Annotated[Path, typer.Option("-o", "--out", help=OUT)],
    salt: Annotated[Path | None, typer.Option("--salt", help="The secret of the data's salts.")] = None,
    book: Annotated[
        Path | None,
        typer.Option("--ledger", help="Your ledger of what was opened so far; this opening is added to it."),
    ] = None,
    verifier: Annotated[str, typer.Option(help="Whom the ledger names as the verifier.")] = "",
    no_samples: Annotated[
        bool, typer.Option("--no-samples", help="Open states alone; the verifier has the data (which are not salted).")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask whether to disclose what is said.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be disclosed, and open nothing.")] = False,
    passphrase_env: Annotated[str | None, typer.Option("--passphrase-env", help=PASSPHRASE_HELP)] = None,
    set_: options.Settings = None,
    data: options.DataFolder = None,
) -> None:
    """Open what a second challenge draws: states, and the samples between them. What that discloses is said before.

    The draw is made again here, and a challenge that asks for anything else is refused.

    **Example**

    `pol open run.pol second.json --first first.json --answers answers --task task.py:task --key key.pem --salt data.salt
    --ledger ledger.json -o opening`
    """
    common.use_data(data)
    from proof_of_learning.attestation.signatures import load_private
    from proof_of_learning.disputes import challenging, documents, ledger, opening
    from proof_of_learning.proof.files import require_new

    asked, then = documents.load(first, documents.First), documents.load(challenge, documents.Second)
    named = common.reference(task, common.settings(set_), None)
    opened = challenging.opened_proof(proof)
    if opened.header.data.salted and salt is None and not dry_run:
        raise UsageError("the data root is salted; name the secret that it was made with (--salt)")
    require_new(out)
    common.say(opening.asked_for(opened, then, named, with_samples=not no_samples))
    if not (yes or dry_run):
        if not sys.stdin.isatty():
            raise UsageError(
                "nothing was opened: there is no terminal to ask on; say --yes where this may be disclosed (--dry-run tells all)"
            )
        typer.confirm("Disclose this, where the draw turns out to be as it says?", abort=True, err=True)
    signer = None if dry_run else load_private(key, passphrase(key, passphrase_env))
    prepared = opening.prepare(
        proof, asked, answers, then, named, with_samples=not no_samples, kept=ledger.load(book, ledger.Ledger)
    )
    for line in prepared.disclosure.lines():
        common.say(line)
    if signer is None:
        return
    with common.progress_bar() as progress:
        opening.open_(prepared, named, signer, out, salt=salt, book=book, verifier=verifier, progress=progress)
    common.say(
        f"{out}: hand it to the verifier, who runs `pol verify {out.name} --task … --challenge second.json --data-root ROOT`"
    )
    common.say(f"data root {prepared.proof.header.data.root}")
