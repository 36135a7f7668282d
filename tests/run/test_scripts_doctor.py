"""``pol doctor SCRIPT``: what a replay of a script would trip over, in one list; nothing where there is nothing."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

from conftest import nursery
from support_scripts import script, variables

BAD = "steps += 1; optimizer.param_groups[0]['lr'] = 0.1 / steps; a = a + 0.01 * float(rng.normal())"


def doctor(path: Path, *options: str) -> tuple[subprocess.CompletedProcess[bytes], dict[str, Any]]:
    out = path.parent / "found.json"
    out.unlink(missing_ok=True)
    done = nursery.run(("doctor", path, "--json", out, *options), variables(), path.parent)
    return done, json.loads(out.read_text()) if out.exists() else {}


def test_everything_that_no_state_holds_is_listed(tmp_path: Path) -> None:
    path = script(tmp_path, epochs=1, begin=BAD, end="run.close(); print('behind')")
    path.write_text(path.read_text().replace("steps = 0", "steps = 0\nimport numpy\nrng = numpy.random.default_rng(3)"))
    done, told = doctor(path, "--steps", "8", "-k", "4")
    assert done.returncode == 1 and b"behind" not in done.stdout + done.stderr, done.stderr
    causes = [finding["cause"] for finding in told["findings"]]
    assert len(causes) == 2 and told["steps"] == 8, causes
    assert any("variable 'rng' is a private generator" in cause for cause in causes)
    assert any("variable 'steps' (0 → " in cause for cause in causes)


def test_nothing_is_found_in_a_script_that_replays(tmp_path: Path) -> None:
    done, told = doctor(script(tmp_path, epochs=1), "-k", "4")
    assert done.returncode == 0 and told["findings"] == [] and told["skipped"] == [], done.stderr
    assert told["steps"] == 20 and told["replays"] >= 4  # in two processes, the end of the loop among them
    assert not list(tmp_path.glob("**/header.json"))


def test_what_cannot_be_recorded_is_a_finding(tmp_path: Path) -> None:
    path = script(tmp_path, epochs=1)
    path.write_text(path.read_text().replace("model=model, optimizer", "optimizer"))
    done, told = doctor(path)
    assert done.returncode == 1 and "pol.Run was given no module" in told["findings"][0]["what"], done.stderr


def test_a_missing_close_is_a_finding(tmp_path: Path) -> None:
    done, told = doctor(script(tmp_path, epochs=1, end="pass"), "-k", "100")
    assert done.returncode == 1 and told["findings"][0]["what"] == "the script ended without run.close()", done.stderr


def test_a_group_of_one_process_is_said_to_be_no_test_of_several(tmp_path: Path) -> None:
    path = script(tmp_path, epochs=1)
    begins = "import torch.distributed as dist\ndist.init_process_group('gloo', store=dist.HashStore(), rank=0, world_size=1)\n"
    path.write_text(path.read_text().replace("torch.manual_seed(1)", begins + "torch.manual_seed(1)"))
    done, told = doctor(path, "-k", "4", "--steps", "8")
    assert any("`pol prove --ranks N`" in notice for notice in told["notices"]), (done.stderr, told)
