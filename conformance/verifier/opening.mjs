// An opening (opening.md): challenges, answers, signatures, opened states and samples. What the second challenge draws is not computed.

import fs from "node:fs";
import path from "node:path";

import { gather } from "./attestations.mjs";
import { agree, brief, digest, entries, fileDigest, hash, need, open, read, readAt, Refusal } from "./basics.mjs";
import { coordinates, lookingSeed } from "./draws.mjs";
import { boolean, canonical, digestType, document, integer, list, map, nullable, object, oneOf, string } from "./json.mjs";
import { checkProof, loadState } from "./proof.mjs";
import { samples, underRoot } from "./samples.mjs";
import { envelope, made, signedBy, statement } from "./statements.mjs";
import { parts, state, stateDigest } from "./tensors.mjs";

const MAX = { challenge: 1 << 20, answers: 64 << 20, envelope: 2 << 20, cut: 64 << 20, cuts: 4 * 2 ** 30, samples: 2 ** 31 - 1 };
const FILES = ["opening.json", "opening.dsse.json", "first.json", "second.json", "answers", "proof", "samples.bin"];
const ANSWERS = ["answers.json", "answers.dsse.json", "states.bin", "outputs.bin"];
const COORDINATES = 700, FEWEST = 16, MOST = 512;

const common = { schema: string, root: digestType };
const asked = { ...common, claim: nullable(digestType), due: nullable(string) };
const draw = (value, where) => {
  need(Array.isArray(value) && value.length === 2, "json.type", `${where} is no pair`);
  integer(value[0], where);
  list(string)(value[1], where);
};
const TYPES = {
  first: ["pol/challenge/v1", object({ ...asked, round: oneOf(1), seed: string })],
  second: [
    "pol/challenge/v1",
    object({ ...asked, round: oneOf(2), first: digestType, answers: digestType, nonce: string, segments: list(draw) }),
  ],
  answers: [
    "pol/answers/v1",
    object({
      ...common, challenge: digestType, coordinates: integer, layouts: list(map(list(integer))), layout: list(integer), sizes: list(integer),
      states: digestType, outputs: digestType, heads: list(object({ name: string, rows: integer, columns: integer, scores: boolean })),
      segments: nullable(integer),
    }),
  ],
  opening: ["pol/opening/v1", object({ ...common, challenge: digestType, index: digestType, samples: nullable(digestType) })],
};

/** One of the documents, with the digest of its bytes. */
export function load(file, kind) {
  const name = path.basename(file);
  const raw = read(file, kind === "first" || kind === "second" ? MAX.challenge : MAX.answers);
  const value = document(raw, name);
  const [schema, type] = TYPES[kind];
  need(value?.schema === schema, "version", `${name} has the schema ${brief(value?.schema)}; expected ${schema}`);
  type(value, name);
  const random = value.seed ?? value.nonce;
  need(random === undefined || /^[0-9a-f]{64}$/.test(random), "opening.document", `${name}: its random value is not 64 hex digits`);
  need((value.due ?? null) === null || isTime(value.due), "opening.document", `${name}: its term is no time like 2026-01-31T12:00:00Z`);
  return { ...value, raw, digest: digest(raw) };
}

function isTime(text) {
  const at = /^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ$/.test(text) ? Date.parse(text) : NaN;
  return !Number.isNaN(at) && new Date(at).toISOString() === text.replace("Z", ".000Z");
}

/** Check an opening. mine: the verifier's own second challenge, or null; trusted: digests of keys, of which one has to have signed. */
export function checkOpening(folder, mine, trusted) {
  only(folder, FILES);
  only(path.join(folder, "answers"), ANSWERS);
  const head = load(path.join(folder, "opening.json"), "opening");
  const first = load(path.join(folder, "first.json"), "first");
  const second = load(path.join(folder, "second.json"), "second");
  const proof = checkProof(path.join(folder, "proof"));
  need(proof.header.program.kind === "task", "program", "the proof is of a script, which cannot be challenged");
  const whole = [...proof.index.values()].every((line) => line.codec === "raw");
  if (!whole) throw new Refusal("codec", "states are stored by a codec that this verifier does not decode", 3);
  const { claim } = proof.header.randomness;
  agree(mine === null || mine.digest === second.digest, "opening.challenge", "the opening answers another challenge than yours");
  const same = head.challenge === second.digest && head.root === proof.root;
  agree(same, "opening.challenge", "the opening was made for another challenge, or of another proof");
  agree(second.claim === claim, "opening.claim", "the second challenge names another claim than the proof was made under");
  agree(fileDigest(path.join(folder, "proof", "index.jsonl")) === head.index, "opening.index", "the opening was signed with other states than it holds");
  const recovered = [...proof.attestations.values()].some(({ kind }) => kind === "recovery");
  const replaced = recovered ? gather(proof, []).replaced : new Map();
  const answers = readAnswers(path.join(folder, "answers"), proof, first, replaced);
  const after = second.first === first.digest && second.answers === answers.digest && second.root === proof.root;
  agree(after, "opening.challenge", "the second challenge is on other answers, or follows another first challenge");
  const keys = signers(folder, "opening", head, proof, replaced);
  agree(keys.some((key) => answers.keys.includes(key)), "opening.key", "answers and opening are signed with different keys");
  agree(trusted.length === 0 || standing(keys, replaced).some((key) => trusted.includes(key)), "opening.key", "the opening is signed with no trusted key");
  const count = checkSamples(path.join(folder, "samples.bin"), proof, head.samples);
  checkStates(path.join(folder, "answers"), proof, answers, first, second);
  return { proof, keys, samples: count, second };
}

function only(folder, names) {
  for (const entry of entries(folder)) {
    need(names.includes(entry.name), "files.unexpected", `unexpected file in the opening: ${brief(entry.name)}`);
    need(!entry.isSymbolicLink(), "files.link", `unexpected file in the opening: ${entry.name} is a link`);
  }
}

/** Keys with those in whose place the claim's recovery key put them. */
const standing = (keys, replaced) => keys.flatMap((key) => [key, ...(replaced.get(key) ?? [])]);

/** Digests of the keys that signed this very document, of which one has to be, or stand for, an owner's where the claim names owners. */
function signers(folder, kind, head, proof, replaced) {
  const name = `${kind}.dsse.json`;
  const opened = envelope(read(path.join(folder, name), MAX.envelope), name);
  const found = statement(opened.payload, `the payload of ${name}`);
  const own = made(kind, { [`${kind}.json`]: hash(head.raw).toString("hex") }, { root: head.root, challenge: head.challenge }, found.signers);
  agree(own.equals(found.payload), "statement", `what is signed in ${name} is something else than this document`);
  const keys = signedBy(opened, found.signers);
  agree(keys.length > 0, "signature", `${name} has no signature that is good for a key which it names`);
  const owners = proof.header.claim?.owners ?? [];
  agree(owners.length === 0 || standing(keys, replaced).some((key) => owners.includes(key)), "opening.owner", `${kind}: signed by none of the owners that the claim names`);
  return keys;
}

function readAnswers(folder, proof, first, replaced) {
  const head = load(path.join(folder, "answers.json"), "answers");
  const count = proof.states.length;
  agree(head.root === proof.root && first.root === proof.root, "opening.answers", "answers or challenge are about another proof: the roots differ");
  agree(first.claim === proof.header.randomness.claim, "opening.claim", "the first challenge names another claim than the proof was made under");
  agree(head.challenge === first.digest, "opening.answers", "the answers were given to another challenge");
  const keys = signers(folder, "answers", head, proof, replaced);
  const say = (condition, message) => need(condition, "opening.range", `answers.json: ${message}`);
  say(head.layout.length === count && head.sizes.length === count, `it has ${head.sizes.length} states; the proof has ${count}`);
  say(head.layouts.length >= 1 && head.layouts.length <= 64, "too many layouts, or none");
  say(head.layout.every((at) => at >= 0 && at < head.layouts.length), "a state has a layout that is not there");
  say(new Set(head.layouts.map((layout) => canonical(layout).toString())).size === head.layouts.length, "a layout stands twice");
  for (const shape of head.layouts.flatMap((layout) => Object.values(layout))) {
    const extent = shape.reduce((product, length) => product * BigInt(Math.max(length, 1)), 1n);
    say(shape.length <= 64 && shape.every((length) => length >= 0) && extent < 1n << 62n, "a shape makes no sense");
  }
  const weights = Object.keys(head.layouts[head.layout[0]]).filter((name) => name.startsWith("model/parameters/")).length;
  const wanted = Math.max(FEWEST, Math.min(MOST, Math.floor(COORDINATES / Math.max(1, weights))));
  say(head.coordinates === wanted, `${head.coordinates} coordinates; of these tensors ${wanted} are looked at`);
  const total = head.sizes.reduce((sum, size) => sum + size, 0);
  say(head.sizes.every((size) => size > 0 && size <= MAX.cut) && total <= MAX.cuts, "a size is out of range");
  say(head.heads.length <= 4 && new Set(head.heads.map((one) => one.name)).size === head.heads.length, "too many outputs, or one stands twice");
  say(head.heads.every((one) => one.rows >= 1 && one.rows <= 64 && one.columns >= 1 && one.columns <= 128), "an output's size is out of range");
  say(head.segments === null || (head.segments >= 0 && head.segments < count), "its number of segments is out of range");
  const outputs = 4 * count * head.heads.reduce((sum, one) => sum + one.rows * one.columns, 0);
  for (const [name, size, own] of [["states.bin", total, head.states], ["outputs.bin", outputs, head.outputs]]) {
    agree(fileDigest(path.join(folder, name), size, "opening.size") === own, "opening.file", `${name} is not the file that answers.json names`);
  }
  return { ...head, keys };
}

function checkSamples(file, proof, own) {
  const { data } = proof.header;
  if (own === null) {
    need(!fs.lstatSync(file, { throwIfNoEntry: false }), "files.unexpected", "unexpected file in the opening: samples.bin; it says that it opens no samples");
    agree(!data.salted, "opening.samples", "the opening holds no samples, and nobody else has those of a salted data root");
    return 0;
  }
  const raw = read(file, MAX.samples);
  agree(digest(raw) === own, "opening.file", "samples.bin is not the file that opening.json names");
  const found = samples(raw, data.salted);
  underRoot(found, data);
  return found.indices.length;
}

/** All states that the second challenge names are opened, and every opened state is what was answered for. */
function checkStates(folder, proof, answers, first, second) {
  const last = proof.states.length - 1;
  const wanted = new Set([0, last]);
  for (const [index] of second.segments) {
    agree(index >= 0 && index < last, "opening.challenge", "the second challenge names a segment that is not there");
    wanted.add(index).add(index + 1);
  }
  const missing = [...wanted].filter((position) => !proof.index.has(proof.states[position]));
  agree(missing.length === 0, "opening.states", `${missing.length} states that were drawn were not opened`);
  const looking = lookingSeed(proof.root, first.seed);
  const places = new Map(); // by number of elements
  const { handle } = open(path.join(folder, "states.bin"));
  try {
    let offset = 0;
    proof.states.forEach((name, position) => {
      const what = `states.bin: the state at position ${position}`;
      const told = state(readAt(handle, answers.sizes[position], offset, what), what);
      offset += answers.sizes[position];
      const layout = answers.layouts[answers.layout[position]];
      checkLayout(told, layout, answers.coordinates, proof, what);
      if (!proof.index.has(name)) return;
      const held = loadState(proof, name);
      const shapes = Object.fromEntries([...held.tensors].map(([key, { shape }]) => [key, shape]));
      const fits = canonical(shapes).equals(canonical(layout)) && stateDigest(cut(held, answers.coordinates, looking, places)) === stateDigest(told);
      agree(fits, "opening.cut", `the state at position ${position} is not the one that was answered for`);
    });
  } finally {
    fs.closeSync(handle);
  }
}

function checkLayout(told, layout, most, proof, what) {
  const fits = [...told.tensors].every(([name, { shape }]) => {
    if (!Object.hasOwn(layout, name) || shape.length !== 1) return false;
    return BigInt(shape[0]) === least(layout[name].reduce((product, length) => product * BigInt(length), 1n), BigInt(most));
  });
  const same = fits && told.tensors.size === Object.keys(layout).length;
  const own = parts(told).sort().join("\0");
  const named = proof.header.parts === null || own === Object.keys(proof.header.parts).sort().join("\0");
  need(same && named, "opening.cut", `${what} has other tensors or parts than it is said to have`);
}

const least = (a, b) => (a < b ? a : b);

/** A state, cut to what is looked at: of each tensor the elements at the coordinates, flattened. */
function cut(held, most, looking, places) {
  const found = new Map();
  for (const [name, tensor] of held.tensors) {
    const { count, width, data } = tensor;
    if (!places.has(count)) places.set(count, coordinates(looking, count, most));
    const chosen = places.get(count);
    const part = chosen === null ? data : Buffer.concat(chosen.map((at) => data.subarray(at * width, (at + 1) * width)));
    found.set(name, { ...tensor, shape: [chosen === null ? count : chosen.length], data: part });
  }
  return { tree: held.tree, tensors: found };
}
