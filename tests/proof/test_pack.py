"""A proof as one file: the same file each time, and nothing else is unpacked."""

from __future__ import annotations

import contextlib
import io
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import proof_of_learning as pol
from proof_of_learning.cli.main import app
from proof_of_learning.errors import FormatError, PolError, RecordingError
from proof_of_learning.proof.format import BLOCKS_FILE, HEADER_FILE, INDEX_FILE, LOG_FILE, SEAL_FILE
from support_proofs import contents, recorded

ORDER = (HEADER_FILE, LOG_FILE, BLOCKS_FILE, INDEX_FILE, SEAL_FILE)
BLOCK = 512


@pytest.fixture(scope="module")
def proof(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pack")
    return Path(recorded(folder / "run.pol", codec="quantised").path)


@pytest.fixture(scope="module")
def packed(proof: Path) -> Path:
    target = proof.parent / "run.pol.tar"
    assert pol.pack(proof, target) == target.stat().st_size
    return target


def cli(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def refused(raw: bytes, folder: Path) -> str:
    """Unpacking says no in one line, and leaves nothing behind; returns the line."""
    source = folder / "archive.tar"
    source.write_bytes(raw)
    with pytest.raises(FormatError) as caught:
        pol.unpack(source, folder / "out.pol")
    assert [entry.name for entry in folder.iterdir()] == ["archive.tar"]
    text = str(caught.value)
    assert "\n" not in text and len(text) < 400
    return text


# ---- there and back ----------------------------------------------------------------------------------------


def test_there_and_back_is_the_same_proof(proof: Path, packed: Path, tmp_path: Path) -> None:
    folder = pol.unpack(packed, tmp_path / "deep" / "out.pol")
    assert contents(folder) == contents(proof)
    assert pol.check(folder).status == "pass"
    assert {oct(p.stat().st_mode & 0o777) for p in folder.rglob("*") if p.is_file()} == {"0o644"}
    pol.pack(folder, tmp_path / "again.tar")
    assert (tmp_path / "again.tar").read_bytes() == packed.read_bytes()


def test_the_file_depends_on_nothing_but_the_proof(proof: Path, packed: Path, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(proof, tmp_path / "another name.pol"))
    for path in copy.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    (tmp_path / "out.tar").write_text("what was here before")
    with pytest.raises(PolError, match="exists already"):
        pol.pack(copy, tmp_path / "out.tar")
    assert (tmp_path / "out.tar").read_text() == "what was here before"
    pol.pack(copy, tmp_path / "out.tar", overwrite=True)
    assert (tmp_path / "out.tar").read_bytes() == packed.read_bytes()


def test_a_thinned_proof_is_packed_as_well(proof: Path, tmp_path: Path) -> None:
    thin = pol.thin(proof, 5, tmp_path / "thin.pol").path
    pol.pack(thin, tmp_path / "thin.tar")
    assert contents(pol.unpack(tmp_path / "thin.tar", tmp_path / "out.pol")) == contents(thin)


def test_any_tar_program_opens_it(proof: Path, packed: Path, tmp_path: Path) -> None:
    with tarfile.open(packed) as archive:
        names = archive.getnames()
        archive.extractall(tmp_path / "python", filter="data")
    assert tuple(names[: len(ORDER)]) == ORDER and names[len(ORDER) :] == sorted(names[len(ORDER) :])
    assert contents(tmp_path / "python") == contents(proof)
    (tmp_path / "tar").mkdir()
    subprocess.run(["tar", "-xf", packed, "-C", tmp_path / "tar"], check=True)
    assert contents(tmp_path / "tar") == contents(proof)


# ---- damaged --------------------------------------------------------------------------------------------------


def test_a_changed_byte_is_refused_or_found_by_check(packed: Path, tmp_path: Path) -> None:
    raw, chance, unpacked = packed.read_bytes(), random.Random(0), 0
    # The first header's fields (the rest of it is empty), the end, and some of everything else.
    spots = [*range(0, 160, 3), *range(160, BLOCK, 50), *range(len(raw) - 2 * BLOCK, len(raw), 90), len(raw) - 1]
    spots += chance.sample(range(len(raw)), 60)
    for spot in spots:
        changed = bytearray(raw)
        changed[spot] ^= 1 << chance.randrange(8)
        source = tmp_path / "archive.tar"
        source.write_bytes(changed)
        try:
            folder = pol.unpack(source, tmp_path / "out.pol")
        except FormatError:
            pass
        else:
            unpacked += 1
            with contextlib.suppress(FormatError):
                assert pol.check(folder).status == "fail", spot
            shutil.rmtree(folder)
        assert [entry.name for entry in tmp_path.iterdir()] == ["archive.tar"]
    assert 0 < unpacked < len(spots)


def test_every_beginning_is_refused(packed: Path, tmp_path: Path) -> None:
    raw, chance = packed.read_bytes(), random.Random(1)
    for length in {0, 1, BLOCK - 1, BLOCK, BLOCK + 1, len(raw) - 1, len(raw) - BLOCK, len(raw) - 2 * BLOCK,
                   *chance.sample(range(len(raw)), 60)}:  # fmt: skip
        refused(raw[:length], tmp_path)


@pytest.mark.parametrize("more", [b"\0", bytes(BLOCK), bytes(8192), b"x", b"x" * BLOCK, "itself"])
def test_what_follows_the_end_is_refused(more: bytes | str, packed: Path, tmp_path: Path) -> None:
    raw = packed.read_bytes()
    refused(raw + (raw if isinstance(more, str) else more), tmp_path)


@pytest.mark.parametrize("raw", [b"", b"hello\n", bytes(BLOCK), bytes(10240), b"\x1f\x8b" + bytes(600), b"\xff" * 2048])
def test_what_is_no_archive_is_refused(raw: bytes, tmp_path: Path) -> None:
    refused(raw, tmp_path)


# ---- hostile -------------------------------------------------------------------------------------------------

Members = list[tuple[tarfile.TarInfo, bytes]]


def members(packed: Path) -> Members:
    with tarfile.open(packed) as archive:
        return [(entry, archive.extractfile(entry).read()) for entry in archive.getmembers()]  # type: ignore[union-attr]


def built(items: Members, format: int = tarfile.GNU_FORMAT) -> bytes:
    """The archive of ``items`` as Python writes it, ending as ours does."""
    out = io.BytesIO()
    for entry, raw in items:
        out.write(entry.tobuf(format, "ascii", "surrogateescape") + raw + bytes(-len(raw) % BLOCK))  # type: ignore[arg-type]
    return out.getvalue() + bytes(2 * BLOCK)


def file(name: str, raw: bytes = b"x", **more: Any) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(raw), 0o644
    for key, value in more.items():
        setattr(entry, key, value)
    return entry, raw


def changed(position: int, **more: Any) -> Callable[[Members], Members]:
    def change(items: Members) -> Members:
        for key, value in more.items():
            setattr(items[position][0], key, value)
        return items

    return change


def added(name: str, raw: bytes = b"x", **more: Any) -> Callable[[Members], Members]:
    return lambda items: [*items, file(name, raw, **more)]


def special(kind: bytes, **more: Any) -> Callable[[Members], Members]:
    """In place of the last object something that is no file, under the name that an object has."""
    return lambda items: [*items[:-1], file(items[-1][0].name, b"", type=kind, **more)]


LATE = "objects/ff/" + "f" * 64  # a name that an object may have, behind all others
HOSTILE: dict[str, Callable[[Members], Members]] = {
    "a way out": added("../evil"),
    "a way out among the objects": added("objects/ff/../../../evil"),
    "a way out in place of the header": changed(0, name="../header.json"),
    "an absolute path": added("/tmp/evil"),
    "an absolute path to an object": added("/" + LATE),
    "a path with a dot": added("./" + LATE),
    "a path with two slashes": added("objects//ff/" + "f" * 64),
    "a name with a newline": added("objects/ff/" + "f" * 63 + "\n"),
    "a name with a newline at its end": added(LATE + "\n"),
    "a name in capitals": added(LATE.replace("f" * 64, "F" * 64)),
    "another folder": added("objects/fe/" + "f" * 64),
    "an unknown file": added("notes.txt"),
    "a name that is no text": added("objects/ff/\udcff"),
    "a folder": special(tarfile.DIRTYPE),
    "a link": special(tarfile.SYMTYPE, linkname="/etc/passwd"),
    "a hard link": special(tarfile.LNKTYPE, linkname="header.json"),
    "a device": special(tarfile.CHRTYPE, devmajor=1, devminor=3),
    "a block device": special(tarfile.BLKTYPE),
    "a pipe": special(tarfile.FIFOTYPE),
    "a sparse file": special(tarfile.GNUTYPE_SPARSE),
    "an old spelling of a file": changed(-1, type=tarfile.AREGTYPE),
    "a link in place of the log": lambda items: [items[0], file("log.jsonl", b"", type=tarfile.SYMTYPE, linkname="x"), *items[2:]],
    "an object twice": lambda items: [*items, items[-1]],
    "the header twice": lambda items: [items[0], *items],
    "the header again at the end": lambda items: [*items, items[0]],
    "no seal": lambda items: [*items[:4], *items[5:]],
    "nothing": lambda items: [],
    "another order": lambda items: [items[1], items[0], *items[2:]],
    "objects in another order": lambda items: [*items[:-2], items[-1], items[-2]],
    "a time": changed(0, mtime=1),
    "an owner": changed(0, uid=1000),
    "a user": changed(0, uname="root"),
    "other rights": changed(0, mode=0o4755),
    "a long name": added("objects/ff/" + "f" * 200),
    "a name longer than any": added("x" * 100_000),
    "a comment": changed(0, pax_headers={"comment": "hello"}),
    "another name by an extended header": changed(0, pax_headers={"path": "../evil"}),
    "another size by an extended header": changed(0, pax_headers={"size": "1"}),
}  # fmt: skip


def test_the_tools_of_these_tests_build_what_pack_builds(packed: Path) -> None:
    assert built(members(packed)) == packed.read_bytes()


@pytest.mark.parametrize("change", HOSTILE.values(), ids=HOSTILE)
def test_members_that_no_packed_proof_has_are_refused(
    change: Callable[[Members], Members], packed: Path, tmp_path: Path
) -> None:
    items = change(members(packed))
    extended = any(entry.pax_headers for entry, _ in items)
    refused(built(items, tarfile.PAX_FORMAT if extended else tarfile.GNU_FORMAT), tmp_path)


@pytest.mark.parametrize("size", [0, 1, 511, 512, 10**6, 8**11 - 1, 8**11, 2**62, 2**70, -1])
@pytest.mark.parametrize("position", [0, 4, -1])
def test_sizes_that_lie_are_refused(position: int, size: int, packed: Path, tmp_path: Path) -> None:
    items = members(packed)
    assert items[position][0].size != size
    items[position][0].size = size
    source = tmp_path / "archive.tar"
    source.write_bytes(built(items))
    with pytest.raises(FormatError):  # a smaller one, within the same block, unpacks into what `check` refuses
        pol.check(pol.unpack(source, tmp_path / "out.pol"))


# ---- the place ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["file", "full folder", "below a file"])
def test_what_is_there_is_not_touched(kind: str, packed: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    if kind == "full folder":
        out.mkdir()
        (out / "mine").write_text("hello")
    else:
        out.write_text("hello")
    before = contents(tmp_path)
    with pytest.raises(RecordingError) as caught:
        pol.unpack(packed, out / "below" if kind == "below a file" else out)
    assert "\n" not in str(caught.value)
    assert contents(tmp_path) == before


def test_an_empty_folder_may_be_used(proof: Path, packed: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    assert contents(pol.unpack(packed, tmp_path / "out")) == contents(proof)


@pytest.mark.parametrize("kind", ["nothing", "a folder", "a link", "a pipe"])
def test_what_is_no_file_is_refused(kind: str, packed: Path, tmp_path: Path) -> None:
    source = tmp_path / "archive"
    if kind == "a folder":
        source.mkdir()
    elif kind == "a link":
        source.symlink_to(packed)
    elif kind == "a pipe":
        os.mkfifo(source)
    with pytest.raises(FormatError):
        pol.unpack(source, tmp_path / "out.pol")
    assert not (tmp_path / "out.pol").exists()


def test_packing_what_is_no_proof_or_to_no_place_writes_nothing(proof: Path, tmp_path: Path) -> None:
    broken = Path(shutil.copytree(proof, tmp_path / "broken.pol"))
    (broken / SEAL_FILE).unlink()
    for source, out in (
        (broken, tmp_path / "x.tar"), (tmp_path / "none.pol", tmp_path / "x.tar"),
        (proof, tmp_path / "none" / "x.tar"), (proof, broken), (proof, proof / "x.tar"), (proof, proof / "objects" / "x.tar"),
    ):  # fmt: skip
        with pytest.raises(PolError) as caught:
            pol.pack(source, out)
        assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["broken.pol"]
    assert pol.check(proof).status == "pass"


@pytest.mark.parametrize("work", ["pack", "unpack"])
def test_an_interrupt_leaves_nothing(work: str, proof: Path, packed: Path, tmp_path: Path) -> None:
    def stop(done: int, total: int) -> None:
        if 0 < done < total:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        (pol.pack if work == "pack" else pol.unpack)(proof if work == "pack" else packed, tmp_path / "out", stop)
    assert not list(tmp_path.iterdir())


# ---- the command -----------------------------------------------------------------------------------------------


def test_the_commands(proof: Path, packed: Path, tmp_path: Path) -> None:
    assert cli("pack", proof, "-o", tmp_path / "run.tar").exit_code == 0
    assert cli("unpack", tmp_path / "run.tar", "-o", tmp_path / "run.pol").exit_code == 0
    assert cli("check", tmp_path / "run.pol").exit_code == 0
    (tmp_path / "cut.tar").write_bytes(packed.read_bytes()[:-700])
    for arguments in (
        ("pack", tmp_path / "none", "-o", tmp_path / "x"),
        ("pack", proof, "-o", tmp_path / "none" / "x"),
        ("unpack", tmp_path / "none.tar", "-o", tmp_path / "x"),
        ("unpack", tmp_path / "cut.tar", "-o", tmp_path / "x"),
        ("unpack", tmp_path / "run.tar", "-o", tmp_path / "run.pol"),
    ):
        result = cli(*arguments)
        lines = [line for line in result.stderr.splitlines() if line.strip()]
        assert (result.exit_code, len(lines)) == (2, 1), result.output
        assert lines[0].startswith("pol: ")
        assert not (tmp_path / "x").exists()
