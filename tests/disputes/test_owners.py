"""Whose openings are: the owner's, and theirs whom the recovery key of the owner's claim put in their place; nobody else's."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import support_opening
from proof_of_learning import Proof, TaskReference, prove, recover, register, sign
from proof_of_learning.attestation import signatures, statements
from proof_of_learning.attestation.revocation import Revoked
from proof_of_learning.data import salts
from proof_of_learning.disputes import answering, challenging, documents, verifying
from proof_of_learning.disputes.documents import Second
from proof_of_learning.errors import IntegrityError, UsageError
from proof_of_learning.proof.attach import attach
from proof_of_learning.verifier.options import Claims
from support_opening import INTERVAL, OPTIONS, Table


@pytest.fixture(scope="module")
def succeeded(tmp_path_factory: pytest.TempPathFactory) -> Table:
    """Answered and opened with a key that was put in the place of the owner's whom the claim names."""

    def make(folder: Path, task: TaskReference) -> Path:
        for name in ("old", "spare"):
            signatures.generate(folder / f"{name}.pem")
        claim, salt = folder / "claim.json", folder / "data.salt"
        salts.generate(salt)
        owners = [folder / "old.pub.pem"]
        register(task, claim, interval=INTERVAL, salt=salt, owners=owners, recovery=folder / "spare.pub.pem")
        sign(claim, folder / "old.pem")
        prove(task, folder / "run.pol", registration=claim, salt=salt, rehearse=False)
        key = signatures.load_private(folder / "key.pem")
        with pytest.raises(UsageError, match="none of theirs, nor was it put in the place of one"):
            answering.answer(
                folder / "run.pol", challenging.challenge_first(folder / "run.pol"), task, key, folder / "no"
            )
        recover(folder / "run.pol", folder / "spare.pem", owners[0], key.public)
        return folder / "run.pol"

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(support_opening, "STEPS", 12)
        return support_opening.build(tmp_path_factory.mktemp("succeeded"), make)


def test_a_successor_of_an_owner_answers_and_opens_as_one(succeeded: Table, tmp_path: Path) -> None:
    folder, path = succeeded.folder, succeeded.copy(tmp_path / "opening")
    old, spare, new = (signatures.load_public(folder / f"{name}.pub.pem").digest for name in ("old", "spare", "key"))

    def said(*revoked: str, trusted: str | None = None, second: str = "second") -> str:
        lists = [Revoked({key: None}) for key in revoked]
        claims = Claims(revoked=lists[0] if lists else Revoked(), trusted_keys=() if trusted is None else (trusted,))
        try:
            verifying.read(path, documents.load(folder / f"{second}.json", Second), replace(OPTIONS, claims=claims))
        except IntegrityError as error:
            return str(error)
        return ""

    assert said() == said(trusted=old) == said(trusted=new) == ""
    assert "no trusted key" in said(trusted=spare)
    assert "revoked" in said(new)  # whenever: openings are not stamped, so that nothing of one was there before
    assert "none of the owners" in said(spare)
    # The old key was stolen and never counted: nor does the claim that names the recovery key then, for nobody signed it.
    assert "none of the owners" in said(old)
    # Answered by the owner, and opened by who was put in their place: it is one owner's, unless the key that answered was revoked.
    head, envelope = path / "answers" / documents.ANSWERS_FILE, path / "answers" / "answers.dsse.json"
    before = envelope.read_bytes()
    envelope.write_bytes(
        documents.sign(documents.load(head, documents.AnswersHead), signatures.load_private(folder / "old.pem"))
    )
    assert said() == "" and "revoked" in said(old)
    envelope.write_bytes(before)
    # So it is where the verifier asks for the opening.
    options = replace(OPTIONS, claims=Claims(revoked=Revoked({new: None})))
    with pytest.raises(IntegrityError, match="the answers are signed with a key that was revoked"):
        challenging.challenge_second(
            folder / "manifest.pol", succeeded.first, folder / "answers", succeeded.task, options=options
        )
    with pytest.raises(IntegrityError, match="revoked"):
        challenging.answered_by(folder / "manifest.pol", folder / "answers", options)
    # And not without the statement, nor by one that anybody else signed, or that puts the key in the place of a stranger.
    (true,) = (path / "proof" / "attestations").glob("recovery-*")
    claim = Proof.open(path / "proof").header.randomness.claim
    assert claim is not None
    by, stranger = signatures.load_private(folder / "spare.pem"), succeeded.stranger
    true.unlink()
    assert "none of the owners" in said()
    for owner, signer in ((old, stranger), (stranger.public.digest, by)):
        payload = statements.recovery(claim, owner, succeeded.key.public, [signer.public])
        name = attach(path / "proof", "recovery-.dsse.json", signatures.seal(payload, [signer]))
        assert "none of the owners" in said()
        (path / "proof" / "attestations" / name).unlink()
