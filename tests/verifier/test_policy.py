"""Policies: every rule can be broken, every slip in a file is named, and what is too expensive does not begin."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from typer.testing import CliRunner

from proof_of_learning import Task, TaskReference, Verdict, load_task, prove, verify
from proof_of_learning.cli.main import app
from proof_of_learning.errors import UsageError
from proof_of_learning.replay.replayer import Replayer
from proof_of_learning.replay.requests import Replay
from proof_of_learning.verifier.options import Options
from proof_of_learning.verifier.policy import SECTIONS, Policy, default_policy, load_policy
from tasks import Net

OTHER = "sha256:" + "0" * 64
Judge = Callable[..., Verdict]


@pytest.fixture(scope="module")
def task(tiny: TaskReference) -> Task:
    """The tiny task as an object, which is replayed in this process: 24 steps in segments of 5, rate 0.05."""
    return replace(load_task(tiny), reference=None)


@pytest.fixture
def judge(task: Task, tiny_proof: Path, tmp_path: Path) -> Judge:
    """Verify the tiny proof (or another) under a policy given as text."""

    def run(text: str, proof: Path = tiny_proof, of: Task = task, **options: Any) -> Verdict:
        path = tmp_path / "policy.toml"
        path.write_text(text)
        return verify(proof, of, policy=path, **options)

    return run


def test_without_a_policy_there_is_nothing_to_satisfy(task: Task, tiny_proof: Path) -> None:
    verdict = verify(tiny_proof, task, random=0)
    found = verdict.check("policy")
    assert (verdict.verdict, found.status, found.mandatory) == ("valid", "pass", True)
    assert found.summary == "the built-in defaults are kept"
    assert list(found.evidence) == ["defaults"]
    assert list(found.evidence["defaults"]) == ["drawn_nonce", "every_guarantee"]


def test_a_nonce_that_was_handed_in_needs_to_be_accepted(judge: Judge, task: Task, tiny_proof: Path) -> None:
    for verdict in (
        verify(tiny_proof, task, nonce="c0ffee"),
        verify(tiny_proof, task, nonce="c0ffee", everything=True),
        judge(default_policy(), nonce="c0ffee"),
    ):
        found = verdict.check("policy")
        assert (verdict.verdict, verdict.exit_status, found.status) == ("inconclusive", 3, "inconclusive")
        assert found.summary.startswith("built-in default: drawn_nonce: expected a nonce that the verifier draws")
        assert "--accept-nonce" in found.summary and "trust.chosen_nonce" in found.summary
        assert verdict.check("trajectory").status == "pass"
    assert verify(tiny_proof, task, nonce="c0ffee", accept_nonce=True).verdict == "valid"
    assert judge("[trust]\nchosen_nonce = true", nonce="c0ffee").verdict == "valid"


def test_what_the_proof_breaks_comes_before_a_default(judge: Judge) -> None:
    verdict = judge("[training]\nmax_steps = 1", nonce="c0ffee")
    assert verdict.check("policy").evidence["broken"] == ["training.max_steps", "drawn_nonce"]
    assert verdict.verdict == "invalid"


@pytest.mark.quick
def test_an_honest_proof_satisfies_the_default_policy(judge: Judge) -> None:
    text = CliRunner().invoke(app, ["policy"]).stdout
    assert text == default_policy()
    verdict = judge(text)
    assert verdict.verdict == "valid", verdict.reason
    found = verdict.check("policy")
    assert (found.status, found.mandatory) == ("pass", True)
    assert found.evidence["digest"] == "sha256:" + hashlib.sha256(text.encode()).hexdigest()
    assert list(found.evidence["rules"]) == [
        "training.max_trivial_share", "training.min_trained_share", "trust.assurance",
        "guarantee.forged_fraction", "guarantee.progress_fraction", "guarantee.function_fraction",
    ]  # fmt: skip


def test_the_default_policy_shows_every_rule(tmp_path: Path) -> None:
    text = re.sub(r"^# (?=[a-z_]+ = )", "", default_policy(), flags=re.MULTILINE)
    path = tmp_path / "policy.toml"
    path.write_text(text)
    policy, shown = load_policy(path), text.split("\n[")
    for section, kind in SECTIONS.items():
        (body,) = [part for part in shown if part.startswith(f"{section}]")]
        for key in kind.__struct_fields__:
            assert re.search(rf"^{key} = ", body, flags=re.MULTILINE), f"{section}.{key}"
            assert getattr(getattr(policy, section), key) is not None


@pytest.mark.parametrize(
    ("text", "status", "summary"),
    [
        (f"[accept]\ntasks = ['{OTHER}']", "fail", f"accept.tasks: expected {OTHER}, found sha256:"),
        (f"[accept]\ndata = ['{OTHER}', '{OTHER}']", "fail", "accept.data: expected one of 2 digests, found sha256:"),
        ("[training]\nmin_interval = 6", "fail", "training.min_interval: expected at least 6, found 5"),
        ("[training]\nmax_interval = 4", "fail", "training.max_interval: expected at most 4, found 5"),
        ("[training]\nmax_steps = 23", "fail", "training.max_steps: expected at most 23, found 24"),
        (
            "[training]\nmin_learning_rate = 0.06",
            "fail",
            "training.min_learning_rate: expected at least 0.06, found 0.05",
        ),
        (
            "[training]\nmax_learning_rate = 0.04",
            "fail",
            "training.max_learning_rate: expected at most 0.04, found 0.05",
        ),
        (
            "[trust]\nassurance = 'registered'",
            "fail",
            "trust.assurance: expected at least registered, found seed-derived",
        ),
        (
            "[guarantee]\nforged_fraction = 0.5",
            "inconclusive",
            "guarantee.forged_fraction: expected at most 0.5, found 1",
        ),
        (
            "[guarantee]\nprogress_fraction = 0.5",
            "inconclusive",
            "guarantee.progress_fraction: expected at most 0.5, found 1",
        ),
        (
            "[guarantee]\nfunction_fraction = 0.5",
            "inconclusive",
            "guarantee.function_fraction: expected at most 0.5, found 1",
        ),
    ],
)
def test_a_broken_rule_is_named(judge: Judge, text: str, status: str, summary: str) -> None:
    """The guarantees are weak because the verifier asked for no random draws: that is not the proof's fault."""
    verdict = judge(text, random=0, top_q=0)
    assert verdict.check("policy").summary.startswith(f"policy.toml: {summary}")
    assert verdict.check("policy").status == status
    assert verdict.verdict == ("invalid" if status == "fail" else "inconclusive")


def test_every_kept_rule_is_kept_at_its_limit(judge: Judge, task: Task, tiny_proof: Path) -> None:
    conditions = verify(tiny_proof, task, random=0).conditions
    verdict = judge(
        f"""
        accept = {{tasks = ["{OTHER}", "{conditions.task}"], data = ["{conditions.data}"]}}
        trust = {{assurance = "seed-derived", exact = true}}
        guarantee = {{forged_fraction = 0.0, progress_fraction = 0.0, function_fraction = 0.0}}
        cost = {{max_share = 1.0, max_seconds = 600}}
        [training]
        min_interval = 5
        max_interval = 5
        max_steps = 24
        min_learning_rate = 0.05
        max_learning_rate = 0.05
        max_trivial_share = 0.0
        min_trained_share = 1
        """,
        everything=True,
    )
    assert verdict.verdict == "valid", verdict.reason
    assert "the 13 rules of policy.toml that apply are kept" in verdict.check("policy").summary


def test_a_rule_of_the_proof_weighs_more_than_one_of_the_verification(judge: Judge) -> None:
    verdict = judge("[guarantee]\nforged_fraction = 0.1\n[training]\nmax_steps = 1", random=0, top_q=0)
    found = verdict.check("policy")
    assert (verdict.verdict, found.evidence["broken"]) == (
        "invalid",
        ["training.max_steps", "guarantee.forged_fraction"],
    )
    assert found.summary == "policy.toml: training.max_steps: expected at most 1, found 24 (and 1 more)"


def test_the_costly_part_is_spared_where_the_policy_is_broken(judge: Judge) -> None:
    assert judge("[training]\nmax_steps = 1").cost.steps_replayed == 0


def frozen() -> Net:
    net = Net()
    net.first.requires_grad_(False)
    return net


def with_table() -> Net:
    net = Net()
    net.register_buffer("table", torch.arange(5.0))
    return net


@pytest.mark.parametrize(
    ("changes", "text", "summary"),
    [
        ({"optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.0)}, "[training]\nmax_trivial_share = 0.9",
         "training.max_trivial_share: expected at most 0.9, found 1"),
        ({"optimizer": lambda m: torch.optim.SGD(m.parameters(), lr=0.0)}, "[training]\nmin_learning_rate = 0.01",
         "training.min_learning_rate: expected at least 0.01, found none"),
        ({"model": frozen, "optimizer": lambda m: torch.optim.SGD([p for p in m.parameters() if p.requires_grad], lr=0.05)},
         "[training]\nmin_trained_share = 0.7", "training.min_trained_share: expected at least 0.7, found 0.620438"),
    ],
)  # fmt: skip
def test_rules_about_what_was_trained(
    judge: Judge, task: Task, tmp_path: Path, changes: dict[str, Any], text: str, summary: str
) -> None:
    other = replace(task, evaluate=None, **changes)
    path = prove(other, tmp_path / "run.pol", interval=5).path
    # Where nothing moves, no progress can be promised.
    verdict = judge(text, path, other, random=0, top_q=0, accept_uniform=True)
    assert verdict.check("policy").summary == f"policy.toml: {summary}"
    assert verdict.check("policy").status == "fail"


def test_a_policy_can_approve_fixed_tensors(judge: Judge, task: Task, tmp_path: Path) -> None:
    other = replace(task, model=with_table, evaluate=None)
    path = prove(other, tmp_path / "run.pol", interval=5).path
    assert judge("", path, other, random=0, top_q=0).check("initialization").status == "inconclusive"
    text = "[initialization]\napproved_fixed = ['*/table']"
    assert judge(text, path, other, random=0, top_q=0).verdict == "valid"


def test_a_policy_can_require_exact_replay(tmp_path: Path) -> None:
    path, seen = tmp_path / "policy.toml", list[bool]()
    for text in ("", "[trust]\nexact = false", "[trust]\nexact = true"):
        path.write_text(text)
        seen.append(Options.of({"policy": path}).comparison.exact)
    assert seen == [False, False, True]
    assert Options.of({"require": "exact"}).comparison.exact


class Hidden(Net):
    """What it computes is no module's output: its step calls a method of its own."""

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x @ self.first.weight.T) @ self.last.weight.T


def silent(model: torch.nn.Module, batch: list[torch.Tensor]) -> torch.Tensor:
    assert isinstance(model, Hidden)
    return torch.nn.functional.cross_entropy(model.scores(batch[0]), batch[1])


def test_a_task_that_shows_no_outputs_needs_uniform_draws_to_be_accepted(
    judge: Judge, task: Task, tmp_path: Path
) -> None:
    other = replace(task, model=Hidden, loss=silent, evaluate=None)
    path = prove(other, tmp_path / "run.pol", interval=5).path
    verdict = judge("", path, other)
    found = verdict.check("policy")
    assert (verdict.verdict, found.status) == ("inconclusive", "inconclusive")
    assert "every_guarantee" in found.summary and "none over function" in found.summary
    assert "should call its modules (`model(x)`" in found.summary  # what to do
    assert "--accept-uniform" in found.summary and "guarantee.uniform_only" in found.summary
    assert verdict.guarantee.missing == ["function"]
    # The draws by the weights are made all the same.
    assert verdict.guarantee.progress_fraction is not None and verdict.guarantee.progress_draws > 0
    assert verify(path, other, accept_uniform=True).verdict == "valid"
    assert judge("[guarantee]\nuniform_only = true", path, other).verdict == "valid"
    # A rule about the function's guarantee is another matter: none was given.
    assert judge("[guarantee]\nuniform_only = true\nfunction_fraction = 0.5", path, other).verdict == "inconclusive"


# ---- cost -------------------------------------------------------------------------------------------


@pytest.fixture
def replayed(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The segments that were replayed."""
    indices: list[int] = []
    ask = Replayer.ask

    def spy(self: Replayer, request: Any, *rest: Any) -> Any:
        indices.extend([request.index] if isinstance(request, Replay) else [])
        return ask(self, request, *rest)

    monkeypatch.setattr(Replayer, "ask", spy)
    return indices


def test_too_large_a_challenge_does_not_begin(judge: Judge, replayed: list[int]) -> None:
    """First and last segment are 9 of 24 steps."""
    assert judge("[cost]\nmax_share = 0.375", random=0, top_q=0).verdict == "valid"
    replayed.clear()
    with pytest.raises(UsageError) as caught:
        judge("[cost]\nmax_share = 0.37", random=0, top_q=0)
    assert str(caught.value) == (
        "policy.toml: cost.max_share: the challenge replays 9 of 24 steps (0.375), the policy allows 0.37; "
        "ask for fewer segments (--random, --top-q), or raise the limit"
    )
    assert not replayed


def test_too_long_a_challenge_ends_after_two_segments(judge: Judge, replayed: list[int]) -> None:
    with pytest.raises(UsageError, match=r"cost\.max_seconds: replaying 24 steps would take about .* seconds here"):
        judge("[cost]\nmax_seconds = 1e-6", everything=True)
    assert replayed == [0, 1]
    replayed.clear()
    assert judge("[cost]\nmax_seconds = 600", everything=True).verdict == "valid"
    assert replayed == [0, 1, 2, 3, 4]  # those that were timed count


# ---- files ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[training]\nmax_intervall = 5", "training.max_intervall: unknown key; the nearest one known is 'max_interval'"),
        ("[trianing]\nmax_steps = 5", "[trianing]: unknown section; the nearest one known is [training]"),
        ("[training]\nexact = true", "training.exact: this key belongs in [trust]"),
        ("exact = true", "exact: this key belongs in a section, [trust]"),
        ("max_step = 5", "max_step: unknown key; the nearest one known is 'max_steps' in [training]"),
        ("name = 'x'", "name: unknown key; the nearest one known is 'max_steps' in [training]"),
        ("training = 5", "training: expected a section [training], found a number"),
        ("[[training]]\nmax_steps = 5", "training: expected a section [training], found a list"),
        ("[training]\nmax_steps = '5'", "training.max_steps: expected int, found str"),
        ("[training]\nmax_steps = 5.0", "training.max_steps: expected int, found float"),
        ("[training]\nmax_steps = true", "training.max_steps: expected int, found bool"),
        ("[training]\nmax_steps = 0", "training.max_steps: expected int >= 1"),
        ("[training]\nmax_steps = 2024-01-01", "training.max_steps: expected int, found date"),
        ("[training]\nmax_trivial_share = 1.5", "training.max_trivial_share: expected float <= 1.0"),
        ("[training]\nmax_trivial_share = nan", "training.max_trivial_share: expected a finite number, found nan"),
        ("[training]\nmax_learning_rate = inf", "training.max_learning_rate: expected a finite number, found inf"),
        ("[training]\nmin_learning_rate = 0.0", "training.min_learning_rate: expected float > 0.0"),
        ("[training.max_steps]\nx = 1", "training.max_steps: expected int, found section"),
        ("[cost]\nmax_seconds = [1.0]", "cost.max_seconds: expected float, found array"),
        ("[trust]\nexact = 1", "trust.exact: expected bool, found int"),
        ("[trust]\nassurance = 'strong'", "trust.assurance: invalid enum value 'strong'"),
        ("[accept]\ntasks = 'sha256:00'", "accept.tasks: expected array, found str"),
        ("[accept]\ntasks = [1]", "accept.tasks[0]: expected str, found int"),
        ("[accept]\ntasks = []", "accept.tasks: an empty list accepts nothing; leave the key out to accept anything"),
        ("[accept]\ndata = ['sha256:00']",
         "accept.data: 'sha256:00' is not of the form sha256:<64 hex digits>; `pol inspect` shows a proof's"),
        ("[training]\nmin_interval = 6\nmax_interval = 5",
         "training.min_interval: 6 is above training.max_interval, 5; no run could satisfy both"),
        ("[training]\nmin_learning_rate = 1.0\nmax_learning_rate = 0.1",
         "training.min_learning_rate: 1 is above training.max_learning_rate, 0.1; no run could satisfy both"),
        ("[[trust.revoked]]\nsince = 2026-05-31T12:00:00Z",
         "trust.revoked: table 1 of [[revoked]] has to have `key`, and may have `since` and `reason`"),
        (f"[[trust.revoked]]\nkey = '{OTHER}'\nsince = '2026-05-31'",
         "trust.revoked: table 1 of [[revoked]]: `since` is a moment with its offset, 2026-05-31T12:00:00Z, without quotes"),
        (f"[trust]\nrevoked = ['{OTHER}']", "trust.revoked[0]: expected section, found str"),
        ("[training\n", "not TOML: Expected ']' at the end of a table declaration (at line 1, column 10)"),
        ("[trust]\nexact = true\nexact = true", "not TOML: Cannot overwrite a value (at end of document)"),
        ("a = " + "[" * 5000, "not TOML: "),
        ("a = " + "9" * 5000, "not TOML: "),
        ("[cost]\nmax_seconds = 0x" + "f" * 5000, "not TOML: an integer of more than 64 bits"),
        ("a." * 30_000 + "a = 1", "not TOML that is read here: more than 256 dots in a line; break it into several"),
    ],
)  # fmt: skip
def test_a_slip_is_named_in_one_line(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "policy.toml"
    path.write_text(text)
    with pytest.raises(UsageError) as caught:
        load_policy(path)
    assert str(caught.value).startswith(f"policy.toml: {message}")
    assert message.endswith(": ") or str(caught.value) == f"policy.toml: {message}"
    assert "\n" not in str(caught.value)


def test_what_is_no_file_of_rules(tmp_path: Path) -> None:
    for content, message in (
        (b"\xff", "policy.toml: not TOML: "),
        (b"#" * (1 << 20) + b"\n", "--policy .*: larger than 1,048,576 bytes"),
    ):
        (tmp_path / "policy.toml").write_bytes(content)
        with pytest.raises(UsageError, match=message):
            load_policy(tmp_path / "policy.toml")
    with pytest.raises(UsageError, match="Is a directory"):
        load_policy(tmp_path)
    result = CliRunner().invoke(app, ["verify", "no.pol", "--policy", f"{tmp_path}/none.toml"])
    assert (result.exit_code, result.stderr) == (2, f"pol: --policy {tmp_path}/none.toml: No such file or directory\n")


def test_the_command_lists_the_rules_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("[training]\nmax_trivial_share = 0.0\n[trust]\nexact = true\nassurance = 'observed'")
    result = CliRunner().invoke(app, ["policy", "--check", str(path)])
    assert result.stdout == f"{path}: 3 rules: training.max_trivial_share, trust.assurance, trust.exact\n"
    path.write_text("[trust]\nexakt = true")
    result = CliRunner().invoke(app, ["policy", "--check", str(path)])
    message = "policy.toml: trust.exakt: unknown key; the nearest one known is 'exact'"
    assert (result.exit_code, result.stdout, result.stderr) == (2, "", f"pol: {message}\n")


def test_an_empty_file_has_no_rules(tmp_path: Path) -> None:
    path = tmp_path / "policy.toml"
    path.write_text("# nothing\n[training]\n")
    assert msgspec.structs.replace(load_policy(path), name="policy", digest="") == Policy()
