// Opened samples: salted leaves and a multiproof under the data root (opening.md; format.md, section 10).

import { agree, hash, need } from "./basics.mjs";
import { tensors } from "./tensors.mjs";

const SALT = 32;

/** Opened samples, from the bytes of `samples.bin`. */
export function samples(raw, salted) {
  const { found, metadata } = tensors(raw, "samples.bin");
  const say = (condition, message) => need(condition, "samples.columns", `samples.bin: ${message}`);
  say(Object.keys(metadata).length === 0, "it carries metadata");
  const types = { content: "uint8", indices: "int64", lengths: "int64", nodes: "uint8", ...(salted ? { salts: "uint8" } : {}) };
  const names = [...found.keys()].sort().join();
  say(names === Object.keys(types).sort().join() && [...found].every(([name, { type }]) => type === types[name]), "other columns than opened samples have");
  const flat = ["content", "indices", "lengths"].every((name) => found.get(name).shape.length === 1);
  say(flat && found.get("indices").count === found.get("lengths").count, "the columns do not fit each other");
  const [indices, lengths] = ["indices", "lengths"].map((name) => integers(found.get(name).data));
  const rising = indices.every((index, at) => (at === 0 ? index >= 0n : indices[at - 1] < index));
  need(indices.length > 0 && rising, "samples.order", "samples.bin: the samples are not in order");
  const { data: content } = found.get("content");
  const whole = lengths.every((length) => length >= 0n) && lengths.reduce((sum, length) => sum + length, 0n) === BigInt(content.length);
  say(whole, "the lengths are not those of what is there");
  const rows = (name, width) => {
    const { data, shape } = found.get(name);
    say(shape.length === 2 && shape[1] === width, `${name} is no table of ${width} bytes a row`);
    return Array.from({ length: shape[0] }, (_, at) => data.subarray(width * at, width * (at + 1)));
  };
  const salts = salted ? rows("salts", SALT) : null;
  say(salts === null || salts.length === indices.length, "another number of salts than of samples");
  const encoded = [];
  let begin = 0;
  for (const length of lengths) {
    encoded.push(content.subarray(begin, begin + Number(length)));
    begin += Number(length);
  }
  return { indices, encoded, salts, nodes: rows("nodes", 32) };
}

function integers(data) {
  return Array.from({ length: data.length / 8 }, (_, at) => data.readBigInt64LE(8 * at));
}

/** Whether they are samples under a commitment {root, samples}. */
export function underRoot({ indices, encoded, salts, nodes }, commitment) {
  const leaves = new Map();
  indices.forEach((index, at) => {
    const salt = salts === null ? Buffer.alloc(0) : salts[at];
    leaves.set(index, hash("\0pol/v1/sample\0", Buffer.from([salt.length]), salt, encoded[at]));
  });
  const root = rootOf(leaves, BigInt(commitment.samples), nodes);
  agree(`sha256:${root.toString("hex")}` === commitment.root, "merkle", "the opened samples are not those under the data root");
}

/** The root of a tree of `count` leaves (RFC 6962) of which some are known, by rising index. */
function rootOf(leaves, count, nodes) {
  const say = (condition, message) => agree(condition, "merkle.count", message);
  say([...leaves.keys()].every((index) => index >= 0n && index < count), "the opened samples are none of the data set");
  let level = leaves;
  let used = 0;
  for (let width = count; width > 1n; width = (width + 1n) >> 1n) {
    const above = new Map();
    for (const [index, own] of level) {
      const parent = index >> 1n;
      if (above.has(parent)) continue;
      const other = index ^ 1n;
      if (other >= width) {
        above.set(parent, own); // a last node without partner goes up as it is
        continue;
      }
      if (!level.has(other)) say(used < nodes.length, "the multiproof is cut short");
      const beside = level.get(other) ?? nodes[used++];
      above.set(parent, index < other ? hash("\x01", own, beside) : hash("\x01", beside, own));
    }
    level = above;
  }
  say(used === nodes.length, "the multiproof holds more than is needed");
  return level.get(0n);
}
