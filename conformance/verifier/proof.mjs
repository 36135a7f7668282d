// A proof: structure and digests (format.md, sections 1 to 9 and 15). Nothing is replayed, and nothing executed.

import fs from "node:fs";
import path from "node:path";

import { agree, brief, digest, entries, fileDigest, hash, lines, need, open, read, readAt, Refusal } from "./basics.mjs";
import * as documents from "./documents.mjs";
import { close, displacement, parts, state, stateDigest, tensors } from "./tensors.mjs";

const MAX = { header: 64 << 20, seal: 4096, log: 4 * 2 ** 30, line: 1 << 20, block: 2 ** 30, attestation: 2 << 20, attested: 16 << 20 };
const FILES = ["header.json", "log.jsonl", "blocks.bin", "index.jsonl", "seal.json"];
const FOLDERS = ["objects", "attestations"];
export const ATTESTATION = /^(claim|head|seal|recovery|gaps)-([0-9a-f]{16})\.(dsse\.json|json|tsr)$/;

/** Header, log, root, index, attestations and the list of files: checked, and in memory. Blocks and states are not read yet. */
export function openProof(folder) {
  const there = entries(folder);
  for (const entry of there) {
    const directory = FOLDERS.includes(entry.name);
    need(directory || FILES.includes(entry.name), "files.unexpected", `unexpected file in the proof: ${brief(entry.name)}`);
    need(directory ? entry.isDirectory() : entry.isFile(), "files.link", `${entry.name} is a link, or of another kind than it has to be`);
  }
  for (const name of [...FILES, "objects"]) {
    need(there.some((entry) => entry.name === name), "files.missing", `${name} is missing from the proof`);
  }
  const raw = read(path.join(folder, "header.json"), MAX.header);
  const header = documents.header(raw);
  const tag = `pol/v${header.version}/`;
  const first = digest(`${tag}header\0`, raw);
  const seal = documents.seal(read(path.join(folder, "seal.json"), MAX.seal), header.version);
  const log = readLog(folder, header, first, tag);
  const root = digest(`${tag}root\0`, first, "\0", log.head);
  agree(root === seal.root && seal.segments === log.segments.length, "seal.root", "seal.json does not fit header and log: the root is another one");
  const states = [log.initial, ...log.segments.map((segment) => segment.state)];
  agree(new Set(states).size === states.length, "log.states", "the log names one state after different steps");
  const last = log.segments.at(-1);
  const fits = documents.rounded(header, last.stop) || last.arrived === last.state;
  const index = readIndex(folder, header, states, digest(`${tag}index\0`, first), seal, tag);
  agree(fits, "log.arrived", "the last segment ends in another state than training arrived at");
  const size = log.segments.reduce((sum, segment) => sum + segment.block.bytes, 0);
  const held = fs.lstatSync(path.join(folder, "blocks.bin")).size;
  need(held === size, "files.size", `blocks.bin has ${held} bytes; by the log it has ${size}`);
  checkObjects(folder, index);
  const attestations = there.some((entry) => entry.name === "attestations") ? readAttestations(path.join(folder, "attestations")) : new Map();
  return { folder, header, headerFile: hash(raw).toString("hex"), root, states, index, attestations, ...log };
}

/** The whole proof: what `openProof` checks, and every block and state. */
export function checkProof(folder) {
  const proof = openProof(folder);
  checkBlocks(proof);
  let before = null;
  proof.states.forEach((name, position) => {
    const held = loadState(proof, name);
    if (before !== null && held !== null) {
      const found = displacement(before, held);
      const claimed = proof.segments[position - 1].displacement;
      const same = close(claimed.state, found.state) && close(claimed.weights, found.weights);
      agree(same, "displacement", `segment ${position - 1} claims a displacement that is not that of its states`);
    }
    before = held;
  });
  return proof;
}

function readLog(folder, header, first, tag) {
  const { interval } = header.training;
  const most = header.planned ?? 2 ** 48;
  const found = { segments: [], environments: new Map(), heads: new Map(), initial: null, end: null };
  let head = first;
  let reached = 0;
  let at = 0;
  let number = 0;
  for (const raw of lines(path.join(folder, "log.jsonl"), MAX.log, MAX.line)) {
    const where = `log.jsonl, line ${++number}`;
    const line = documents.line(raw, header, where);
    const say = (condition, rule, message) => agree(condition, rule, `${where}: ${message}`);
    say(line.prev === head, "log.chain", "the hash chain is broken");
    say(found.end === null && (line.kind === "start") === (number === 1), "log.order", `a line of the kind ${line.kind} cannot stand here`);
    head = digest(`${tag}line\0`, raw);
    if (line.kind === "start") found.initial = line.state;
    else if (line.kind === "environment") {
      const own = documents.environment(line.environment, where);
      say(own === line.digest && !found.environments.has(own), "environment", "the environment's digest is not its own, or it stands here twice");
      found.environments.set(own, line.environment);
    } else if (line.kind === "event") {
      say(line.step >= Math.max(at, reached) && line.step < Math.min(most, reached + interval), "event", "the step does not belong to the segment that follows");
      at = line.step;
    } else if (line.kind === "segment") {
      const count = found.segments.length;
      const start = count * interval;
      const fits = line.index === count && line.start === start && reached === start && line.stop > start;
      say(fits && line.stop <= Math.min(start + interval, most), "log.order", `expected segment ${count} from step ${start} on`);
      say(at < line.stop, "event", "an event before it belongs to a later step");
      say(found.environments.has(line.environment), "environment", "it names an environment that was not written before");
      const sizes = line.block.bytes >= 1 && line.block.bytes <= MAX.block && line.displacement.state >= 0 && line.displacement.weights >= 0;
      need(sizes, "range", `${where}: a size or displacement is out of range`);
      say(line.arrived === line.state || header.codec.in_loop, "log.arrived", "training goes on from another state than it arrived at");
      reached = line.stop;
      found.heads.set(head, line.stop);
      found.segments.push(line);
    } else {
      say(line.steps === reached && reached > 0 && at < reached, "log.end", `the log is incomplete: ${reached} of ${line.steps} steps are in it`);
      const planned = header.planned === null || (line.ended === "completed") === (reached === header.planned);
      say(planned, "log.end", `it says that the run ${line.ended}, after ${reached} of ${header.planned} steps`);
      found.end = line;
    }
  }
  agree(found.end !== null, "log.end", "the log is incomplete: it has no end");
  return { ...found, head, steps: reached, logFile: fileDigest(path.join(folder, "log.jsonl")).slice(7) };
}

function readIndex(folder, header, states, first, seal, tag) {
  const before = new Map(states.map((name, position) => [name, position ? states[position - 1] : null]));
  const index = new Map();
  let head = first;
  for (const raw of lines(path.join(folder, "index.jsonl"), MAX.log, MAX.line)) {
    const where = `index.jsonl, line ${index.size + 1}`;
    const line = documents.stored(raw, where);
    agree(line.prev === head, "index.chain", `${where}: the hash chain is broken`);
    const known = before.has(line.state) && !index.has(line.state) && line.bytes >= 1;
    agree(known, "index.state", `${where}: it stores a state that does not belong here`);
    need(line.codec === header.codec.name || documents.EXACT.includes(line.codec), "index.codec", `${where}: it names another codec than the header`);
    if (line.base !== null) {
      const fits = index.has(line.base) && line.base === before.get(line.state) && line.codec !== "raw";
      need(fits, "index.base", `${where}: the base of a difference is the state before, and is stored before`);
    }
    index.set(line.state, line);
    head = digest(`${tag}line\0`, raw);
  }
  agree(head === seal.index, "index.chain", "index.jsonl is not the one that seal.json names");
  return index;
}

function checkObjects(folder, index) {
  const wanted = new Map([...index.values()].map((line) => [line.object.slice(7), line.bytes]));
  const prefixes = new Set([...wanted.keys()].map((name) => name.slice(0, 2)));
  const place = path.join(folder, "objects");
  const seen = new Set();
  for (const sub of entries(place)) {
    need(sub.isDirectory(), "files.link", `objects/${brief(sub.name)} is no folder`);
    need(prefixes.has(sub.name), "files.unexpected", `unexpected folder in the proof: objects/${brief(sub.name)}`);
    for (const entry of entries(path.join(place, sub.name))) {
      need(entry.isFile(), "files.link", `${brief(entry.name)} is a link or a special file`);
      const known = wanted.has(entry.name) && entry.name.startsWith(sub.name);
      need(known, "files.unexpected", `unexpected file in the proof: objects/${sub.name}/${brief(entry.name)}`);
      const { size } = fs.lstatSync(path.join(place, sub.name, entry.name));
      need(size === wanted.get(entry.name), "files.size", `object ${entry.name.slice(0, 12)}… does not have the size that the index says`);
      seen.add(entry.name);
    }
  }
  need(seen.size === wanted.size, "files.missing", `${wanted.size - seen.size} objects are missing from the proof`);
}

function readAttestations(place) {
  const found = new Map();
  let total = 0;
  for (const { name } of entries(place)) {
    const match = ATTESTATION.exec(name);
    need(match !== null, "files.unexpected", `unexpected file in the proof: attestations/${brief(name)}`);
    const raw = read(path.join(place, name), MAX.attestation);
    total += raw.length;
    need(found.size < 256 && total <= MAX.attested, "files.size", "attestations/ holds more than it may");
    const own = hash(raw).toString("hex");
    need(own.startsWith(match[2]), "files.attestation", `attestations/${name} does not have the bytes that its name says`);
    found.set(name, { name, kind: match[1], form: match[3], raw, sha256: own });
  }
  return found;
}

// ---- blocks and states ----------------------------------------------------------------------------------------------

function checkBlocks({ folder, header, segments }) {
  const { handle } = open(path.join(folder, "blocks.bin"));
  try {
    let offset = 0;
    let groups = null;
    for (const segment of segments) {
      const what = `the block of segment ${segment.index}`;
      const raw = readAt(handle, segment.block.bytes, offset, what);
      offset += raw.length;
      agree(digest(raw) === segment.block.digest, "block.digest", `${what} is not the one in the log`);
      const own = checkBlock(raw, segment.stop - segment.start, header, what);
      agree(groups === null || own === groups, "block.columns", `${what} has another number of parameter groups than the blocks before`);
      groups = own;
    }
  } finally {
    fs.closeSync(handle);
  }
}

const COLUMNS = { float64: Float64Array, int64: BigInt64Array, uint8: Uint8Array };

function checkBlock(raw, steps, header, what) {
  const { found, metadata } = tensors(raw, what);
  const say = (condition, message) => need(condition, "block.columns", `${what}: ${message}`);
  say(Object.keys(metadata).length === 0, "it carries metadata");
  for (const [name, { type }] of found) say(Object.hasOwn(COLUMNS, type), `the column ${brief(name)} has a type that no column has`);
  const take = (name, type, ...shape) => {
    const column = found.get(name);
    say(column !== undefined, `the column ${brief(name)} is missing`);
    found.delete(name);
    const fits = column.type === type && column.shape.length === shape.length && shape.every((length, at) => length === -1 || length === column.shape[at]);
    say(fits, `the column ${brief(name)} has another shape or type`);
    const copy = new Uint8Array(column.data).buffer; // aligned
    return { shape: column.shape, values: new COLUMNS[type](copy) };
  };
  const ragged = (name, lengths) => {
    if (!found.has(lengths)) return false;
    const sizes = take(lengths, "int64", steps).values;
    const flat = take(name, "int64", -1).values;
    say(sizes.every((size) => size >= 0n) && sizes.reduce((sum, size) => sum + size, 0n) === BigInt(flat.length), `${lengths} and ${name} disagree`);
    return true;
  };
  const loss = take("loss", "float64", steps);
  const rates = take("rates", "float64", steps, -1);
  const indices = ragged("indices", "lengths");
  const loop = ragged("loop", "loop/lengths");
  let generators = false;
  for (const name of [...found.keys()].filter((key) => key.startsWith("rng/") && key.endsWith("/row"))) {
    const rows = take(name, "int64", steps).values;
    const table = take(name.slice(0, -4), "uint8", -1, -1);
    say(rows.every((row) => row >= 0n && row < BigInt(table.shape[0])), `the rows of ${brief(name)} are out of range`);
    generators = true;
  }
  let metrics = false;
  for (const name of [...found.keys()].filter((key) => key.startsWith("metric/") && key.endsWith("/step"))) {
    const places = take(name, "int64", -1).values;
    take(name.slice(0, -5), "float64", places.length);
    const ordered = places.every((place, at) => at === 0 || places[at - 1] <= place);
    say(places.length > 0 && ordered && places[0] >= 0n && places.at(-1) < BigInt(steps), `the steps of ${brief(name)} are out of range or order`);
    metrics = true;
  }
  say(found.size === 0, `unexpected columns: ${brief([...found.keys()].join(", "))}`);
  const recorded = header.randomness.mode === "recorded";
  agree(indices === recorded && generators === recorded, "block.mode", `${what} does not fit ${header.randomness.mode} randomness`);
  agree(loop === (header.program.kind === "script"), "block.mode", `${what} does not fit a ${header.program.kind}'s steps`);
  say(!metrics || header.version > 1, "it has columns that its version does not have");
  const finite = loss.values.every(Number.isFinite) && rates.values.every(Number.isFinite);
  agree(finite, "block.finite", `${what} holds losses or learning rates that are not finite`);
  return rates.shape[1];
}

/** The state with a digest, or null where it is not stored, or stored by a codec that this verifier does not decode. */
export function loadState(proof, name) {
  const line = proof.index.get(name);
  if (line === undefined) return null;
  const what = `object ${line.object.slice(7, 19)}…`;
  const raw = read(path.join(proof.folder, "objects", line.object.slice(7, 9), line.object.slice(7)), line.bytes, what);
  agree(digest(raw) === line.object, "object", `${what} does not have the bytes that its name says`);
  if (line.codec !== "raw") return null;
  const held = state(raw, what);
  agree(stateDigest(held) === name, "state.digest", `${what} holds another state than the index says`);
  const wanted = proof.header.parts;
  const same = wanted === null || parts(held).sort().join("\0") === Object.keys(wanted).sort().join("\0");
  agree(same, "state.parts", `${what} holds a state of other parts than header.json says`);
  return held;
}

export { Refusal };
