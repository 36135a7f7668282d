"""A dispute: who shows what about a model. Bits decide, near never does, dates count on finished work alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

import proof_of_learning as pol
import support_dispute
from proof_of_learning import Dispute, TaskReference
from proof_of_learning.disputes import dispute as disputing
from proof_of_learning.disputes import findings, units
from proof_of_learning.disputes.likeness import liken
from proof_of_learning.disputes.models import pair
from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.proof.reader import Proof
from proof_of_learning.report.dispute import render_dispute, write_dispute
from proof_of_learning.state.state import State
from proof_of_learning.verifier.options import Options
from proof_of_learning.verifier.verdict import Nonce, Verdict
from support_attestation import World
from support_browser import Browser
from support_cli import one_line
from support_cli import pol as command
from support_dispute import MATRICES, Quarrel, Weights, dated, dated_head, matrices, noisy, rearranged, trained
from support_forging import rewrite


@pytest.fixture(scope="module")
def quarrel(tiny: TaskReference, tmp_path_factory: pytest.TempPathFactory) -> Quarrel:
    return support_dispute.build(tmp_path_factory.mktemp("quarrel"), tiny.target)


@pytest.fixture(autouse=True)
def verified_once(quarrel: Quarrel, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """What is disputed again and again is verified for the first time only, but in tests of the draw."""

    def remembered(path: Path, task: TaskReference, options: Options, **more: Any) -> Verdict:
        key = (path, task.settings["seed"] if task.settings else 0)
        if path.parent != quarrel.folder or "nonce" in request.node.name:
            return verify(path, task, options, **more)
        if key not in VERDICTS:
            VERDICTS[key] = verify(path, task, options, **more)
        return VERDICTS[key]

    verify = disputing.verify
    monkeypatch.setattr(disputing, "verify", remembered)


VERDICTS: dict[tuple[Path, Any], Verdict] = {}


def says(found: Dispute, *parts: str) -> bool:
    """Whether one of the findings has all of these parts."""
    return any(all(part in finding for part in parts) for finding in found.findings)


# ---- who ends in the model --------------------------------------------------------------------------


@pytest.mark.quick
def test_one_valid_proof_that_ends_in_the_model_is_shown(quarrel: Quarrel) -> None:
    found = quarrel.dispute(quarrel.model, quarrel.owner, quarrel.stranger)
    assert (found.outcome, found.exit_status) == ("shown", 0), found.reason
    owner, stranger = found.proofs
    assert (owner.verdict.verdict, owner.end.kind) == ("valid", "exact")
    assert (stranger.verdict.verdict, stranger.end.kind) == ("valid", "unrelated")


def test_a_valid_proof_of_another_model_shows_nothing(quarrel: Quarrel) -> None:
    found = quarrel.dispute(quarrel.model, quarrel.stranger)
    assert (found.outcome, found.exit_status) == ("none", 1), found.reason


def test_what_is_not_valid_shows_nothing_even_where_it_ends_in_the_model(quarrel: Quarrel) -> None:
    found = quarrel.dispute(quarrel.model, quarrel.forged)
    assert found.proofs[0].verdict.verdict == "invalid" and found.proofs[0].end.kind == "exact"
    assert (found.outcome, found.exit_status) == ("none", 1), found.reason


def test_an_invalid_rival_takes_nothing_from_a_proof_that_holds(quarrel: Quarrel) -> None:
    found = quarrel.dispute(quarrel.model, quarrel.owner, quarrel.forged)
    assert found.proofs[1].verdict.verdict == "invalid"
    assert (found.outcome, found.exit_status) == ("shown", 0), found.reason


def test_two_proofs_that_hold_do_not_decide(quarrel: Quarrel) -> None:
    found = quarrel.dispute(quarrel.model, quarrel.owner, quarrel.thief)
    assert [row.holds for row in found.proofs] == [True, True]
    assert (found.outcome, found.exit_status) == ("undecided", 3), found.reason


def test_equal_bits_under_different_keys_are_called_a_copy(quarrel: Quarrel) -> None:
    found = quarrel.dispute(quarrel.model, quarrel.thief, quarrel.owner)
    assert says(found, "A and B end in equal bits under different keys", "one was copied")
    assert says(found, "All randomness of B follows from its key", "A is not of that kind, and can be a copy of B")


def test_the_same_proof_handed_in_twice_is_called_that(quarrel: Quarrel) -> None:
    found = quarrel.dispute(quarrel.model, quarrel.owner, quarrel.owner)
    assert says(found, "A and B are the same proof") and found.exit_status == 3
    assert says(found, "made under no claim, so that nothing in it names an owner")


def test_the_same_key_excuses_equal_bits(quarrel: Quarrel, tmp_path: Path) -> None:
    """Whoever trains the public task under its public seed arrives there."""
    pol.prove(quarrel.task, tmp_path / "again", interval=4, rehearse=False)
    found = quarrel.dispute(quarrel.model, quarrel.owner, (tmp_path / "again", quarrel.task))
    assert says(found, "under the same key", "shows no copying")
    assert not says(found, "one was copied from the other")


def test_one_nonce_is_drawn_for_all_proofs_when_their_roots_are_known(
    quarrel: Quarrel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = quarrel.dispute(quarrel.model, quarrel.owner, quarrel.stranger)
    assert {row.verdict.nonce for row in found.proofs} == {found.nonce}
    assert found.nonce.origin == "drawn"
    assert quarrel.dispute(quarrel.model, quarrel.owner).nonce != found.nonce


def test_a_proof_that_is_changed_while_it_is_verified_is_noticed(
    quarrel: Quarrel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A root that is chosen when the nonce is known could have been ground for it."""
    place = shutil.copytree(quarrel.owner[0], tmp_path / "changing")
    drawn = disputing.make_nonce

    def changed(value: str | None) -> Nonce:
        shutil.rmtree(place)
        shutil.copytree(quarrel.stranger[0], place)
        return drawn(value)

    monkeypatch.setattr(disputing, "make_nonce", changed)
    with pytest.raises(UsageError, match=r"proof A .*changed while"):
        quarrel.dispute(quarrel.model, (place, quarrel.other))


# ---- near is not equal ------------------------------------------------------------------------------


def converted(weights: Weights) -> Weights:
    return {name: t.half().float() for name, t in weights.items()}


def pruned(weights: Weights) -> Weights:
    return matrices(weights, lambda t: torch.where(t.abs() > t.abs().median(), t, 0.0))


def rounded(weights: Weights) -> Weights:
    def grid(t: Tensor) -> Tensor:
        step = t.abs().amax(dim=1, keepdim=True) / 127
        return (t / step).round() * step

    return matrices(weights, grid)


def few(weights: Weights) -> Weights:
    return matrices(weights, lambda t: (t * 16).round() / 16)


NEAR: dict[str, tuple[Callable[[Weights], Mapping[str, Tensor]], str, str]] = {
    "halves": (lambda weights: {n: t.half() for n, t in weights.items()}, "converted", "float16"),
    "halves-and-back": (converted, "converted", "float16"),
    "bfloat16": (lambda weights: {n: t.bfloat16() for n, t in weights.items()}, "converted", "bfloat16"),
    "doubles": (lambda weights: {n: t.double() for n, t in weights.items()}, "converted", "float64"),
    "pruned": (pruned, "pruned", "set to zero"),
    "pruned-halves": (lambda weights: converted(pruned(weights)), "pruned", "float16"),
    "another-buffer": (
        lambda weights: {**weights, "calls": weights["first.bias"][:2].clone()},
        "near",
        "bit for bit, but not all",
    ),
    "eight-bits": (rounded, "quantised", "255 levels"),
    "few-levels": (few, "quantised", "grid"),
    "fine-tuned": (lambda weights: noisy(weights, 0.05), "near", "5.0"),
    "rearranged": (rearranged, "rearranged", "the same up to the order"),
    "rearranged-and-tuned": (lambda weights: noisy(rearranged(weights), 0.05), "rearranged", "% away up to the order"),
}


@pytest.mark.parametrize("how", NEAR)
def test_a_near_model_is_told_how_and_never_decides(how: str, quarrel: Quarrel) -> None:
    change, kind, summary = NEAR[how]
    found = quarrel.dispute(quarrel.made(how, change), quarrel.owner, quarrel.stranger)
    end = found.proofs[0].end
    assert end.kind == kind, end
    assert summary in end.summary
    assert (found.outcome, found.exit_status) == ("undecided", 3), found.reason
    assert "near is not equal" in found.reason
    assert found.proofs[1].end.kind == "unrelated", found.proofs[1].end


def test_names_of_a_container_are_no_difference(quarrel: Quarrel) -> None:
    model = quarrel.made("module", lambda weights: {f"module.{n}": t.half() for n, t in weights.items()})
    assert quarrel.dispute(model, quarrel.owner).proofs[0].end.kind == "converted"


def test_what_is_as_near_to_the_start_shares_the_start_alone(quarrel: Quarrel) -> None:
    """A run that was hardly trained: another one from its start is near its end, and comes from it no more than it from the other."""
    proof = pol.Proof.open(quarrel.owner[0])
    start = proof.state(proof.initial_state).part("model")
    first = {n.split("/")[-1]: t for n, t in start.tensors.items() if n.startswith("model/parameters/")}
    model = quarrel.folder / "from-start.safetensors"
    save_file(noisy({**quarrel.weights(), **first}, 0.02), model)
    found = quarrel.dispute(model, quarrel.owner)
    assert found.proofs[0].end.kind == "start", found.proofs[0].end
    assert found.exit_status == 3


def test_another_architecture_is_none_of_the_proofs(quarrel: Quarrel, tmp_path: Path) -> None:
    save_file({"a.weight": torch.randn(5, 7), "b.weight": torch.randn(3, 5)}, tmp_path / "other.safetensors")
    found = quarrel.dispute(tmp_path / "other.safetensors", quarrel.owner)
    assert (found.proofs[0].end.kind, found.exit_status) == ("other", 1)


def test_weights_that_are_no_numbers_are_undecided(quarrel: Quarrel) -> None:
    model = quarrel.made("nan", lambda weights: matrices(weights, lambda t: t * float("nan")))
    found = quarrel.dispute(model, quarrel.owner)
    assert found.exit_status != 0
    assert json.loads(found.to_json())["proofs"][0]["end"]["relative"] is None


def test_integers_stand_for_what_their_scales_make_of_them(quarrel: Quarrel) -> None:
    def integers(weights: Weights) -> Weights:
        scales = {n: weights[n].abs().amax(dim=1, keepdim=True) / 127 for n in MATRICES}
        made = {n: (weights[n] / scales[n]).round().to(torch.int8) for n in MATRICES}
        return {**weights, **made, **{f"{n}_scale": scale for n, scale in scales.items()}}

    end = quarrel.dispute(quarrel.made("int8", integers), quarrel.owner).proofs[0].end
    assert end.kind == "quantised", end


def test_the_same_numbers_in_other_shapes_are_no_other_model(quarrel: Quarrel) -> None:
    model = quarrel.made("flat", lambda weights: {"all": torch.cat([t.flatten() for t in weights.values()])})
    found = quarrel.dispute(model, quarrel.owner, quarrel.stranger)
    assert [row.end.kind for row in found.proofs] == ["related", "other"], found.proofs[0].end
    assert found.exit_status == 3


def test_an_empty_model_is_no_pruned_one(quarrel: Quarrel) -> None:
    model = quarrel.made("zeros", lambda weights: matrices(weights, torch.zeros_like))
    assert quarrel.dispute(model, quarrel.owner).proofs[0].end.kind != "pruned"


# ---- have they anything to do with each other -------------------------------------------------------


def test_independent_models_score_low_and_copies_high(quarrel: Quarrel) -> None:
    found = quarrel.dispute(
        quarrel.made("scored", lambda weights: noisy(rearranged(weights), 0.05)), quarrel.owner, quarrel.stranger
    )
    pairs = {(pair.first, pair.second): pair for pair in found.dependence}
    apart, copied = pairs["A", "B"], pairs["A", "model"]
    assert apart.score is not None and apart.score < 0.3 and apart.starts == "different"
    assert apart.order_p is not None and apart.order_p > 1e-3
    assert copied.score is not None and copied.score > 0.8
    assert copied.summary.startswith("not independent")


def test_equal_starts_come_first(quarrel: Quarrel) -> None:
    found = quarrel.dispute(quarrel.model, quarrel.owner, quarrel.thief)
    assert {(pair.first, pair.second): pair for pair in found.dependence}["A", "B"].starts == "equal"


def test_units_that_stand_in_a_like_order_are_not_independent(quarrel: Quarrel) -> None:
    """Far away, but unit by unit."""
    model = quarrel.made("far", lambda weights: noisy(weights, 1.2))
    end = quarrel.dispute(model, quarrel.owner).proofs[0].end
    assert (end.kind, end.order_p is not None and end.order_p <= 1e-3) == ("related", True), end


def test_units_that_learned_the_same_are_no_copies() -> None:
    """Trained on the same digits from two seeds, with decay: half of what two copies' units have in common, and no more than alike."""
    ends = [trained(seed) for seed in (0, 1)]
    orders, _ = units.chains(ends[0])
    first, second = (units.arrays(end) for end in ends)
    best = units.match(first, second, orders)
    by_chance = units.by_chance(first, orders, np.random.default_rng(0))
    assert 0.2 < units.score(best.cosine, by_chance) < 0.95
    assert units.order_p_value(first, second, orders[0], np.random.default_rng(0)) > 1e-3
    end = liken(pair(*ends))
    assert end.kind == "unrelated" and end.aligned is not None and end.aligned > 0.6, end


def test_a_rearranged_start_is_found_behind_other_bits(quarrel: Quarrel, tmp_path: Path) -> None:
    """A whole run with its hidden units in another order replays up to rounding, and calibrated comparison may accept it."""

    def turned(states: list[State]) -> list[State]:
        return [State(s.tree, {**s.tensors, **support_dispute.in_state(s, rearranged)}) for s in states]

    rewrite(quarrel.thief[0], tmp_path / "turned", states=turned)
    found = quarrel.dispute(quarrel.model, quarrel.owner, (tmp_path / "turned", quarrel.task))
    both = next(each for each in found.dependence if (each.first, each.second) == ("A", "B"))
    assert (both.starts, both.same_bits) == ("alike", False)
    assert says(found, "The starts of A and B are not independent", "although their keys differ")
    assert found.proofs[1].end.kind == "rearranged"


# ---- dates ------------------------------------------------------------------------------------------


@pytest.fixture
def two(quarrel: Quarrel, tmp_path: Path) -> tuple[tuple[Path, TaskReference], tuple[Path, TaskReference]]:
    """Copies of the owner's and the thief's proof, to be dated."""
    for name in ("owner", "thief"):
        shutil.copytree(quarrel.folder / name, tmp_path / name)
    return (tmp_path / "owner", quarrel.task), (tmp_path / "thief", quarrel.task)


def test_dates_rank_by_finished_work(
    two: tuple[tuple[Path, TaskReference], ...], quarrel: Quarrel, world: World
) -> None:
    """A thief's early state was stamped before the owner's work was; it ranks nothing."""
    owner, thief = two
    dated(owner[0], world.first, 2022)
    dated_head(thief[0], world.first, 2021, segment=3)
    dated(thief[0], world.first, 2024)
    found = quarrel.dispute(quarrel.model, owner, thief, trusted_tsa=[world.first.roots])
    finished = [row.finished for row in found.proofs]
    assert [moment is not None and moment.latest[:4] for moment in finished] == ["2022", "2024"]
    assert says(found, "The final state of A is shown to have been there by 2022", "that of B only by 2024")
    assert says(found, "B has an earlier timestamp on its unfinished run (by 2021", "does not rank")
    assert found.exit_status == 3


def test_dates_of_one_proof_rank_nobody(quarrel: Quarrel, world: World, tmp_path: Path) -> None:
    """Who copied a proof may have it stamped before its owner does."""
    places = [shutil.copytree(quarrel.owner[0], tmp_path / name) for name in ("first", "second")]
    for place, year in zip(places, (2024, 2021), strict=True):
        dated(place, world.first, year)
    found = quarrel.dispute(
        quarrel.model, *[(place, quarrel.task) for place in places], trusted_tsa=[world.first.roots]
    )
    assert says(found, "dates of one and the same proof", "do not rank") and not says(
        found, "is shown to have been there"
    )


def test_a_stamp_on_the_last_state_of_the_log_is_one_on_the_final_state(
    two: tuple[tuple[Path, TaskReference], ...], quarrel: Quarrel, world: World
) -> None:
    dated_head(two[0][0], world.first, 2022, segment=-1)
    found = quarrel.dispute(quarrel.model, two[0], trusted_tsa=[world.first.roots])
    assert found.proofs[0].finished is not None


def test_dates_that_are_too_near_are_not_told_apart(
    two: tuple[tuple[Path, TaskReference], ...], quarrel: Quarrel, world: World
) -> None:
    for place, _ in two:
        dated(place, world.first, 2022)
    found = quarrel.dispute(quarrel.model, *two, trusted_tsa=[world.first.roots])
    assert says(found, "too near to each other to be told apart")


def test_timestamps_of_strangers_and_of_proofs_that_are_not_valid_count_for_nothing(
    two: tuple[tuple[Path, TaskReference], ...], quarrel: Quarrel, world: World, tmp_path: Path
) -> None:
    owner, forged = two[0], shutil.copytree(quarrel.forged[0], tmp_path / "forged")
    dated(owner[0], world.second, 2020)  # an authority that nobody named
    dated(forged, world.first, 2020)
    found = quarrel.dispute(quarrel.model, owner, (forged, quarrel.task), trusted_tsa=[world.first.roots])
    assert [row.finished for row in found.proofs] == [None, None]
    assert says(found, "B is invalid: its timestamps rank nothing")


def test_nobody_is_a_thief_for_not_registering(quarrel: Quarrel) -> None:
    found = quarrel.dispute(quarrel.model, quarrel.owner)
    assert found.proofs[0].unregistered
    assert says(found, "A is not registered", "nobody a thief") and says(found, "Nobody signed A")


# ---- a registered proof -----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def registered(world: World, tiny: TaskReference, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Dispute]:
    """Disputes about a registered proof's own model, a rearranged copy of it, and a model of somebody else."""
    folder = tmp_path_factory.mktemp("registered")
    pol.export(world.proof, folder / "own.safetensors")
    own = Quarrel(folder, tiny, tiny)
    (folder / "model.safetensors").write_bytes((folder / "own.safetensors").read_bytes())
    other = TaskReference(tiny.target, {"seed": 5})
    pol.prove(other, folder / "other", interval=5, rehearse=False)
    pol.export(folder / "other", folder / "else.safetensors")
    models = {"own": own.model, "copy": own.made("copy", rearranged), "else": folder / "else.safetensors"}
    authorities, keys = [world.first.roots, world.second.roots], [world.trusted]
    return {
        name: pol.dispute(
            model, [(world.proof, tiny)], fresh=39, sandbox="off", trusted_tsa=authorities, trusted_keys=keys
        )
        for name, model in models.items()
    }


def test_a_registered_proof_shows_who_and_when(registered: dict[str, Dispute], world: World) -> None:
    (row,) = registered["own"].proofs
    assert (row.verdict.assurance, row.unregistered) == ("registered", "")
    assert row.finished is not None and row.finished.what == "seal"
    (signer,) = row.verdict.signers
    assert signer.owner and signer.trusted and row.owners == [signer.key]
    assert registered["own"].exit_status == 0


def test_a_model_is_ranked_against_the_start_of_a_registered_run(registered: dict[str, Dispute]) -> None:
    """Exactly: of 40 starts the own one is the most like, however the copy's units were rearranged."""
    for name in ("own", "copy"):
        rank = registered[name].proofs[0].rank
        assert (rank.p_value, rank.fresh) == (1 / 40, 39), rank
    rank = registered["else"].proofs[0].rank
    assert rank.p_value is not None and rank.p_value > 1 / 40
    assert registered["copy"].exit_status == 3 and registered["else"].exit_status == 1


def test_no_rank_without_a_registration(quarrel: Quarrel) -> None:
    found = pol.dispute(quarrel.model, [quarrel.owner], fresh=5, sandbox="off")
    assert found.proofs[0].rank.p_value is None and "not registered" in found.proofs[0].rank.why


def test_two_runs_under_one_claim_have_the_same_owners(
    registered: dict[str, Dispute], world: World, tiny: TaskReference
) -> None:
    headers = {label: Proof.open(world.proof) for label in "AB"}
    (row,) = registered["own"].proofs
    other = replace(headers["B"], root="sha256:" + "0" * 64)
    found = findings.findings([row, msgspec.structs.replace(row, label="B")], {**headers, "B": other}, [])
    assert any("under one and the same claim" in finding for finding in found)


def test_trusted_keys_are_names_and_no_conditions(quarrel: Quarrel, world: World) -> None:
    """A dispute has two sides, which do not sign each other's proofs."""
    found = quarrel.dispute(quarrel.model, quarrel.owner, trusted_keys=[world.trusted])
    assert found.proofs[0].verdict.verdict == "valid" and found.exit_status == 0


# ---- the command ------------------------------------------------------------------------------------


def test_the_command_writes_a_table_a_report_and_json(quarrel: Quarrel, tmp_path: Path) -> None:
    page, table = tmp_path / "dispute.html", tmp_path / "dispute.json"
    named = [f"{path}={task.target}" for path, task in (quarrel.owner, quarrel.thief)]
    done = command("dispute", quarrel.model, *named, "--sandbox", "off", "--report", page, "--json", table)
    assert done.exit_code == 3, done.output
    said = " ".join(done.output.split())  # however wide the terminal is
    assert "NOT DECIDED" in said and "near is not equal" in said
    written = json.loads(table.read_text())
    assert (written["schema"], written["outcome"]) == ("pol/dispute/v1", "undecided")
    assert written["proofs"][0]["verdict"]["schema"] == "pol/verdict/v1"
    html = page.read_text()
    for sentence in (
        "Valid is not ownership",
        "Dependence never says who copied",
        "Equal bits mean copying",
        "per attempt",
    ):
        assert sentence in html
    assert "<script" not in html
    assert (
        "✓" not in html and 'class="chip pass"' not in html and 'class="chip fail"' not in html
    )  # no winner, no loser
    assert "Score, 0 to 1" in html and "p is how probable" in html


def test_what_cannot_be_used_is_one_line(quarrel: Quarrel, tmp_path: Path) -> None:
    named = f"{quarrel.owner[0]}={quarrel.task.target}"
    assert "expected DIR=TASK" in one_line(command("dispute", quarrel.model, quarrel.owner[0]), 2)
    assert "cannot be read" in one_line(command("dispute", quarrel.owner[0] / "log.jsonl", named), 2)
    assert "no floating" not in one_line(command("dispute", tmp_path / "none.safetensors", named), 2)
    line = one_line(command("dispute", quarrel.model, named, f"{tmp_path}={quarrel.task.target}"), 2)
    assert line.startswith(f"pol: proof B ({tmp_path})")
    assert "lies behind none" in one_line(command("dispute", quarrel.model, named, "--chain", quarrel.stranger[0]), 2)
    with pytest.raises(FormatError, match="proof A"):
        quarrel.dispute(quarrel.model, (tmp_path, quarrel.task))
    with pytest.raises(UsageError, match="draws its own nonce"):
        quarrel.dispute(quarrel.model, quarrel.owner, nonce="00")


def test_the_report_fits_wide_and_narrow_pages(quarrel: Quarrel, tmp_path: Path) -> None:
    write_dispute(quarrel.dispute(quarrel.model, quarrel.owner, quarrel.thief), tmp_path / "page.html")
    with Browser() as browser:
        for width in (1100, 360):
            browser.open(tmp_path / "page.html", width)
            assert browser.evaluate("document.documentElement.scrollWidth") == width
            assert browser.complaints() == []


def test_hostile_names_are_shown_and_not_obeyed(quarrel: Quarrel) -> None:
    found = quarrel.dispute(quarrel.model, quarrel.owner)
    hostile = "</style><script>alert(1)</script>\x1b[31m"
    row = msgspec.structs.replace(found.proofs[0], proof=hostile)
    html = render_dispute(msgspec.structs.replace(found, proofs=[row], findings=[hostile]))
    assert "<script" not in html and "\x1b" not in html
