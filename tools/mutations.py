"""What the fuzzer starts from, small proofs of every kind, and the damage it does to them."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import zstandard
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import proof_of_learning as pol
from proof_of_learning import canonical
from proof_of_learning.errors import PolError
from proof_of_learning.proof import format
from proof_of_learning.proof.codecs import NAMES, get_codec
from proof_of_learning.replay.measure import displacement

Random = random.Random
Files = dict[str, bytes]
_FRAME = struct.Struct("<I")
WIDE = 800  # outputs: enough weights that the lossless codec predicts them


def task(outputs: int = 2) -> pol.Task:
    """Four parameters an output, three segments."""
    x = torch.arange(24.0).reshape(8, 3) / 16 - 0.7
    return pol.Task(
        name="small",
        model=lambda: nn.Linear(3, outputs),
        data=lambda: TensorDataset(x, x.sum(1, keepdim=True).expand(8, outputs).contiguous()),
        optimizer=lambda model: torch.optim.Adam(model.parameters(), lr=0.05),
        loss=lambda model, batch: F.mse_loss(model(batch[0]), batch[1]),
        evaluate=lambda model: {"mean": float(model(x).mean())},
        batch_size=4,
        steps=6,
    )


@dataclass
class Seed:
    """An honest proof: its files and its root."""

    name: str
    files: Files
    root: str
    outputs: int = 2


def observed(path: Path) -> None:
    """The same training by a loop of its own."""
    mine = task()
    torch.manual_seed(0)
    model = mine.model()
    optimizer = mine.optimizer(model)
    with pol.Recorder.observe(path, mine, {"model": model, "optimizer": optimizer}, interval=2) as recorder:
        while not recorder.finished:
            for batch in recorder.watch(DataLoader(pol.Indexed(mine.data()), batch_size=4, shuffle=True)):  # type: ignore[arg-type]
                loss = F.mse_loss(model(batch[0]), batch[1])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad()
                recorder.loss(loss)
        recorder.close()


def seeds(folder: Path) -> list[Seed]:
    """The proofs that are mutated."""
    for codec in NAMES:
        pol.prove(task(), folder / codec, interval=2, codec=codec)
    pol.thin(folder / "raw", 2, folder / "thinned")
    observed(folder / "observed")
    pol.prove(task(WIDE), folder / "predicted", interval=2, codec="lossless")
    names = [*NAMES, "thinned", "observed", "predicted"]
    wide = {"predicted": WIDE}
    return [Seed(n, load(folder / n), pol.Proof.open(folder / n).root, wide.get(n, 2)) for n in names]


def load(folder: Path) -> Files:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ---- making it consistent again ---------------------------------------------------------------------------


def rows(raw: bytes) -> list[Any]:
    return [json.loads(line) for line in raw.splitlines()]


def chained(lines: list[Any], head: str) -> tuple[bytes, str]:
    out = []
    for line in lines:
        raw = plain({**line, "prev": head} if isinstance(line, dict) else line)
        head = format.line_digest(raw)
        out.append(raw + b"\n")
    return b"".join(out), head


def plain(value: Any) -> bytes:
    """Canonical JSON, or the nearest thing where there is none."""
    with suppress(PolError, ValueError):
        return canonical.encode(value)
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def consistent(files: Files, log: list[Any] | None = None, index: list[Any] | None = None) -> None:
    """Chains, root and seal of whatever the documents now say."""
    start = format.header_digest(files[format.HEADER_FILE])
    log = rows(files[format.LOG_FILE]) if log is None else log
    index = rows(files[format.INDEX_FILE]) if index is None else index
    files[format.LOG_FILE], head = chained(log, start)
    files[format.INDEX_FILE], index_head = chained(index, format.index_start(start))
    seal = json.loads(files[format.SEAL_FILE])
    segments = sum(isinstance(line, dict) and line.get("kind") == "segment" for line in log)
    seal |= {"root": format.root(start, head), "index": index_head, "segments": segments}
    files[format.SEAL_FILE] = plain(seal)


# ---- damage -------------------------------------------------------------------------------------------------


def bent(raw: bytes, chance: Random) -> bytes:
    """Other bytes: flipped, cut, inserted, doubled, removed."""
    out = bytearray(raw)
    for _ in range(chance.choice([1, 1, 1, 2, 5])):
        at, length = chance.randrange(len(out) + 1), chance.choice([1, 1, 2, 4, 8, 64])
        match chance.randrange(7):
            case 0 | 1 if at < len(out):
                out[at] ^= 1 << chance.randrange(8)
            case 2 if at < len(out):
                out[at] = chance.choice([0, 1, 127, 128, 255, 32, 34, 123, 125])
            case 3:
                del out[at:]
            case 4:
                out[at:at] = chance.randbytes(length)
            case 5:
                out[at:at] = out[at : at + length]
            case _:
                del out[at : at + length]
    return bytes(out)


def strange(chance: Random, files: Files, old: Any) -> Any:
    """A value that a field should not have, or that another one has."""
    numbers = [
        0,
        1,
        -1,
        2,
        3,
        7,
        2**31,
        2**32,
        2**48,
        2**53 - 1,
        2**53,
        2**63,
        2**64,
        10**30,
        0.5,
        -0.0,
        1e-300,
        1e300,
        1.5,
    ]
    texts = [
        "",
        "0",
        "x",
        "../x",
        "nan",
        "inf",
        "-1",
        "é",
        "\0",
        "\ud800",
        "a" * 5000,
        "raw",
        "quantised",
        "compact",
        "float32",
        "int64",
    ]
    match chance.randrange(9):
        case 0 | 1:
            return chance.choice(numbers)
        case 2:
            return chance.choice(texts)
        case 3:
            return chance.choice([None, True, False, [], {}, [[]], {"": 0}, [2**52, 2**52, 0], [2**40], [-1, 0]])
        case 4:
            deep: Any = 0
            for _ in range(chance.choice([5, 63, 64, 65, 2000])):
                deep = [deep]
            return deep
        case 5 if isinstance(old, (int, float)) and not isinstance(old, bool):
            return old + chance.choice([1, -1, 1e-9, 0.1, old])
        case 6 if isinstance(old, str):
            return bent(old.encode("utf-8", "replace"), chance).decode("utf-8", "replace")
        case 7:
            names = [line.get("state") for line in rows(files[format.LOG_FILE]) if isinstance(line, dict)]
            return chance.choice([name for name in names if name] or [""])
    return old


def edited(value: Any, chance: Random, files: Files) -> Any:
    """A copy of a JSON value with one thing changed somewhere inside."""
    root = [json.loads(json.dumps(value))]
    node: Any = root
    key: Any = 0
    while isinstance(node[key], (dict, list)) and node[key] and chance.random() < 0.9:
        node = node[key]
        key = chance.choice(sorted(node) if isinstance(node, dict) else range(len(node)))
    match chance.randrange(8):
        case 0 if node is not root:
            del node[key]
        case 1 if isinstance(node, dict):
            node[chance.choice(["", "x", "kind", key + "x"])] = node[key]
        case 2 if isinstance(node, list) and node is not root:
            node.insert(key, node[chance.randrange(len(node))])
        case 3 if isinstance(node, list) and node is not root:
            chance.shuffle(node)
        case _:
            node[key] = strange(chance, files, node[key])
    return root[0]


def bend_file(files: Files, chance: Random) -> None:
    name = chance.choice(sorted(files))
    files[name] = bent(files[name], chance)


def swap_files(files: Files, chance: Random) -> None:
    one, other = chance.choice(sorted(files)), chance.choice(sorted(files))
    match chance.randrange(4):
        case 0:
            files[one], files[other] = files[other], files[one]
        case 1:
            files[one] = files[other]
        case 2:
            del files[one]
        case _:
            files[chance.choice(["x", ".tmp-x", "objects/x", "objects/ab/" + "ab" * 32, one + "x"])] = files[other]


def shuffle_lines(files: Files, chance: Random) -> None:
    name = chance.choice([format.LOG_FILE, format.INDEX_FILE])
    lines = rows(files[name])
    one, other = chance.randrange(len(lines)), chance.randrange(len(lines))
    match chance.randrange(3):
        case 0:
            lines[one], lines[other] = lines[other], lines[one]
        case 1:
            lines.insert(one, lines[other])
        case _:
            del lines[one]
    consistent(files, **{"log" if name == format.LOG_FILE else "index": lines})


def edit_header(files: Files, chance: Random) -> None:
    header = edited(json.loads(files[format.HEADER_FILE]), chance, files)
    if chance.random() < 0.8:
        with suppress(KeyError, TypeError, PolError):
            header["task"]["digest"] = canonical.sha256(b"pol/v1/task\0", plain(header["task"]["description"]))
    files[format.HEADER_FILE] = plain(header)
    consistent(files)


def edit_log(files: Files, chance: Random) -> None:
    log = rows(files[format.LOG_FILE])
    at = chance.randrange(len(log))
    log[at] = edited(log[at], chance, files)
    if isinstance(log[at], dict) and isinstance(log[at].get("environment"), dict):  # an environment has its digest
        digest = canonical.sha256(b"pol/v1/environment\0", plain(log[at]["environment"]))
        for line in log:
            if isinstance(line, dict) and isinstance(line.get("environment"), str):
                line["environment"] = digest
        log[at]["digest"] = digest
    consistent(files, log=log)


def edit_index(files: Files, chance: Random) -> None:
    index = rows(files[format.INDEX_FILE])
    at = chance.randrange(len(index))
    index[at] = edited(index[at], chance, files)
    consistent(files, index=index)


def edit_seal(files: Files, chance: Random) -> None:
    files[format.SEAL_FILE] = plain(edited(json.loads(files[format.SEAL_FILE]), chance, files))


def edit_object(files: Files, chance: Random) -> None:
    """Another object under the name of its bytes; mostly also the digest of the state that it now holds, and all that follows."""
    index, log = rows(files[format.INDEX_FILE]), rows(files[format.LOG_FILE])
    line = chance.choice(index)
    old = line["object"][7:]
    path = f"objects/{old[:2]}/{old}"
    raw = files[path]
    changed = edited_raw(raw, chance, files) if line["codec"] == "raw" else edited_frames(raw, chance, files)
    name = canonical.sha256(changed)[7:]
    files.pop(path)
    files[f"objects/{name[:2]}/{name}"] = changed
    line |= {"object": f"sha256:{name}", "bytes": len(changed)}
    if chance.random() < 0.8:
        with suppress(PolError):
            follow(files, index, log, line, chance)
    consistent(files, log=log, index=index)


def follow(files: Files, index: list[Any], log: list[Any], line: Any, chance: Random) -> None:
    """Give every state the digest that it has now, and every segment the displacement between its ends."""
    states: dict[str, Any] = {}
    renamed: dict[str, str] = {}
    for item in index:
        name = item["object"][7:]
        base = states.get(renamed.get(item["base"], item["base"]))
        state = get_codec(item["codec"]).decode(bytearray(files[f"objects/{name[:2]}/{name}"]), base)
        renamed[item["state"]] = state.digest()
        states[state.digest()] = state
        item |= {"state": state.digest(), "base": renamed.get(item["base"], item["base"])}
    before = None
    for entry in log:
        for key in ("state", "arrived"):
            if key in entry:
                entry[key] = renamed.get(entry[key], entry[key])
        if entry["kind"] in ("start", "segment"):
            after = states.get(entry["state"])
            if before is not None and after is not None:
                moved = displacement(before, after)
                entry["displacement"] = {"state": moved.state, "weights": moved.weights}
            before = after
        if entry["kind"] == "end" and before is not None:
            with suppress(PolError):
                entry["final_weights"] = before.part("model").digest()


def edited_raw(raw: bytes, chance: Random, files: Files) -> bytes:
    """A safetensors file with another header, or other values."""
    (size,) = struct.unpack_from("<Q", raw)
    if chance.random() < 0.5:
        return raw[: 8 + size] + values_bent(raw[8 + size :], chance)
    header = json.loads(raw[8 : 8 + size])
    if "__metadata__" in header and chance.random() < 0.5:
        tree = edited(json.loads(header["__metadata__"]["pol"]), chance, files)
        header["__metadata__"]["pol"] = plain(tree).decode("utf-8", "replace")
    else:
        header = edited(header, chance, files)
    text = plain(header)
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text + raw[8 + size :]


def values_bent(raw: bytes, chance: Random) -> bytes:
    """Other values in the same place."""
    out = bytearray(raw)
    for _ in range(chance.choice([1, 1, 3])):
        if out:
            at = chance.randrange(len(out)) // 4 * 4
            new = chance.choice(
                [b"\0\0\xc0\x7f", b"\0\0\x80\x7f", b"\xff\xff\xff\xff", b"\0\0\0\x80", b"\1\0\0\0", chance.randbytes(4)]
            )
            out[at : at + 4] = new[: len(out) - at]
    return bytes(out)


def edited_frames(raw: bytes, chance: Random, files: Files) -> bytes:
    """An object of the container with one frame's content changed."""
    frames, at = [], 0
    while at < len(raw):
        (size,) = _FRAME.unpack_from(raw, at)
        frames.append(raw[at + 4 : at + 4 + size])
        at += 4 + size
    pick = 0 if chance.random() < 0.5 else chance.randrange(len(frames))
    content = zstandard.decompress(frames[pick])
    if pick == 0 and chance.random() < 0.9:
        content = plain(edited(json.loads(content), chance, files))
    else:
        content = values_bent(content, chance) if chance.random() < 0.7 else bent(content, chance)
    frames[pick] = zstandard.compress(content) if chance.random() < 0.95 else bent(frames[pick], chance)
    return b"".join(_FRAME.pack(len(frame)) + frame for frame in frames)


def edit_block(files: Files, chance: Random) -> None:
    log = rows(files[format.LOG_FILE])
    segments = [line for line in log if line["kind"] == "segment"]
    chosen, blocks, at = chance.randrange(len(segments)), [], 0
    for line in segments:
        blocks.append(files[format.BLOCKS_FILE][at : at + line["block"]["bytes"]])
        at += line["block"]["bytes"]
    blocks[chosen] = (
        edited_raw(blocks[chosen], chance, files) if chance.random() < 0.8 else bent(blocks[chosen], chance)
    )
    segments[chosen]["block"] = {"digest": canonical.sha256(blocks[chosen]), "bytes": len(blocks[chosen])}
    files[format.BLOCKS_FILE] = b"".join(blocks)
    consistent(files, log=log)


DAMAGE: list[tuple[Callable[[Files, Random], None], int]] = [
    (bend_file, 12), (swap_files, 4), (shuffle_lines, 5), (edit_header, 18), (edit_log, 18), (edit_index, 10), (edit_seal, 2),
    (edit_object, 24), (edit_block, 10),
]  # fmt: skip
