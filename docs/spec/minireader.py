"""A second reader of proof format versions 1 and 2, written from ``format.md`` alone: no PyTorch, no NumPy, no package code.

``python minireader.py DIR`` checks canonical form, both hash chains, the root, the list of files, every object, every state
digest and every block, and prints the root. It judges nothing beyond that: what a proof *claims* is for a verifier to replay.
Numbers in brackets are sections of ``format.md``. It reads every file whole, where a real reader would bound sizes first.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

FILES = {"header.json", "log.jsonl", "blocks.bin", "index.jsonl", "seal.json", "objects"}
TYPES = {  # safetensors' name: (our name, bytes per element)                                                    [7]
    "BOOL": ("bool", 1), "U8": ("uint8", 1), "I8": ("int8", 1), "I16": ("int16", 2), "I32": ("int32", 4),
    "I64": ("int64", 8), "U16": ("uint16", 2), "U32": ("uint32", 4), "U64": ("uint64", 8), "F16": ("float16", 2),
    "BF16": ("bfloat16", 2), "F32": ("float32", 4), "F64": ("float64", 8), "F8_E4M3": ("float8_e4m3fn", 1),
    "F8_E5M2": ("float8_e5m2", 1), "C64": ("complex64", 8),
}  # fmt: skip


def need(condition: bool, message: str) -> None:
    if not condition:
        raise ValueError(message)


def sha256(*parts: bytes) -> str:
    return "sha256:" + hashlib.sha256(b"".join(parts)).hexdigest()


def canonical(value: Any) -> bytes:  # [2]
    if isinstance(value, dict):
        keys = sorted(value, key=lambda key: key.encode("utf-16-be"))
        return b"{" + b",".join(canonical(key) + b":" + canonical(value[key]) for key in keys) + b"}"
    if isinstance(value, list):
        return b"[" + b",".join(map(canonical, value)) + b"]"
    if isinstance(value, float):
        return number(value)
    need(not isinstance(value, int) or abs(value) < 2**53, "an integer is too large")
    return json.dumps(value, ensure_ascii=False).encode()


def number(value: float) -> bytes:  # [2] ECMAScript's Number::toString over the shortest digits
    need(math.isfinite(value), "a number is not finite")
    if value == 0:
        return b"0"
    mantissa, _, power = f"{abs(value)!r}".partition("e")
    whole, _, fraction = mantissa.partition(".")
    digits, point = (whole + fraction).lstrip("0"), len(whole) + int(power or 0)
    point -= len(whole + fraction) - len(digits)
    digits = digits.rstrip("0")
    if 0 < point <= 21:
        left, right = digits[:point].ljust(point, "0"), digits[point:]
        text = left + ("." + right if right else "")
    elif -6 < point <= 0:
        text = "0." + "0" * -point + digits
    else:
        text = digits[0] + ("." + digits[1:] if digits[1:] else "") + f"e{point - 1:+d}"
    return ("-" * (value < 0) + text).encode()


def document(raw: bytes, what: str) -> Any:
    value = json.loads(raw)
    need(canonical(value) == raw, f"{what} is not canonical JSON")
    return value


def chain(
    raw: bytes, head: str, what: str, tag: bytes
) -> tuple[list[Any], str]:  # [4] the lines, and the digest of the last
    need(raw == b"" or raw.endswith(b"\n"), f"{what} is cut short")
    lines = []
    for number, line in enumerate(raw.split(b"\n")[:-1], 1):
        lines.append(document(line, f"{what}, line {number}"))
        need(lines[-1]["prev"] == head, f"{what}, line {number}: the chain is broken")
        head = sha256(tag + b"line\0", line)
    return lines, head


def tensors(raw: bytes) -> tuple[dict[str, Any], dict[str, str]]:  # [7] {name: [type, shape, bytes]}, metadata
    size = int.from_bytes(raw[:8], "little")
    text = raw[8 : 8 + size].rstrip(b" ")
    header = document(text, "an object's header")
    need(size == -(-len(text) // 8) * 8, "an object's header is padded wrongly")
    metadata, found, position = header.pop("__metadata__", {}), {}, 0
    for name in sorted(header, key=lambda name: (-TYPES[header[name]["dtype"]][1], name)):
        entry = header[name]
        kind, width = TYPES[entry["dtype"]]
        end = position + width * math.prod(entry["shape"])
        need(
            entry == {"dtype": entry["dtype"], "shape": entry["shape"], "data_offsets": [position, end]}, "wrong layout"
        )
        found[name] = [kind, entry["shape"], raw[8 + size + position : 8 + size + end]]
        need(kind != "bool" or max(found[name][2], default=0) <= 1, "a boolean is neither 0 nor 1")
        position = end
    need(len(raw) == 8 + size + position, "an object has another size than its header says")
    return found, metadata


def state_digest(tree: Any, content: dict[str, Any]) -> str:  # [6]
    described = {
        name: [kind, shape, sha256(b"pol/v1/tensor\0", f"{kind}{shape}\0".encode(), data)[7:]]
        for name, (kind, shape, data) in content.items()
    }
    return sha256(b"pol/v1/state\0", canonical({"tensors": described, "tree": tree}))


def check(folder: Path) -> str:
    """The root of the proof in ``folder``; ValueError (KeyError, TypeError) for one that contradicts itself."""
    need({path.name for path in folder.iterdir()} - {"attestations"} == FILES, "a file is missing or unexpected")
    for path in folder.glob("attestations/*"):  # [17]
        fits = re.fullmatch(r"(claim|head|seal|recovery|gaps)-([0-9a-f]{16})\.(dsse\.json|json|tsr)", path.name)
        need(
            fits is not None and sha256(path.read_bytes())[7:23] == fits[2], "an attestation is not what its name says"
        )
    raw = {name: (folder / name).read_bytes() for name in FILES - {"objects"}}
    header, seal = document(raw["header.json"], "header.json"), document(raw["seal.json"], "seal.json")
    version = {"pol/proof/v1": 1, "pol/proof/v2": 2}.get(header["format"], 0)
    need(version > 0 and seal["schema"] == f"pol/seal/v{version}", "another version of the format")
    tag = f"pol/v{version}/".encode()
    need(header["codec"] == {"in_loop": False, "name": "raw", "options": {}, "version": 1}, "another codec")
    task, training = header["task"], header["training"]
    need(sha256(b"pol/v1/task\0", canonical(task["description"])) == task["digest"], "the task's digest is wrong")
    top = sha256(tag + b"header\0", raw["header.json"])
    planned = training["steps"] if version == 1 else training["planned"]
    if version > 1:  # [15]
        neutral = [
            header["arithmetic"],
            header["program"]["kind"] in ("task", "script"),
        ]
        need(neutral == ["native", True], "what is only reserved yet")
        ranks = header["ranks"]
        alone = header["program"]["kind"] == "script" and header["randomness"]["mode"] == "recorded"
        need(1 <= ranks <= 8 and (ranks == 1 or alone), "another number of processes")
        own = {name: name.rpartition("@") for name in header["parts"] if re.fullmatch(r"(?s).*@[0-9]+", name)}
        bases = {base for base, _, _ in own.values()}
        need(set(own) == {f"{base}@{rank}" for base in bases for rank in range(1, ranks)}, "parts of other processes")
        kinds_ = [(header["parts"][name], header["parts"].get(base)) for name, (base, _, _) in own.items()]
        need(
            all(its == of and of in ("module", "stateful") for its, of in kinds_),
            "a part that no process has of its own",
        )
        program = task["description"].get("program")
        held = None if program is None else sha256(b"pol/v1/program\0", canonical(program))
        need(header["program"]["sealed"] == held, "the sealed program has another digest")
        anchor, claim = header["randomness"]["anchor"], header["randomness"]["claim"]
        need(anchor is None or claim is not None, "a timestamp of no claim")
        need(header["parts"]["model"] == "module" and header["parts"]["progress"] == "progress", "no model, or no step")

    log, head = chain(raw["log.jsonl"], top, "log.jsonl", tag)  # [4]
    kinds = [line["kind"] for line in log]
    need(kinds[0] == "start" and kinds[-1] == "end", "the log has no start or no end")
    between = {"segment", "environment", "event"} if version > 1 else {"segment", "environment"}
    need(set(kinds[1:-1]) <= between, "the log has lines out of place")
    segments = [line for line in log if line["kind"] == "segment"]
    steps = planned if version == 1 else log[-1]["steps"]
    need(len(segments) == -(-steps // training["interval"]) == seal["segments"], "segments are missing")
    if version > 1 and planned is not None:
        need(
            steps <= planned and log[-1]["ended"] == ("completed" if steps == planned else "stopped"), "another length"
        )
    reached = number = 0  # of the segments so far: steps, and how many
    for line in log:
        if line["kind"] == "segment":
            reached, number = line["stop"], number + 1
        elif line["kind"] == "event":
            need(number < len(segments) and reached <= line["step"] < segments[number]["stop"], "an event out of place")
    for line in log:
        if line["kind"] == "environment":
            own = sha256(b"pol/v1/environment\0", canonical(line["environment"]))
            need(own == line["digest"], "an environment's digest is wrong")
    for index, segment in enumerate(segments):
        start, stop = index * training["interval"], min((index + 1) * training["interval"], steps)
        need([segment["index"], segment["start"], segment["stop"]] == [index, start, stop], "a segment is out of order")
        need(segment["arrived"] == segment["state"], "training goes on from another state than it arrived at")
    need(sha256(tag + b"root\0", top.encode(), b"\0", head.encode()) == seal["root"], "the root is another one")

    offset = 0  # [5]
    for segment in segments:
        size, digest = segment["block"]["bytes"], segment["block"]["digest"]
        need(sha256(raw["blocks.bin"][offset : offset + size]) == digest, f"block {segment['index']} is another one")
        columns, metadata = tensors(raw["blocks.bin"][offset : offset + size])
        need(columns["loss"][:2] == ["float64", [segment["stop"] - segment["start"]]] and not metadata, "wrong columns")
        for rank in range(1, 1 if version == 1 else header["ranks"]):
            wanted = {f"rank/{rank}/{name}" for name in ("lengths", "indices", "loop", "loop/lengths")}
            need(wanted <= set(columns), f"process {rank} did not say what it drew")
        further = {name.split("/")[1] for name in columns if name.startswith("rank/")}
        need(further == {str(rank) for rank in range(1, header.get("ranks", 1))}, "columns of other processes")
        offset += size
    need(offset == len(raw["blocks.bin"]), "blocks.bin has another size")

    index, head = chain(raw["index.jsonl"], sha256(tag + b"index\0", top.encode()), "index.jsonl", tag)  # [8]
    need(head == seal["index"], "the index is not the one in the seal")
    states = [log[0]["state"], *(segment["state"] for segment in segments)]
    need(len(set(states)) == len(states), "a state stands twice in the log")  # [4]
    need(all(line["base"] is None for line in index), "the raw codec has no differences")
    need({line["state"] for line in index} <= set(states), "the index stores a state that is not in the log")
    need(len({line["state"] for line in index}) == len(index), "the index stores a state twice")
    names = {line["object"][7:] for line in index}
    found = {path.relative_to(folder / "objects").as_posix() for path in (folder / "objects").glob("**/*")}
    wanted = {f"{name[:2]}/{name}" for name in names} | {name[:2] for name in names}
    need(found == wanted, "an object is missing or unexpected")
    for line in index:
        name = line["object"][7:]
        content = (folder / "objects" / name[:2] / name).read_bytes()
        need(sha256(content) == line["object"] and len(content) == line["bytes"], "an object is not what its name says")
        held, metadata = tensors(content)
        tree = document(metadata["pol"].encode(), "a state's tree")
        need(state_digest(tree, held) == line["state"], "an object holds another state")
        need(version == 1 or {item[0][2:] for item in tree["d"]} == set(header["parts"]), "a state has other parts")
        for key, node in tree["d"]:
            if version > 1 and "@" in key and header["parts"][key[2:]] == "module":
                need({item[0] for item in node["d"]} <= {"s:buffers", "s:extra"}, "a process has other weights")
        if line["state"] == states[-1]:
            part = {"d": [item for item in tree["d"] if item[0] == "s:model"]}
            model = {name: value for name, value in held.items() if name.startswith("model/")}
            need(state_digest(part, model) == log[-1]["final_weights"], "the final weights are other ones")  # [6]
    return str(seal["root"])


if __name__ == "__main__":
    print(check(Path(sys.argv[1])))
