"""Challenge and open: an honest opening is judged like any proof, and every way to answer or open something else is refused."""

from __future__ import annotations

import random
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import support_opening
from proof_of_learning.attestation import signatures
from proof_of_learning.data import salts
from proof_of_learning.data.commit import leaves
from proof_of_learning.data.opened import Samples, witnesses
from proof_of_learning.disputes import answering, challenging, documents, ledger, opening
from proof_of_learning.disputes.answers import Cutter, read
from proof_of_learning.disputes.documents import AnswersHead, First, Second
from proof_of_learning.disputes.ledger import Docket, Ledger
from proof_of_learning.errors import FormatError, IntegrityError, PolError, UsageError
from proof_of_learning.proof.codecs.raw import decode_tensors, encode_tensors
from proof_of_learning.proof.reader import Proof
from proof_of_learning.proof.rewrite import rewrite
from support_opening import OPTIONS, STEPS, Table, private, reanswer, resign


@pytest.fixture(scope="session")
def table(tmp_path_factory: pytest.TempPathFactory) -> Table:
    return support_opening.build(tmp_path_factory.mktemp("table"))


@pytest.fixture
def forged(table: Table, tmp_path: Path) -> Path:
    return table.copy(tmp_path / "forged")


def why(table: Table, path: Path) -> str:
    """The reason why an opening is invalid, which it has to be."""
    verdict = table.verify(path)
    assert verdict.verdict == "invalid", verdict.reason
    return verdict.reason


# ---- honest -----------------------------------------------------------------------------------------------------


@pytest.mark.quick
def test_an_opening_is_judged_by_the_checks_of_any_proof_without_the_data(table: Table) -> None:
    verdict = table.verify()
    found = {check.name: check.status for check in verdict.checks}
    assert "fail" not in found.values(), verdict.reason
    for name in (
        "opening",
        "structure",
        "task",
        "data",
        "initialization",
        "order",
        "hyperparameters",
        "trajectory",
        "endpoint",
    ):
        assert found[name] == "pass", (name, verdict.check(name).summary)
    assert verdict.nonce.origin == "drawn"
    assert verdict.conditions.data == table.data
    assert verdict.proof.root == table.root
    assert all(segment.exact for segment in verdict.segments)
    assert {segment.index for segment in verdict.segments} == {index for index, _ in table.second.segments}
    assert verdict.guarantee.forged_fraction is not None
    assert verdict.guarantee.function_fraction is not None


def test_an_owners_budget_is_not_accepted_for_the_verifier(table: Table) -> None:
    verdict = table.verify(terms=table.terms(accept_budget=False))
    assert (verdict.verdict, verdict.check("opening").status) == ("inconclusive", "inconclusive")
    assert "--accept-budget" in verdict.reason


def test_a_manifest_and_answers_hold_no_state_and_no_sample(table: Table) -> None:
    manifest = Proof.open(table.folder / "manifest.pol")
    assert not manifest.index
    assert manifest.root == Proof.open(table.folder / "run.pol").root
    opened = Proof.open(table.folder / "opening" / "proof")
    assert len(opened.index) < STEPS
    with np.load(table.folder / "data" / "private.npz") as stored:
        sample = stored["x"][0].tobytes()
    for folder in ("manifest.pol", "answers"):
        for file in (table.folder / folder).rglob("*"):
            assert not file.is_file() or sample not in file.read_bytes()


def test_nothing_secret_is_in_an_opening(table: Table) -> None:
    secret = salts.load(table.folder / "data.salt")
    own = secret.salts(92)
    raw = b"".join(file.read_bytes() for file in (table.folder / "opening").rglob("*") if file.is_file())
    tensors, _ = decode_tensors(bytearray((table.folder / "opening" / "samples.bin").read_bytes()))
    opened = set(tensors["indices"].tolist())
    assert secret.secret not in raw
    assert secret.secret.hex().encode() not in raw
    assert opened != set(range(92))
    assert all((own[index] in raw) == (index in opened) for index in range(92))


def test_without_the_verifiers_own_challenge_the_nonce_is_self_chosen(table: Table) -> None:
    verdict = table.verify(terms=table.terms(challenge=None))
    assert verdict.nonce.origin == "self-chosen"
    assert verdict.verdict != "valid"
    assert verdict.check("policy").status == "inconclusive"


def test_data_that_the_verifier_did_not_name_are_no_pass(table: Table) -> None:
    assert table.verify(terms=table.terms(data_root=None)).check("data").status == "inconclusive"
    assert table.verify(terms=table.terms(data_root="sha256:" + "0" * 64)).check("data").status == "fail"
    with pytest.raises(UsageError, match="data-root"):
        table.verify(terms=table.terms(data_root="x"))


# ---- whose challenge, whose answers -----------------------------------------------------------------------------


def test_an_opening_for_another_challenge_is_refused(table: Table, tmp_path: Path) -> None:
    other = Second(**{**fields(table.second), "nonce": "0" * 64})
    documents.write_new(tmp_path / "second.json", other)
    verdict = table.verify(terms=table.terms(challenge=tmp_path / "second.json"))
    assert verdict.verdict == "invalid"
    assert "another challenge than yours" in verdict.reason


def test_a_challenge_put_in_its_place_is_refused(table: Table, forged: Path) -> None:
    (forged / "second.json").write_bytes(Second(**{**fields(table.second), "nonce": "0" * 64}).encoded())
    assert "another challenge than yours" in why(table, forged)
    verdict = table.verify(forged, table.terms(challenge=None))
    assert "for another challenge" in verdict.reason
    resign(forged, table.key)
    verdict = table.verify(forged, table.terms(challenge=None))
    assert (verdict.verdict, "other segments" in verdict.reason) == ("invalid", True)


def test_the_segments_of_a_challenge_are_not_for_choice(table: Table, forged: Path) -> None:
    fewer = Second(**{**fields(table.second), "segments": table.second.segments[:-1]})
    (forged / "second.json").write_bytes(fewer.encoded())
    resign(forged, table.key)
    verdict = table.verify(forged, table.terms(challenge=None))
    assert "other segments than its nonce draws" in verdict.reason
    curious = Second(**{**fields(table.second), "segments": [(index, ["uniform"]) for index in range(20)]})
    with private(table.folder / "data"), pytest.raises(IntegrityError, match="other segments"):
        opening.prepare(
            table.folder / "run.pol", table.first, table.folder / "answers", curious, table.task, options=OPTIONS
        )


def test_another_first_challenge_is_refused(table: Table, forged: Path) -> None:
    (forged / "first.json").write_bytes(First(**{**fields(table.first), "seed": "1" * 64}).encoded())
    assert "another challenge" in why(table, forged)


def test_answers_that_were_chosen_after_the_draw_are_refused(table: Table, forged: Path) -> None:
    reanswer(forged / "answers", table.key, lambda values: values.update(segments=11))
    resign(forged, table.key)
    assert "on other answers" in why(table, forged)


def test_answers_to_another_root_are_refused(table: Table, forged: Path) -> None:
    reanswer(forged / "answers", table.key, lambda values: values.update(root="sha256:" + "2" * 64))
    assert "the roots differ" in why(table, forged)


# ---- false answers, given before the draw -----------------------------------------------------------------------


def falsified(table: Table, folder: Path, change: Any, file: str = "states.bin") -> Path:
    """An opening whose owner changed their answers before the draw, and opens honestly afterwards."""
    folder.mkdir()
    shutil.copytree(table.folder / "answers", folder / "answers")
    raw = bytearray((folder / "answers" / file).read_bytes())
    change(raw)
    (folder / "answers" / file).write_bytes(raw)
    reanswer(folder / "answers", table.key, lambda values: None)
    with private(None):
        second, _ = challenging.challenge_second(
            table.folder / "manifest.pol", table.first, folder / "answers", table.task, options=OPTIONS
        )
    (folder / "second.json").write_bytes(second.encoded())
    with private(table.folder / "data"):
        prepared = opening.prepare(
            table.folder / "run.pol", table.first, folder / "answers", second, table.task, options=OPTIONS
        )
        opening.open_(prepared, table.task, table.key, folder / "opening", salt=table.folder / "data.salt")
    return folder


def test_a_false_answer_for_a_state_that_is_opened_is_refused(table: Table, tmp_path: Path) -> None:
    sizes = documents.load(table.folder / "answers" / "answers.json", AnswersHead).sizes

    def change(raw: bytearray) -> None:
        raw[sizes[0] - 1] ^= 1  # one bit of the first state, which is always opened

    made = falsified(table, tmp_path / "made", change)
    verdict = table.verify(made / "opening", table.terms(challenge=made / "second.json"))
    assert verdict.verdict == "invalid"
    assert "position 0 is not the one that was answered for" in verdict.reason


def test_false_outputs_of_a_state_that_is_opened_are_refused(table: Table, tmp_path: Path) -> None:
    def change(raw: bytearray) -> None:
        raw[0:4] = np.float32(0.123).tobytes()

    made = falsified(table, tmp_path / "made", change, "outputs.bin")
    verdict = table.verify(made / "opening", table.terms(challenge=made / "second.json"))
    assert verdict.verdict == "invalid"
    assert verdict.check("opening").status == "fail"
    assert verdict.check("opening").evidence["differing"] == [0]


def test_where_states_are_looked_at_follows_from_the_seed(table: Table) -> None:
    proof = Proof.open(table.folder / "run.pol")
    state = proof.state(proof.initial_state)
    assert Cutter(16, 1).cut(state).digest() == Cutter(16, 1).cut(state).digest() != Cutter(16, 2).cut(state).digest()


# ---- what is opened ---------------------------------------------------------------------------------------------


def test_states_that_were_drawn_have_to_be_opened(table: Table, forged: Path, tmp_path: Path) -> None:
    proof = Proof.open(forged / "proof")
    held = [position for position, digest in enumerate(proof.state_digests()) if proof.has_state(digest)]
    rewrite(proof, held[:-2] + held[-1:], tmp_path / "fewer")
    shutil.rmtree(forged / "proof")
    shutil.move(tmp_path / "fewer", forged / "proof")
    assert "signed with other states" in why(table, forged)
    resign(forged, table.key)
    assert "were not opened" in why(table, forged)


def samples_of(path: Path) -> dict[str, torch.Tensor]:
    return decode_tensors(bytearray((path / "samples.bin").read_bytes()))[0]


def put(path: Path, table: Table, tensors: dict[str, torch.Tensor]) -> None:
    (path / "samples.bin").write_bytes(b"".join(map(bytes, encode_tensors(tensors))))
    resign(path, table.key)


@pytest.mark.parametrize("column", ["content", "salts", "nodes"])
def test_other_samples_salts_or_nodes_are_not_under_the_root(table: Table, forged: Path, column: str) -> None:
    tensors = samples_of(forged)
    tensors[column].view(-1)[-1] ^= 1
    put(forged, table, tensors)
    assert "not those under the proof's data root" in why(table, forged)


def test_truncated_and_reordered_paths_are_refused(table: Table, forged: Path) -> None:
    tensors = samples_of(forged)
    nodes = tensors["nodes"]
    for changed in (nodes[:-1], nodes.flip(0), torch.cat([nodes, nodes[:1]])):
        put(forged, table, {**tensors, "nodes": changed.clone()})
        assert "opened samples" in why(table, forged)


def test_a_sample_that_is_left_out_makes_nothing_valid(table: Table, forged: Path) -> None:
    with private(table.folder / "data"):
        from proof_of_learning.task import load_task

        data = load_task(table.task).data()
    own = salts.load(table.folder / "data.salt").salts(len(data))
    kept = samples_of(forged)["indices"].tolist()
    used = [index for index in kept if index not in witnesses(len(data))]
    for gone in (used[0], used[len(used) // 2]):
        fewer = [index for index in kept if index != gone]
        put(forged, table, Samples.of(data, leaves(data, salts=own), fewer, own).tensors())
        verdict = table.verify(forged)
        assert verdict.verdict != "valid"
        assert any(f"sample {gone} is needed" in check.summary for check in verdict.checks), verdict.reason


def test_no_samples_at_all_under_a_salted_root_are_refused(table: Table, forged: Path) -> None:
    (forged / "samples.bin").unlink()
    resign(forged, table.key)
    assert "nobody else has those of a salted data root" in why(table, forged)


# ---- signatures -------------------------------------------------------------------------------------------------


def test_a_strangers_signature_is_refused(table: Table, forged: Path) -> None:
    resign(forged, table.stranger)
    assert "different keys" in why(table, forged)
    (forged / "opening.dsse.json").write_bytes(signatures.encoded(b"{}", []))
    with pytest.raises(FormatError):
        table.verify(forged)


def test_a_statement_of_another_kind_is_refused(table: Table, forged: Path) -> None:
    shutil.copy(forged / "answers" / "answers.dsse.json", forged / "opening.dsse.json")
    assert "something else than these opening" in why(table, forged)


def test_a_stripped_signature_is_refused(table: Table, forged: Path) -> None:
    opened = signatures.open_envelope((forged / "opening.dsse.json").read_bytes(), "it")
    (forged / "opening.dsse.json").write_bytes(signatures.encoded(opened.payload, []))
    assert "no signature that is good" in why(table, forged)


# ---- budget, ledger, docket -------------------------------------------------------------------------------------


def test_a_budget_is_set_before_the_draw_and_lowers_whole_segments(table: Table) -> None:
    proof = Proof.open(table.folder / "manifest.pol")
    given = read(table.folder / "answers", proof, table.first)
    assert given.head.segments == 12
    assert len(table.second.segments) <= 14
    reasons = [reason for _, why in table.second.segments for reason in why]
    assert (reasons.count("uniform"), reasons.count("progress")) == (6, 6)
    with private(table.folder / "data"):
        run = Proof.open(table.folder / "run.pol")
        few, many = (opening.affordable(run, table.task, share) for share in (0.9, 1.0))
        assert 0 <= few <= many
        with pytest.raises(UsageError, match="does not even cover"):
            opening.affordable(run, table.task, 0.1)


def test_whatever_is_drawn_stays_within_a_budget(table: Table) -> None:
    with private(table.folder / "data"):
        run, every = (
            Proof.open(table.folder / "run.pol"),
            answering.uses(Proof.open(table.folder / "run.pol"), table.task),
        )
        number = opening.affordable(run, table.task, 0.95)
    chance = random.Random(0)
    for _ in range(50):
        chosen = [0, STEPS - 1, *chance.sample(range(STEPS), number)]
        assert len(np.unique(np.concatenate([every[index] for index in chosen]))) + 64 <= 0.95 * 92 + 1


def test_what_is_opened_because_tensors_change_is_within_a_budget(
    table: Table, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that unfreezes a layer, or adds a group, has further segments that every draw opens."""
    with private(table.folder / "data"):
        run = Proof.open(table.folder / "run.pol")
        before = opening.affordable(run, table.task, 0.95)
        turns = iter(range(10**6))
        monkeypatch.setattr(opening, "shapes", lambda state: {"x": [next(turns)]})
        with pytest.raises(UsageError, match="does not even cover"):
            opening.affordable(run, table.task, 0.95)
        turning = iter(range(10**6))
        monkeypatch.setattr(opening, "shapes", lambda state: {"x": [min(3, next(turning))]})
        assert opening.affordable(run, table.task, 0.95) < before


def test_a_ledger_adds_up_over_verifiers(table: Table, tmp_path: Path) -> None:
    def entry(verifier: str, challenge: str, samples: list[int], states: list[int]) -> ledger.Opened:
        return ledger.Opened("", verifier, challenge, "root", "data", 92, states, ledger.bits(np.array(samples), 92))

    kept = Ledger().with_opening(entry("a", "1", [1, 2, 3], [0, 5])).with_opening(entry("b", "2", [3, 4], [5, 6]))
    kept = kept.with_opening(entry("b", "2", [3, 4], [5, 6]))  # the same once more
    ledger.save(tmp_path / "ledger.json", kept)
    kept = ledger.load(tmp_path / "ledger.json", Ledger)
    assert np.flatnonzero(kept.samples("data", 92)).tolist() == [1, 2, 3, 4]
    assert kept.states("root") == {0, 5, 6}
    assert kept.verifiers("data") == 2
    assert not kept.samples("other", 92).any()
    (tmp_path / "ledger.json").write_text('{"openings":[],"schema":"x"}')
    with pytest.raises(FormatError, match="schema"):
        ledger.load(tmp_path / "ledger.json", Ledger)


def test_what_was_opened_is_said_and_added_before_it_is_disclosed(table: Table, tmp_path: Path) -> None:
    book = tmp_path / "ledger.json"
    with private(table.folder / "data"):
        parts: Any = (table.folder / "run.pol", table.first, table.folder / "answers", table.second, table.task)
        prepared = opening.prepare(*parts, options=OPTIONS)
        opening.open_(
            prepared, table.task, table.key, tmp_path / "one", salt=table.folder / "data.salt", book=book, verifier="a"
        )
        again = opening.prepare(*parts, kept=ledger.load(book, Ledger), options=OPTIONS).disclosure
    told = prepared.disclosure
    assert (told.before, told.after) == (0, told.samples)
    assert (again.before, again.after, again.verifiers) == (told.samples, told.samples, 1)
    assert told.states == len(Proof.open(tmp_path / "one" / "proof").index)
    assert told.samples == len(samples_of(tmp_path / "one")["indices"])
    assert told.steps > 0
    assert any("gradients" in line for line in told.lines())


def test_a_challenge_that_is_not_answered_in_time_is_held_against_root_and_claim(table: Table, tmp_path: Path) -> None:
    late, claimed = First(**{**fields(table.first), "due": "2020-01-01T00:00:00Z"}), "sha256:" + "c" * 64
    docket = Docket().asking(late)
    assert [entry.challenge for entry in docket.failures(table.root, None)] == [late.digest()]
    assert not docket.failures("another", None)
    assert not docket.failures("another", claimed)
    assert Docket().asking(First(**{**fields(late), "claim": claimed})).failures("another", claimed)
    open_ = First(**{**fields(table.first), "due": documents.until(1)})
    assert not Docket().asking(open_).failures(table.root, None)
    assert not Docket().asking(open_).answered(open_.digest()).failures(table.root, None)
    assert not Docket().asking(table.first).failures(table.root, None)
    keys = challenging.answered_by(table.folder / "manifest.pol", table.folder / "answers")
    assert keys == [table.key.public.digest]
    missed = Second(**{**fields(table.second), "nonce": "4" * 64, "due": "2020-01-01T00:00:00Z"})
    ledger.save(tmp_path / "docket.json", Docket().asking(missed, keys).asking(table.second, keys))
    verdict = table.verify(terms=table.terms(docket=tmp_path / "docket.json"))
    assert verdict.verdict == "invalid"
    assert "was not answered in time" in verdict.reason
    ledger.save(tmp_path / "docket.json", Docket().asking(table.second))
    assert table.verify(terms=table.terms(docket=tmp_path / "docket.json")).check("opening").status == "pass"
    (entry,) = ledger.load(tmp_path / "docket.json", Docket).challenges
    disliked = Second(**{**fields(table.second), "nonce": "3" * 64, "due": documents.until(30)})
    again = Docket().asking(disliked).asking(table.second)
    assert not again.failures(table.root, None)
    assert [e.challenge for e in again.failures(table.root, None, table.second.digest())] == [disliked.digest()]
    assert entry.arrived is not None


def test_nobody_is_condemned_for_a_challenge_that_somebody_else_had_made(table: Table, tmp_path: Path) -> None:
    """A manifest is no secret: who holds it has a verifier ask, answers nothing, or anything under a key of their own."""
    late = First(**{**fields(table.first), "due": "2020-01-01T00:00:00Z"})
    drawn = Second(**{**fields(table.second), "nonce": "5" * 64})
    for docket in (
        Docket().asking(late),
        Docket().asking(drawn, [table.stranger.public.digest]),
        Docket().asking(drawn),
    ):
        ledger.save(tmp_path / "docket.json", docket.asking(table.second, [table.key.public.digest]))
        verdict = table.verify(terms=table.terms(docket=tmp_path / "docket.json"))
        assert (verdict.verdict, verdict.check("opening").status) == ("inconclusive", "inconclusive")
        assert "take it out of the docket" in verdict.check("opening").summary


def test_a_draw_that_was_opened_without_success_is_not_drawn_again(table: Table, tmp_path: Path) -> None:
    """Who dislikes a draw opens it so that nothing comes of it, and asks for another one."""
    place, disliked = tmp_path / "docket.json", Second(**{**fields(table.second), "nonce": "5" * 64})
    keys = [table.key.public.digest]
    docket = Docket().asking(disliked, keys).answered(disliked.digest()).asking(table.second, keys)
    ledger.save(place, docket)
    verdict = table.verify(terms=table.terms(docket=place))
    assert verdict.check("opening").status == "inconclusive"
    assert "second chance" in verdict.check("opening").summary
    ledger.save(place, docket.settled(disliked.digest()))
    assert table.verify(terms=table.terms(docket=place)).check("opening").status == "pass"


# ---- hostile bytes ----------------------------------------------------------------------------------------------


def test_unexpected_files_and_links_are_refused(table: Table, forged: Path) -> None:
    (forged / "more").write_bytes(b"")
    with pytest.raises(FormatError, match="unexpected file"):
        table.verify(forged)
    (forged / "more").unlink()
    (forged / "samples.bin").rename(forged.parent / "elsewhere")
    (forged / "samples.bin").symlink_to(forged.parent / "elsewhere")
    with pytest.raises(FormatError, match="unexpected file"):
        table.verify(forged)


@pytest.mark.parametrize(
    "change",
    [
        {"coordinates": 10**9}, {"coordinates": 17}, {"sizes": []}, {"sizes": [2**52] * (STEPS + 1)}, {"layout": [-1] * (STEPS + 1)},
        {"layouts": []}, {"layouts": [{"model/parameters/x": [2**40, 2**40]}]}, {"layouts": [{"x": [-1]}]}, {"segments": -1},
        {"heads": [documents.Head("x", 2**40, 2**40, True)]}, {"heads": [documents.Head("x", 64, 128, True)] * 5},
    ],
)  # fmt: skip
def test_numbers_that_make_no_sense_are_refused_before_anything_is_read(
    table: Table, tmp_path: Path, change: dict[str, Any]
) -> None:
    answers = Path(shutil.copytree(table.folder / "answers", tmp_path / "answers"))
    reanswer(answers, table.key, lambda values: values.update(change))
    with pytest.raises((FormatError, IntegrityError)):
        read(answers, Proof.open(table.folder / "manifest.pol"), table.first)


@pytest.mark.parametrize("seed", range(12))
def test_bytes_that_were_changed_make_nothing_valid_and_no_other_error(table: Table, forged: Path, seed: int) -> None:
    chance = random.Random(seed)
    files = [file for file in sorted(forged.rglob("*")) if file.is_file()]
    file = chance.choice(files)
    raw = bytearray(file.read_bytes())
    if seed % 3 == 0:
        del raw[len(raw) // 2 :]
    elif raw:
        raw[chance.randrange(len(raw))] ^= 1 << chance.randrange(8)
    file.unlink()  # a link to the owner's own
    file.write_bytes(raw)
    ended = 1
    with suppress(PolError):
        ended = table.verify(forged).exit_status
    assert ended == 1, file.relative_to(forged)


def test_decoded_states_have_the_shape_that_is_looked_at(table: Table, tmp_path: Path) -> None:
    answers = Path(shutil.copytree(table.folder / "answers", tmp_path / "answers"))
    name = "model/parameters/first.weight"

    def change(values: dict[str, Any]) -> None:
        values["layouts"] = [{**layout, name: [2, 2]} for layout in values["layouts"]]

    reanswer(answers, table.key, change)
    given = read(answers, Proof.open(table.folder / "manifest.pol"), table.first)
    with pytest.raises(FormatError, match="other tensors"):
        list(given.states())


def test_seeds_and_nonces_are_fresh(table: Table) -> None:
    one, two = (challenging.challenge_first(table.folder / "manifest.pol") for _ in range(2))
    assert one.seed != two.seed
    assert one.looking.value != two.looking.value
    with pytest.raises(UsageError, match="never overwritten"):
        documents.write_new(table.folder / "first.json", one)
    with pytest.raises(FormatError):
        documents.parse(replace_bytes(one), First, "it")


def replace_bytes(first: First) -> bytes:
    return First(**{**fields(first), "due": "tomorrow"}).encoded()


def fields(document: Any) -> dict[str, Any]:
    return {name: getattr(document, name) for name in document.__struct_fields__}


def test_another_task_is_noticed(table: Table) -> None:
    other = replace(table.task, settings={"steps": STEPS, "optimizer": "adam"})
    with private(None):
        verdict = support_opening.verifying.verify_opening(table.folder / "opening", other, OPTIONS, table.terms())
    assert verdict.verdict != "valid"
