"""Recorded starts from laws that the pool does not know, further parts of a start, and starts that are only rearranged."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader
from typer.testing import CliRunner

import proof_of_learning as pol
import tasks
from proof_of_learning import Indexed, Recorder, Task
from proof_of_learning.cli.main import app
from proof_of_learning.errors import UsageError
from proof_of_learning.numeric import randomness
from proof_of_learning.replay.origins import origin, rearranged
from proof_of_learning.verifier.initialization.dependence import independence
from proof_of_learning.verifier.initialization.judge import judge_initialization
from proof_of_learning.verifier.initialization.named import named_laws

init = nn.init
Fill = Callable[[nn.Module], Any]


@pytest.fixture(autouse=True)
def own_generators() -> Iterator[None]:
    with randomness.preserved():
        torch.manual_seed(11)
        yield


def weights_only(fill: Callable[[Tensor, int], Any]) -> Fill:
    """Fills the weight matrices of a network; the number says which."""

    def apply(model: nn.Module) -> None:
        with torch.no_grad():
            for position, module in enumerate(m for m in model.modules() if isinstance(m, nn.Linear)):
                fill(module.weight, position)

    return apply


def siren(weight: Tensor, position: int) -> None:
    width = 1 / weight.shape[1] if position == 0 else math.sqrt(6 / weight.shape[1]) / 30
    init.uniform_(weight, -width, width)


OUTSIDE: dict[str, tuple[Fill, str]] = {
    "normal 0.03": (weights_only(lambda w, _: init.normal_(w, 0, 0.03)), "*=normal:0.03"),
    "siren": (weights_only(siren), "*.weight=siren:30"),
    "xavier 0.5": (weights_only(lambda w, _: init.xavier_uniform_(w, 0.5)), "*.weight=xavier_uniform:0.5"),
    "uniform 0.25": (weights_only(lambda w, _: init.uniform_(w, -0.25, 0.25)), "model/parameters/*=uniform:0.25"),
}


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(tasks.FEATURES, 64), nn.Tanh(), nn.Linear(64, 32), nn.Tanh(), nn.Linear(32, tasks.CLASSES)
    )


def plain(parts: Any = None, step: Any = None) -> Task:
    return Task(
        name="foreign", model=network, data=tasks.data, optimizer=lambda model: torch.optim.SGD(model.parameters(), 0.05),
        loss=None if step else tasks.loss, step=step, parts=parts, batch_size=16, steps=6,
    )  # fmt: skip


def observed(path: Path, task: Task, model: nn.Module, parts: dict[str, Any] | None = None) -> Path:
    """A foreign loop of six steps from the model as it is."""
    optimizer = torch.optim.SGD(model.parameters(), 0.05)
    live = {"model": model, "optimizer": optimizer, **(parts or {})}
    with Recorder.observe(path, task, live, interval=2) as recorder:
        for _ in range(2):
            for x, y in recorder.watch(DataLoader(Indexed(tasks.data()), batch_size=16, shuffle=True)):  # type: ignore[arg-type]
                loss = F.cross_entropy(model(x), y)
                recorder.loss(loss)
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                for part in (parts or {}).values():
                    part.update(model)
        recorder.close()
    return path


def start(verdict: pol.Verdict) -> Any:
    return verdict.check("initialization")


@pytest.mark.parametrize("name", OUTSIDE)
def test_a_law_outside_the_pool_is_no_forgery_and_can_be_named(name: str, tmp_path: Path) -> None:
    fill, law = OUTSIDE[name]
    model = network()
    fill(model)
    path = observed(tmp_path / "run.pol", plain(), model)
    verdict = pol.verify(path, plain(), everything=True)
    assert (verdict.verdict, start(verdict).status) == ("inconclusive", "inconclusive"), start(verdict).summary
    assert "--initial-law '" in verdict.reason and ".weight=normal:STD'" in verdict.reason
    named = pol.verify(path, plain(), everything=True, laws=[law])
    assert start(named).status == "pass", start(named).summary
    assert named.verdict == "valid"
    assert start(named).evidence["named_laws"] == [law]
    (tmp_path / "policy.toml").write_text(f'[initialization]\nlaws = ["{law}"]\n[trust]\nassurance = "observed"\n')
    ruled = pol.verify(path, plain(), everything=True, policy=tmp_path / "policy.toml")
    assert start(ruled).status == "pass"
    wrong = pol.verify(path, plain(), everything=True, laws=["*=normal:7"])
    assert start(wrong).status == "inconclusive"


def test_the_command_takes_laws_and_names_what_is_none(tmp_path: Path, tiny: pol.TaskReference) -> None:
    path = pol.prove(tasks.task(steps=4), tmp_path / "run.pol", interval=2).path
    command = ["verify", str(path), "--task", tiny.target, "--set", "steps=4", "--sandbox", "off"]
    run = CliRunner().invoke(app, [*command, "--initial-law", "a=normal:0.03", "--initial-law", "*=uniform:0.2"])
    assert run.exit_code == 0, run.output
    for law in (
        "normal:0.03",
        "a=gauss:1",
        "a=normal",
        "a=normal:x",
        "a=normal:0",
        "a=uniform:2:1",
        "a=siren:30:1",
        "=normal:1",
        "a=normal:nan",
    ):
        with pytest.raises(UsageError, match="is not of the form PATTERN=LAW, such as"):
            pol.verify(path, tiny, laws=[law])
    (tmp_path / "policy.toml").write_text('[initialization]\nlaws = ["normal:0.03"]\n')
    with pytest.raises(UsageError, match=r"policy.toml: initialization.laws: the initial law 'normal:0.03' is not"):
        pol.verify(path, tiny, policy=tmp_path / "policy.toml")


def test_trained_weights_are_no_draws_whatever_the_law(tmp_path: Path) -> None:
    model, x = network(), torch.randn(512, tasks.FEATURES)
    optimizer = torch.optim.Adam(model.parameters(), 0.02)
    for _ in range(150):
        optimizer.zero_grad()
        F.mse_loss(model(x), torch.stack([x[:, 0] * x[:, 1], x[:, 2].sin(), x[:, 3] ** 2, x[:, 4]], 1)).backward()
        optimizer.step()
    path = observed(tmp_path / "run.pol", plain(), model)
    verdict = pol.verify(path, plain(), everything=True)
    assert (verdict.verdict, start(verdict).status) == ("invalid", "fail")
    assert "are no independent draws from any law" in verdict.reason
    named = pol.verify(path, plain(), everything=True, laws=["*=normal:0.3"])
    assert named.verdict == "invalid"


HONEST: dict[str, Callable[[], Tensor]] = {
    "normal": lambda: 0.03 * torch.randn(64, 128), "heavy tails": lambda: torch.randn(64, 64) / torch.rand(64, 64),
    "blocks": lambda: torch.cat([s * torch.randn(64, 64) for s in (1, 0.1, 0.01)]),
    "columns": lambda: torch.randn(64, 64) * torch.logspace(-2, 2, 64),
    "rows": lambda: torch.randn(64, 64) + torch.arange(64.0)[:, None],
    "copied rows": lambda: torch.randn(16, 32, 3, 3).repeat_interleave(4, 0),
    "identity": lambda: torch.eye(64) + 0.01 * torch.randn(64, 64),
    "orthogonal": lambda: 1.3 * init.orthogonal_(torch.empty(64, 128)), "signs": lambda: torch.randn(64, 128).sign(),
    "bfloat16": lambda: torch.randn(64, 128).bfloat16(), "one-hot": lambda: torch.eye(64)[torch.randperm(64)],
    "padding": lambda: torch.cat([torch.zeros(1, 32), torch.randn(500, 32)]),
    "complex": lambda: torch.randn(32, 32, dtype=torch.complex64),
    "large": lambda: torch.randn(3000, 16), "vector": lambda: torch.randn(100).sort().values,
}  # fmt: skip


@pytest.mark.parametrize("name", HONEST)
def test_unusual_draws_are_not_called_dependent(name: str) -> None:
    assert all(independence(HONEST[name]()) > 1e-3 for _ in range(5))


@pytest.mark.quick
def test_dependence_is_seen() -> None:
    spike = torch.randn(64, 1) @ torch.randn(1, 64)
    assert independence(torch.randn(64, 64) + spike) < 1e-6
    assert independence(torch.full((8, 8), math.nan)) == 0.0


def test_an_exact_scheme_can_be_named_too() -> None:
    weight = 1.3 * init.orthogonal_(torch.empty(64, 128))
    assert not judge_initialization({"a.weight": weight}).accepted
    assert judge_initialization({"a.weight": weight}, laws=named_laws(["a.*=orthogonal:1.3"])).accepted
    assert not judge_initialization({"a.weight": weight}, laws=named_laws(["b.*=orthogonal:1.3"])).accepted
    drawn = {
        "trunc_normal:2:3": init.trunc_normal_(torch.empty(40, 50), 0, 2, -3, 3), "normal:0.5:4": 4 + 0.5 * torch.randn(40, 50),
        "kaiming_normal:0.3": 0.3 * torch.randn(40, 50) / math.sqrt(50), "xavier_normal:3": 3 * torch.randn(40, 50) / math.sqrt(45),
        "kaiming_uniform:0.3": 0.3 * math.sqrt(3 / 50) * (2 * torch.rand(40, 50) - 1), "uniform:3:5": 3 + 2 * torch.rand(40, 50),
        "normal:0.7": 0.7 * torch.randn(40, 50, dtype=torch.complex64) * math.sqrt(2),
    }  # fmt: skip
    for law, weight in drawn.items():
        assert not judge_initialization({"a.weight": weight}).accepted, law
        assert judge_initialization({"a.weight": weight}, laws=named_laws([f"*={law}"])).accepted, law


# ---- further parts ----------------------------------------------------------------------------------


class Average(nn.Module):
    """A moving average in a module, which starts as a copy, times a factor."""

    def __init__(self, model: nn.Module, factor: float = 1.0, dtype: torch.dtype = torch.float32) -> None:
        super().__init__()
        for position, p in enumerate(model.parameters()):
            self.register_buffer(f"p{position}", factor * p.detach().clone().to(dtype))

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        for mine, theirs in zip(self.buffers(), model.parameters(), strict=True):
            mine.lerp_(theirs.to(mine.dtype), 0.1)


def averaging(context: Any, batches: list[Any]) -> Tensor:
    value = tasks.loss(context.model, batches[0])
    context.backward(value)
    context.update()
    for part in context.parts.values():
        part.update(context.model)
    return value


def with_part(make: Callable[[nn.Module], Any]) -> Task:
    return plain(lambda model: {"ema": make(model)}, averaging)


@pytest.mark.parametrize(
    "make",
    [Average, lambda m: Average(m, 0.1), lambda m: Average(m, dtype=torch.float64), tasks.Shadow],
    ids=["copy", "part", "double", "object"],
)
def test_an_average_starts_as_a_copy(make: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    model = network()
    path = observed(tmp_path / "run.pol", with_part(make), model, {"ema": make(model)})
    verdict = pol.verify(path, with_part(make), everything=True)
    assert start(verdict).status == "pass", start(verdict).summary
    assert verdict.verdict == "valid"


@pytest.mark.parametrize("make", [Average, tasks.Shadow])
def test_what_a_part_of_the_start_knows_is_seen(make: Callable[[nn.Module], Any], tmp_path: Path) -> None:
    model, stolen = network(), network()
    with torch.no_grad():
        for module in stolen.modules():
            if isinstance(module, nn.Linear):
                module.weight += 2 * torch.randn(len(module.weight), 1) @ torch.randn(1, module.weight.shape[1])
    path = observed(tmp_path / "run.pol", with_part(make), model, {"ema": make(stolen)})
    verdict = pol.verify(path, with_part(make), everything=True)
    assert (verdict.verdict, start(verdict).status) == ("invalid", "fail")
    assert "ema/" in verdict.reason or "shadow/" in verdict.reason


def test_an_optimizer_that_has_moved_is_still_refused(tmp_path: Path) -> None:
    model = network()
    task = replace(plain(), optimizer=lambda m: torch.optim.Adam(m.parameters(), 0.05))
    optimizer = torch.optim.Adam(model.parameters(), 0.05)
    F.cross_entropy(model(tasks.data().tensors[0]), tasks.data().tensors[1]).backward()
    optimizer.step()
    with Recorder.observe(tmp_path / "run.pol", task, {"model": model, "optimizer": optimizer}, interval=2) as recorder:
        for x, y in recorder.watch(DataLoader(Indexed(tasks.data()), batch_size=16, shuffle=True)):  # type: ignore[arg-type]
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            recorder.loss(loss)
            loss.backward()
            optimizer.step()
        recorder.close()
    verdict = pol.verify(tmp_path / "run.pol", task, everything=True)
    assert start(verdict).status == "fail" and "has moved already" in start(verdict).summary


# ---- rearranged starts ------------------------------------------------------------------------------

DRAWS: dict[str, Callable[[], Tensor]] = {
    **HONEST, "embedding": lambda: init.normal_(torch.empty(2000, 16)), "half": lambda: torch.randn(256, 128).half(),
    "narrow half": lambda: torch.randn(256, 8).half(), "quantised": lambda: (30 * torch.randn(64, 128)).round() / 127,
    "around one": lambda: 1 + 1e-3 * torch.randn(64, 128), "sparse": lambda: init.sparse_(torch.empty(64, 64), 0.9),
    "dirac": lambda: init.dirac_(torch.empty(16, 16, 3, 3)), "steps": lambda: torch.linspace(0, 1, 64)[torch.randperm(64)],
    "orders": lambda: torch.stack([torch.arange(1.0, 17)[torch.randperm(16)] for _ in range(64)]),
    "few levels": lambda: torch.randint(-8, 8, (4000, 8)).float(),
}  # fmt: skip
del DRAWS["complex"]


@pytest.mark.parametrize("name", DRAWS)
def test_honest_draws_are_not_called_rearranged(name: str) -> None:
    assert not any(rearranged(DRAWS[name](), DRAWS[name]()) for _ in range(5))


def shuffled_network(scale: bool, key: torch.Generator | None = None) -> Task:
    """A task whose factory permutes (and rescales) the hidden units of fixed weights by the key."""
    torch.manual_seed(5)
    known = [p.detach().clone() for p in network().parameters()]

    def model() -> nn.Module:
        made, order_before, factor_before = network(), torch.arange(tasks.FEATURES), torch.ones(tasks.FEATURES)
        layers = [m for m in made.modules() if isinstance(m, nn.Linear)]
        with torch.no_grad():
            for position, layer in enumerate(layers):
                size, last = len(layer.weight), position == len(layers) - 1
                order = torch.arange(size) if last else torch.randperm(size)
                factor = torch.exp(torch.randn(size)) if scale and not last else torch.ones(size)
                weight = known[2 * position][order][:, order_before] * factor[:, None] / factor_before
                layer.weight.copy_(weight)
                layer.bias.copy_(known[2 * position + 1][order] * factor)
                order_before, factor_before = order, factor
        return made

    return replace(plain(), model=model)


@pytest.mark.parametrize("scale", [False, True], ids=["permuted", "rescaled"])
def test_a_start_that_is_only_rearranged_by_the_key_is_refused(scale: bool, tmp_path: Path) -> None:
    task = shuffled_network(scale)
    verdict = pol.verify(pol.prove(task, tmp_path / "run.pol", interval=2).path, task)
    assert (verdict.verdict, start(verdict).status) == ("invalid", "fail")
    assert "the same values under every key, in another order or rescaled" in verdict.reason
    assert any("rearranged" in line for line in start(verdict).evidence["fixed"])
    approved = pol.verify(tmp_path / "run.pol", task, approve_fixed=["*"])
    assert start(approved).status == "pass"


# ---- tied weights -----------------------------------------------------------------------------------


def test_tied_weights_have_any_of_their_names(tmp_path: Path, tiny: pol.TaskReference) -> None:
    saved = tmp_path / "model.safetensors"
    command = [
        "prove",
        tiny.target,
        "-o",
        str(tmp_path / "run.pol"),
        "--set",
        "net=tied",
        "--set",
        "steps=4",
        "--save-model",
        str(saved),
    ]
    assert CliRunner().invoke(app, command).exit_code == 0
    task = tasks.task(net="tied", steps=4)

    def endpoint(**tensors: Tensor) -> Any:
        save_file({name.replace("__", "."): t.contiguous() for name, t in tensors.items()}, saved)
        return pol.verify(tmp_path / "run.pol", task, model=saved, keep_going=True).check("endpoint")

    assert pol.verify(tmp_path / "run.pol", task, model=saved).verdict == "valid"
    from safetensors.torch import load_file

    full = {name.replace(".", "__"): t.clone() for name, t in load_file(saved).items()}
    assert {"middle__weight", "again__weight"} <= full.keys()
    for dropped in ("middle__weight", "again__weight"):
        assert endpoint(**{n: t for n, t in full.items() if n != dropped}).status == "pass"
    both = endpoint(**{n: t for n, t in full.items() if "n__weight" not in n and n != "middle__weight"})
    assert (both.status, both.summary) == (
        "fail",
        "the given model is not the proof's: middle.weight is missing from the file",
    )
    other = endpoint(**{**full, "again__weight": full["again__weight"] + 1})
    assert (other.status, other.summary) == (
        "fail",
        "the given model is not the proof's: again.weight is not a tensor of the model",
    )
    assert endpoint(**{**full, "middle__weight": full["middle__weight"] + 1}).status == "fail"


def test_what_has_another_name_under_another_key_is_not_drawn() -> None:
    """A layer named by the key would else hide weights that do not follow from it."""
    stolen = torch.randn(16, 64, generator=torch.Generator().manual_seed(0))
    assert origin("model/parameters/block17.weight", stolen, None, True).origin == "fixed"
