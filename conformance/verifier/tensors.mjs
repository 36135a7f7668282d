// States as the codec `raw` stores them (format.md, sections 6 and 7.1): layout, tree, digest, distance.

import { brief, digest, hash, need } from "./basics.mjs";
import { byCodePoints, canonical, document, isObject } from "./json.mjs";

const TYPES = {
  BOOL: ["bool", 1], U8: ["uint8", 1], I8: ["int8", 1], I16: ["int16", 2], I32: ["int32", 4], I64: ["int64", 8], U16: ["uint16", 2],
  U32: ["uint32", 4], U64: ["uint64", 8], F16: ["float16", 2], BF16: ["bfloat16", 2], F32: ["float32", 4], F64: ["float64", 8],
  F8_E4M3: ["float8_e4m3fn", 1], F8_E5M2: ["float8_e5m2", 1], C64: ["complex64", 8],
};
const TEXT = 64 << 20;

/** Tensors {name: {type, width, shape, count, data}} in a Map, and metadata, of a file that is laid out as the raw codec does. */
export function tensors(raw, what) {
  const say = (condition, message) => need(condition, "layout", `${what} ${message}`);
  say(raw.length >= 8, "is too short");
  const size = raw.readBigUInt64LE(0);
  say(size <= BigInt(Math.min(TEXT, raw.length - 8)), "has a text that is longer than it is");
  const begin = 8 + Number(size);
  let end = begin;
  while (end > 8 && raw[end - 1] === 0x20) end--;
  const entries = document(raw.subarray(8, end), `the text of ${what}`);
  say(isObject(entries), "has no object for a text");
  say(Number(size) === Math.ceil((end - 8) / 8) * 8, "has a text that is padded further than needed");
  let metadata = {};
  if (Object.hasOwn(entries, "__metadata__")) {
    metadata = entries.__metadata__;
    say(isObject(metadata) && Object.keys(metadata).length > 0 && Object.values(metadata).every((item) => typeof item === "string"), "has odd metadata");
    delete entries.__metadata__;
  }
  const names = Object.keys(entries);
  for (const name of names) {
    const entry = entries[name];
    const fits = isObject(entry) && Object.keys(entry).sort().join() === "data_offsets,dtype,shape" && Object.hasOwn(TYPES, entry.dtype);
    say(fits && Array.isArray(entry.shape) && entry.shape.length <= 64, `describes ${brief(name)} wrongly`);
    say(entry.shape.every((length) => Number.isSafeInteger(length) && length >= 0), `describes ${brief(name)} wrongly`);
    say(entry.shape.reduce((product, length) => product * BigInt(Math.max(length, 1)), 1n) < 1n << 62n, `makes ${brief(name)} too large`);
  }
  names.sort((a, b) => TYPES[entries[b].dtype][1] - TYPES[entries[a].dtype][1] || byCodePoints(a, b));
  const found = new Map();
  let at = 0n;
  for (const name of names) {
    const { dtype, shape, data_offsets: offsets } = entries[name];
    const [type, width] = TYPES[dtype];
    const count = shape.reduce((product, length) => product * BigInt(length), 1n);
    const stop = at + count * BigInt(width);
    const placed = Array.isArray(offsets) && offsets.length === 2 && offsets.every(Number.isSafeInteger);
    say(placed && BigInt(offsets[0]) === at && BigInt(offsets[1]) === stop, `places ${brief(name)} elsewhere than the raw codec does`);
    say(stop <= BigInt(raw.length - begin), "ends before its tensors do");
    const data = raw.subarray(begin + Number(at), begin + Number(stop));
    say(type !== "bool" || data.every((byte) => byte <= 1), `holds a boolean that is neither 0 nor 1`);
    found.set(name, { type, width, shape, count: Number(count), data });
    at = stop;
  }
  say(BigInt(raw.length - begin) === at, "does not end with its last tensor");
  return { found, metadata };
}

/** A state {tree, tensors} from an object of the codec raw. */
export function state(raw, what) {
  const { found, metadata } = tensors(raw, what);
  need(Object.keys(metadata).join() === "pol", "layout", `${what} is no state`);
  const tree = document(Buffer.from(metadata.pol), `the tree of ${what}`);
  need(isObject(tree) && Object.keys(tree).join() === "d", "tree", `${what}: the tree has no parts`);
  const named = new Set();
  walk(tree, [], named, what);
  need(named.size === found.size && [...found.keys()].every((name) => named.has(name)), "tree", `${what}: the tree does not name its tensors`);
  return { tree, tensors: found };
}

/** The names of a state's parts. */
export function parts(held) {
  return held.tree.d.map(([key]) => key.slice(2));
}

const escaped = (text) => text.replaceAll("~", "~0").replaceAll("/", "~1");

function walk(node, place, named, what) {
  const say = (condition, message) => need(condition, "tree", `${what}: the tree ${message} at ${brief(place.join("/") || "its root")}`);
  if (node === null || typeof node === "boolean" || typeof node === "string") return;
  say(isObject(node) && Object.keys(node).length === 1, "holds an unknown node");
  const [[tag, body]] = Object.entries(node);
  if (tag === "l" || tag === "u") {
    say(Array.isArray(body), "is malformed");
    body.forEach((below, at) => walk(below, [...place, String(at)], named, what));
  } else if (tag === "d" || tag === "c") {
    say(Array.isArray(body) && body.every((pair) => Array.isArray(pair) && pair.length === 2), "is malformed");
    let before = null;
    for (const [key, below] of body) {
      say(typeof key === "string" && (key.startsWith("s:") || /^i:(0|-?[1-9][0-9]*)$/.test(key)), "has a malformed key");
      say(before === null || byCodePoints(before, key) < 0, "has keys out of order");
      before = key;
      walk(below, [...place, escaped(key.slice(2))], named, what);
    }
  } else if (tag === "t") {
    say(place.length > 0 && body === place.join("/") && !named.has(body), "names a tensor elsewhere than it stands");
    named.add(body);
  } else {
    const spelled = typeof body === "string" && ((tag === "i" && /^(0|-?[1-9][0-9]*)$/.test(body)) || (tag === "f" && float(body)));
    say(spelled, "is malformed");
  }
}

/** Whether a float is spelled as it has to be. */
function float(text) {
  if (["inf", "-inf", "nan", "0x0.0p+0", "-0x0.0p+0"].includes(text)) return true;
  const found = /^-?0x([01])\.([0-9a-f]{13})p([+-])(0|[1-9][0-9]{0,3})$/.exec(text);
  if (found === null) return false;
  const exponent = Number(found[4]) * (found[3] === "-" ? -1 : 1);
  if (found[1] === "0") return exponent === -1022 && /[1-9a-f]/.test(found[2]);
  return exponent >= -1022 && exponent <= 1023 && !(exponent === 0 && found[3] === "-");
}

/** The digest of a state, or of what it is reduced to. */
export function stateDigest({ tree, tensors: held }) {
  const described = Object.create(null);
  for (const [name, { type, shape, data }] of held) {
    described[name] = [type, shape, hash("pol/v1/tensor\0", `${type}[${shape.join(", ")}]\0`, data).toString("hex")];
  }
  return digest("pol/v1/state\0", canonical({ tensors: described, tree }));
}

// ---- distances ------------------------------------------------------------------------------------------------------

const small = (bits, exponents, mantissas, infinite) => {
  const sign = bits >> (exponents + mantissas) ? -1 : 1;
  const exponent = (bits >> mantissas) & ((1 << exponents) - 1);
  const fraction = bits & ((1 << mantissas) - 1);
  const bias = (1 << (exponents - 1)) - 1;
  if (infinite && exponent === (1 << exponents) - 1) return fraction ? NaN : sign * Infinity;
  if (!infinite && exponent === 15 && fraction === 7) return NaN;
  return exponent === 0 ? sign * fraction * 2 ** (1 - bias - mantissas) : sign * (1 + fraction / (1 << mantissas)) * 2 ** (exponent - bias);
};
const bfloat = new DataView(new ArrayBuffer(4));
const READ = {
  float64: (data, at) => data.readDoubleLE(8 * at),
  float32: (data, at) => data.readFloatLE(4 * at),
  float16: (data, at) => small(data.readUInt16LE(2 * at), 5, 10, true),
  bfloat16: (data, at) => (bfloat.setUint32(0, data.readUInt16LE(2 * at) << 16), bfloat.getFloat32(0)),
  float8_e4m3fn: (data, at) => small(data[at], 4, 3, false),
  float8_e5m2: (data, at) => small(data[at], 5, 2, true),
  complex64: (data, at) => data.readFloatLE(4 * at),
};

/** The displacement between two states: of all floating-point tensors with a dimension, and of the weights. */
export function displacement(before, after) {
  let whole = 0;
  let weights = 0;
  for (const [name, left] of before.tensors) {
    const right = after.tensors.get(name);
    const reader = READ[left.type];
    if (right === undefined || reader === undefined || left.type !== right.type) continue;
    if (left.shape.length === 0 || left.shape.join() !== right.shape.join()) continue;
    const buffer = name.split("/")[1] === "buffers";
    const sum = squares(left, right, reader, buffer);
    whole += sum;
    if (name.startsWith("model/parameters/")) weights += sum;
  }
  return { state: Math.sqrt(whole), weights: Math.sqrt(weights) };
}

function squares(left, right, reader, buffer) {
  let sum = 0;
  const count = left.count * (left.type === "complex64" ? 2 : 1);
  for (let at = 0; at < count; at++) {
    const [a, b] = [reader(left.data, at), reader(right.data, at)];
    if (Object.is(a, b) || (buffer && Math.abs(a) === Infinity && Number.isFinite(b))) continue;
    sum += (a - b) ** 2;
  }
  return sum;
}

/** Whether a claimed length is that of what was found. */
export function close(claimed, found) {
  return Number.isFinite(found) && Math.abs(claimed - found) <= 1e-5 * Math.max(found, 1e-12);
}
