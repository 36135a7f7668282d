"""The commands of challenge and open, as owner and verifier type them."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable
from pathlib import Path

import support_private
from support_opening import STEPS

Command = Callable[..., "subprocess.CompletedProcess[bytes]"]


def test_owner_and_verifier_talk_in_files(command: Command, tmp_path: Path) -> None:
    data = str(support_private.write(tmp_path / "data"))
    named = ["--task", f"{support_private.__file__}:task", "--set", f"steps={STEPS}"]

    def run(*arguments: str, status: int = 0) -> str:
        done = command(*arguments)
        assert done.returncode == status, (arguments, done.stdout, done.stderr)
        return (done.stdout + done.stderr).decode()

    def at(name: str) -> str:
        return str(tmp_path / name)

    run("keygen", "-o", at("key.pem"))
    run("keygen", "--salt", "-o", at("data.salt"))
    run(
        "prove", named[1], "-o", at("run.pol"), "-k", "1", "--set", f"steps={STEPS}", "--salt", at("data.salt"), "--data", data,
        "--no-rehearsal",
    )  # fmt: skip
    assert "no state, no sample" in run("manifest", at("run.pol"), "-o", at("manifest.pol"))
    run("challenge", at("manifest.pol"), "-o", at("first.json"), "--due", "7", "--docket", at("docket.json"))
    answer = [
        "answer",
        at("run.pol"),
        at("first.json"),
        *named,
        "--key",
        at("key.pem"),
        "-o",
        at("answers"),
        "--data",
        data,
    ]
    assert "budget" in run(*answer, "--budget", "0.1", status=2)
    other = ["--set", f"steps={STEPS - 4}"]  # what an owner would answer for by it is false
    assert "you named other settings" in run(*answer, *other, status=2) and not (tmp_path / "answers").exists()
    assert "at most" in run(*answer, "--segments", "8")
    second = [
        "challenge",
        at("manifest.pol"),
        "-o",
        at("second.json"),
        "--first",
        at("first.json"),
        "--docket",
        at("docket.json"),
    ]
    assert "together" in run(*second, status=2)
    slip = run(*second, "--answers", at("answers"), *named, *other, "--sandbox", "off", status=2)
    assert "you named other settings" in slip and not (tmp_path / "second.json").exists()
    assert "is hit with 99%" in run(*second, "--answers", at("answers"), *named, "--sandbox", "off")
    opening = [
        "open", at("run.pol"), at("second.json"), "--first", at("first.json"), "--answers", at("answers"), *named,
        "--key", at("key.pem"), "-o", at("opening"), "--data", data, "--salt", at("data.salt"), "--ledger", at("ledger.json"),
    ]  # fmt: skip
    assert "opens" in run(*opening, "--dry-run")
    assert "name the secret" in run(*opening[:-4], status=2)
    asked = run(*opening, status=2)  # at once: the draw is not made again before
    assert (
        "say --yes" in asked and f"of {STEPS} segments" in asked and "and about" in asked and "pol: opens" not in asked
    )
    assert not (tmp_path / "opening").exists()
    assert not (tmp_path / "ledger.json").exists()
    root = run(*opening, "--yes").rsplit("data root ", 1)[1].strip()
    told = run(
        "verify", at("opening"), *named, "--challenge", at("second.json"), "--data-root", root, "--docket", at("docket.json"),
        "--sandbox", "off", "--accept-budget", "--json", at("verdict.json"), "--report", at("report.html"),
    )  # fmt: skip
    verdict = json.loads((tmp_path / "verdict.json").read_text())
    found = {check["name"]: check["status"] for check in verdict["checks"]}
    assert (found["opening"], found["data"], found["trajectory"]) == ("pass", "pass", "pass"), told
    assert "opening" in (tmp_path / "report.html").read_text()
    wrong = run("verify", at("opening"), *named, "--challenge", at("first.json"), status=2)
    assert "first.json is the first challenge" in wrong and "needed here is the second challenge" in wrong
    assert "no meaning" in run("verify", at("opening"), *named, "--all", status=2)
    assert "is none" in run("verify", at("run.pol"), *named, "--data-root", root, status=2)
