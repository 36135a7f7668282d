"""What a command imports before it answers: nothing that it does not use. Processes are asked what they hold; no clock is read."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from proof_of_learning import Proof, TaskReference, verify
from proof_of_learning.errors import FormatError
from proof_of_learning.proof import codecs
from proof_of_learning.proof.codecs.compact import CompactCodec
from proof_of_learning.proof.codecs.float16 import Float16Codec
from proof_of_learning.proof.codecs.lossless import LosslessCodec
from proof_of_learning.proof.codecs.quantised import QuantisedCodec
from proof_of_learning.proof.codecs.raw import RawCodec
from proof_of_learning.replay import early, pool, process

HEAVY = ("torch", "scipy", "matplotlib", "jinja2", "cryptography", "fsspec", "zstandard", "pandas")
ASKED = """
import json, sys
code = {code!r}
try:
    exec(code)
except SystemExit as end:
    assert not end.code, end.code
print(json.dumps(sorted(sys.modules)), file=sys.stderr)
"""


def held(code: str) -> set[str]:
    """The modules that a fresh Python holds after ``code``."""
    done = subprocess.run([sys.executable, "-c", ASKED.format(code=code)], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr
    return set(json.loads(done.stderr.splitlines()[-1]))


def command(*words: str) -> str:
    return f"sys.argv = {['pol', *words]!r}\nfrom proof_of_learning.cli.main import run\nrun()"


@pytest.mark.parametrize("words", [("--help",), ("verify", "--help"), ("--version",)])
def test_help_imports_no_heavy_library(words: tuple[str, ...]) -> None:
    found = held(command(*words))
    assert not found & {*HEAVY, "numpy"}


def test_workers_are_started_before_torch_is_imported() -> None:
    found = held("import proof_of_learning.replay.sandbox, proof_of_learning.replay.early")
    assert "proof_of_learning.replay.early" in found and "torch" not in found


@pytest.mark.quick
def test_looking_into_a_proof_takes_no_torch(tiny_proof: Path) -> None:
    found = held(command("inspect", str(tiny_proof)))
    assert "proof_of_learning.proof.reader" in found and not found & set(HEAVY)


def test_checking_a_proof_takes_no_library_that_it_has_no_use_for(tiny_proof: Path) -> None:
    found = held(command("check", str(tiny_proof)))
    assert "torch" in found and not found & ({*HEAVY, "torch._dynamo", "sympy"} - {"torch", "zstandard"})


def test_a_worker_steps_without_the_compiler_and_with_it_where_a_task_compiles() -> None:
    stepped = (
        "import torch\nfrom proof_of_learning.replay import worker\nworker._warm_up()\n"
        "w = torch.nn.Parameter(torch.ones(2)); o = torch.optim.AdamW([w], lr=0.1); w.sum().backward(); o.step()\n"
        "from torch.utils.checkpoint import checkpoint\n"  # whose settings are the compiler's
        "checkpoint(torch.sin, w, use_reentrant=False).sum().backward(); o.step()\n"
    )
    light = "import sys; assert not {'torch._dynamo.convert_frame', 'sympy'} & set(sys.modules), sorted(sys.modules)\n"
    # It looks for the source of its operators in every module, and loads the compiler amid its own import if that has a file.
    assert "torch.distributed.tensor" in held(stepped + light + "import torch.distributed.tensor\n")
    compiled = (
        stepped
        + "f = torch.compile(lambda x: x + 1, backend='eager'); assert f(w).tolist() == (w + 1).tolist()\n"
        + "import torch._dynamo.config as c; assert sys.modules['torch._dynamo'].config is c is torch._dynamo.config\n"
        + "o.zero_grad(); w.sum().backward(); o.step()\n"
    )
    assert "torch._dynamo.convert_frame" in held(compiled)


@contextmanager
def started(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Any]]:
    """The environments that workers are started with while it lasts."""
    with monkeypatch.context() as patched:
        made, start = [], process.WorkerProcess.__init__

        def starting(self: process.WorkerProcess, environment: Any, *rest: Any, **more: Any) -> None:
            made.append(environment)
            start(self, environment, *rest, **more)

        patched.setattr(process.WorkerProcess, "__init__", starting)
        yield made


def test_workers_that_were_started_early_are_the_ones_that_are_used(
    tiny: TaskReference, tiny_proof: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with started(monkeypatch) as made, early.ahead(str(tiny_proof), tiny, "off", (), 60.0, 1) as found:
        assert found is not None and len(made) == 2  # one looks at states, one takes steps
        verdict = verify(
            tiny_proof, tiny, pool=partial(pool.LocalPool, early=found), sandbox="off", timeout=60.0, top_q=1, random=1
        )
        assert len(made) == 2 and verdict.verdict in ("valid", "inconclusive")


def test_workers_for_another_sandbox_or_environment_are_not_used_and_end(tiny: TaskReference, tiny_proof: Path) -> None:
    recorded = next(iter(Proof.open(tiny_proof).environments.values()))
    early_ones = early.Early(early.as_recorded(recorded), None, 60.0, 1)
    try:
        assert early_ones.take((pool.LOOKING, 0), recorded, None, 61.0) is None
        taken = early_ones.take((pool.LOOKING, 0), early.as_recorded(recorded), None, 60.0)
        assert taken is not None and early_ones.take((pool.LOOKING, 0), recorded, None, 60.0) is None
        taken.close()
        waiting = list(early_ones._waiting.values())
    finally:
        early_ones.close()
    assert len(waiting) == 1 and all(worker.died for worker in waiting)


@pytest.mark.parametrize("path", ["nowhere", "a file"])
def test_what_is_no_proof_starts_no_worker(path: str, tmp_path: Path, tiny: TaskReference) -> None:
    (tmp_path / "a file").write_text("x")
    with early.ahead(str(tmp_path / path), tiny, "off", (), 60.0, 1) as found:
        assert found is None


def test_the_table_of_codecs_says_what_they_are() -> None:
    made = {("raw", 1): RawCodec, ("lossless", 1): LosslessCodec, ("float16", 1): Float16Codec,
            ("quantised", 1): QuantisedCodec, ("compact", 1): CompactCodec}  # fmt: skip
    assert set(codecs._CODECS) == set(made)
    for (name, version), kind in made.items():
        codec = codecs.get_codec(name, version)
        assert type(codec) is kind and (codec.name, codec.version) == (name, version)
        assert codec.exact is codecs.is_exact(name, version)
    with pytest.raises(FormatError, match="codec 'brotli' version 1 is unknown"):
        codecs.is_exact("brotli")
