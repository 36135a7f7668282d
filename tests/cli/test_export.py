"""The model that a proof ends in, as a file; and a model's files, held against a proof."""

from __future__ import annotations

import base64
import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric import ed25519
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from safetensors.torch import load_file, save_file
from torch import Tensor
from typer.testing import CliRunner

from proof_of_learning import Proof, export
from proof_of_learning.attestation import signatures
from proof_of_learning.cli.main import app
from proof_of_learning.errors import FormatError, UsageError
from proof_of_learning.prover import Recording
from proof_of_learning.verifier.checks.endpoint import compare_model, weight_files


@pytest.fixture(scope="module")
def model(digits_proof: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    place = tmp_path_factory.mktemp("model") / "model.safetensors"
    export(digits_proof, place)
    return load_file(place)


def sharded(folder: Path, model: dict[str, Tensor], **changed: Any) -> Path:
    """The model in two files with an index, as Hugging Face has them."""
    names, folder_ = sorted(model), folder
    folder_.mkdir()
    halves = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    for file, part in halves.items():
        save_file({name: model[name] for name in part}, folder_ / file)
    index = {
        "metadata": {"total_size": 1},
        "weight_map": {n: file for file, part in halves.items() for n in part},
    } | changed
    (folder_ / "model.safetensors.index.json").write_text(json.dumps(index))
    return folder_


def test_an_exported_model_loads_under_its_own_names(
    digits_recording: Recording, digits_proof: Path, model: dict[str, Tensor], tmp_path: Path
) -> None:
    assert isinstance(digits_recording.model, torch.nn.Module)
    own = digits_recording.model.state_dict()
    assert {n: t.tolist() for n, t in model.items()} == {n: t.tolist() for n, t in own.items()}
    first, again = (export(digits_proof, tmp_path / name) for name in ("a.safetensors", "b.safetensors"))
    assert (first.digest, first.tensors) == (again.digest, len(model))
    assert compare_model(Proof.open(digits_proof), tmp_path / "a.safetensors") == []
    with pytest.raises(UsageError, match="overwrite"):
        export(digits_proof, tmp_path / "a.safetensors")
    export(digits_proof, tmp_path / "a.safetensors", overwrite=True)
    with pytest.raises(FormatError):
        export(tmp_path, tmp_path / "c.safetensors")


def test_a_signed_model_satisfies_the_model_signing_command(digits_proof: Path, tmp_path: Path) -> None:
    from model_signing.verifying import Config

    key, public, model = tmp_path / "key.pem", tmp_path / "key.pub.pem", tmp_path / "model.safetensors"
    for name in ("key", "other"):
        signatures.generate(tmp_path / f"{name}.pem", b"a passphrase" if name == "key" else None)
    made = CliRunner().invoke(
        app,
        ["export", str(digits_proof), "-o", str(model), "--key", str(key), "--passphrase-env", "SECRET"],
        env={"SECRET": "a passphrase"},
    )
    assert made.exit_code == 0, made.output
    signature = tmp_path / "model.safetensors.sig"
    arguments = ["verify", "key", str(model), "--signature", str(signature), "--public_key", str(public)]
    done = subprocess.run([sys.executable, "-m", "model_signing", *arguments], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    # The same without starting it again: it refuses what is not signed with the key, or not the file.
    verifier = Config().use_elliptic_key_verifier(public_key=public)
    verifier.verify(model, signature)
    with pytest.raises(ValueError, match="Key mismatch"):
        Config().use_elliptic_key_verifier(public_key=tmp_path / "other.pub.pem").verify(model, signature)
    bundle = json.loads(signature.read_bytes())
    payload = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"]))
    assert payload["predicate"]["proofOfLearning"] == {"root": Proof.open(digits_proof).root}
    model.write_bytes(model.read_bytes()[:-1] + b"x")
    with pytest.raises(ValueError, match="mismatch"):
        Config().use_elliptic_key_verifier(public_key=public).verify(model, signature)
    payload["predicate"]["resources"][0]["digest"] = hashlib.sha256(model.read_bytes()).hexdigest()
    bundle["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(payload).encode()).decode()
    signature.write_text(json.dumps(bundle))
    with pytest.raises(InvalidSignature):
        Config().use_elliptic_key_verifier(public_key=public).verify(model, signature)


def test_a_model_is_signed_with_a_key_that_the_command_reads(digits_proof: Path, tmp_path: Path) -> None:
    secret = ed25519.Ed25519PrivateKey.generate().private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    (tmp_path / "ed.pem").write_bytes(secret)
    with pytest.raises(UsageError, match="P-256"):
        export(digits_proof, tmp_path / "model.safetensors", key=tmp_path / "ed.pem")
    (tmp_path / "model.safetensors.sig").write_bytes(b"")
    signatures.generate(tmp_path / "key.pem")
    with pytest.raises(UsageError, match=r"sig exists already"):
        export(digits_proof, tmp_path / "model.safetensors", key=tmp_path / "key.pem")
    assert not (tmp_path / "model.safetensors").exists()


def test_a_folder_with_shards_is_the_model(digits_proof: Path, model: dict[str, Tensor], tmp_path: Path) -> None:
    proof = Proof.open(digits_proof)
    assert compare_model(proof, sharded(tmp_path / "whole", model)) == []
    name = sorted(model)[0]
    other = sharded(tmp_path / "other", {**model, name: model[name] + 1})
    assert compare_model(proof, other) == [f"{name} has other values"]
    less = sharded(tmp_path / "less", {key: value for key, value in model.items() if key != name})
    assert compare_model(proof, less) == [f"{name} is missing from the file"]
    twice = sharded(tmp_path / "twice", model)
    save_file(model, twice / "model-00002-of-00002.safetensors")
    assert "stands in two files" in compare_model(proof, twice)[0]


@pytest.mark.parametrize(
    "weight_map",
    [{}, {"w": "../elsewhere.safetensors"}, {"w": "/etc/passwd"}, {"w": "none.safetensors"}, {"w": 7}, [], None],
)
def test_an_index_names_files_of_its_folder_and_no_others(
    weight_map: Any, model: dict[str, Tensor], tmp_path: Path
) -> None:
    (tmp_path / "elsewhere.safetensors").write_bytes(b"")
    folder = sharded(tmp_path / "model", model, weight_map=weight_map)
    with pytest.raises(UsageError):
        weight_files(folder)


def test_no_pickle_is_read(tmp_path: Path, model: dict[str, Tensor]) -> None:
    torch.save(model, tmp_path / "pytorch_model.bin")
    with pytest.raises(UsageError, match=r"pytorch_model\.bin is pickled, and no pickle is read"):
        weight_files(tmp_path)
    save_file(model, tmp_path / "model.safetensors")
    assert weight_files(tmp_path) == [tmp_path / "model.safetensors"]
