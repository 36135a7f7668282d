"""Chain of trust: a run that starts from another proof's final weights is worth what that proof is worth."""

from __future__ import annotations

from pathlib import Path

import pytest

from proof_of_learning import Proof, TaskReference, prove, verify
from proof_of_learning.errors import TaskError, UsageError
from proof_of_learning.state.state import State
from support_forging import rewrite


@pytest.fixture(scope="module")
def chain(tiny: TaskReference, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three proofs, each starting where the one before it ended. Read only."""
    folder = tmp_path_factory.mktemp("chain")
    paths = [folder / f"{name}.pol" for name in ("base", "middle", "last")]
    prove(tiny, paths[0], interval=6)
    prove(tiny, paths[1], interval=6, seed=1, start_from=paths[0])
    prove(tiny, paths[2], interval=6, seed=2, start_from=paths[1])
    return paths


def test_a_run_starts_from_the_final_weights_of_another(chain: list[Path]) -> None:
    base, middle = Proof.open(chain[0]), Proof.open(chain[1])
    ends = base.state(base.segments[-1].state).part("model")
    assert middle.state(middle.initial_state).part("model").tensors.keys() == ends.tensors.keys()
    assert middle.header.initialization.proof == base.root
    assert middle.state(middle.initial_state).part("model").digest() == ends.digest()


def test_the_chain_is_followed_to_its_random_start(tiny: TaskReference, chain: list[Path]) -> None:
    verdict = verify(chain[2], tiny, chain=[(chain[0], tiny), (chain[1], tiny)])
    assert verdict.verdict == "valid", verdict.reason
    assert verdict.chain is not None
    assert [link.root for link in verdict.chain.links] == [Proof.open(chain[1]).root, Proof.open(chain[0]).root]
    assert verdict.chain.product == pytest.approx(0.99**2)


def test_a_missing_link_is_never_valid(tiny: TaskReference, chain: list[Path]) -> None:
    for given in ([], [(chain[1], tiny)]):
        verdict = verify(chain[2], tiny, chain=given)
        assert verdict.verdict == "inconclusive"
        assert "was not given (--chain)" in verdict.check("initialization").summary


def test_a_link_without_its_task_is_not_trusted_unless_its_root_is(tiny: TaskReference, chain: list[Path]) -> None:
    assert verify(chain[1], tiny, chain=[(chain[0], None)]).verdict == "inconclusive"
    root = Proof.open(chain[0]).root
    trusted = verify(chain[1], tiny, chain=[(chain[0], None)], trust=[root])
    assert trusted.verdict == "valid", trusted.reason
    assert trusted.chain is not None and trusted.chain.links[0].trusted


def test_an_invalid_link_makes_the_whole_chain_invalid(tiny: TaskReference, chain: list[Path]) -> None:
    another = TaskReference(tiny.target, {"optimizer": "adam"})
    verdict = verify(chain[1], tiny, chain=[(chain[0], another)])
    assert (verdict.verdict, verdict.check("initialization").status) == ("invalid", "fail")


def test_the_links_are_replayed_in_full_where_this_proof_is(
    tiny: TaskReference, chain: list[Path], tmp_path: Path
) -> None:
    """A forgery in the middle of the parent: two of its segments are challenged anyway, all of them with --all."""

    def nudged(states: list[State]) -> list[State]:
        name = "model/parameters/first.weight"
        wrong = State(states[2].tree, {**states[2].tensors, name: states[2].tensors[name] + 0.1})
        return [*states[:2], wrong, *states[3:]]

    parent = rewrite(chain[0], tmp_path / "parent.pol", states=nudged)
    run = prove(tiny, tmp_path / "run.pol", interval=6, seed=1, start_from=parent).path
    drawn, full = (
        verify(run, tiny, chain=[(parent, tiny)], top_q=0, random=0, everything=everything)
        for everything in (False, True)
    )
    assert drawn.chain is not None and full.chain is not None
    assert drawn.verdict == drawn.chain.links[0].verdict == "valid"
    assert "2 of 4 segments were replayed, which miss a forgery of more than" in drawn.chain.links[0].reason
    assert full.verdict == full.chain.links[0].verdict == "invalid"


def test_a_proof_that_is_no_part_of_the_chain_is_refused(
    tiny: TaskReference, chain: list[Path], tiny_proof: Path
) -> None:
    with pytest.raises(UsageError, match="not part of the chain"):
        verify(tiny_proof, tiny, chain=[(chain[0], tiny)])
    with pytest.raises(UsageError, match="the same proof"):
        verify(chain[1], tiny, chain=[(chain[0], tiny), (chain[0], tiny)])


def test_a_start_that_fits_nowhere_is_refused(tiny: TaskReference, digits_proof: Path, tmp_path: Path) -> None:
    with pytest.raises(TaskError, match="shares no tensor"):
        prove(tiny, tmp_path / "run.pol", start_from=digits_proof)


def test_a_start_other_than_the_linked_one_is_invalid(tiny: TaskReference, chain: list[Path], tmp_path: Path) -> None:
    """The link names one proof; training that really started from another is found out."""
    prove(tiny, tmp_path / "other.pol", interval=6, seed=7)
    run = prove(tiny, tmp_path / "run.pol", interval=6, seed=1, start_from=tmp_path / "other.pol").path
    verdict = verify(run, tiny, chain=[(tmp_path / "other.pol", tiny)])
    assert verdict.verdict == "valid", verdict.reason
    with pytest.raises(UsageError, match="not part of the chain"):
        verify(run, tiny, chain=[(chain[0], tiny), (tmp_path / "other.pol", tiny)])
