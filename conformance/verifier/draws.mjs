// What follows from a key (format.md, sections 11 and 16): seeds, words, permutations, and the coordinates that are looked at.

import { hash } from "./basics.mjs";

const MASK = (1n << 64n) - 1n;

function words(seed, count) {
  const found = [];
  for (let counter = 1n; found.length < count; counter++) {
    let x = [counter, 0n, 0n, 0n];
    let [k0, k1] = [seed, 0n];
    for (let round = 0; round < 10; round++) {
      const a = 0xd2e7470ee14c6c93n * x[0];
      const b = 0xca5a826395121157n * x[2];
      x = [(b >> 64n) ^ x[1] ^ k0, b & MASK, (a >> 64n) ^ x[3] ^ k1, a & MASK];
      k0 = (k0 + 0x9e3779b97f4a7c15n) & MASK;
      k1 = (k1 + 0xbb67ae8584caa73bn) & MASK;
    }
    found.push(...x);
  }
  return found.slice(0, count);
}

function permutation(seed, count) {
  const keys = words(seed, count);
  return keys.map((_, at) => at).sort((a, b) => (keys[a] < keys[b] ? -1 : keys[a] > keys[b] ? 1 : a - b));
}

function u64(value) {
  const raw = Buffer.alloc(8);
  raw.writeBigUInt64LE(BigInt(value));
  return raw;
}

/** The seed at an address. */
function derive(key, purpose, step = 0, slot = 0) {
  const raw = hash("pol/v1/derive\0", key, Buffer.from([purpose.length]), purpose, u64(step), u64(slot));
  return raw.readBigUInt64LE(0);
}

/** What coordinates follow from, by the root and the first challenge's seed. */
export function lookingSeed(root, seed) {
  return derive(hash("pol/v1/challenge\0", root, "\0", Buffer.from(seed, "hex")), "survey");
}

/** Which of `elements` are looked at, in order: `most` of them; null where that is all. */
export function coordinates(looking, elements, most) {
  if (elements <= most) return null;
  const seed = derive(Buffer.concat([u64(looking), Buffer.alloc(24)]), "places", elements);
  let among;
  if (elements <= 8 * most) among = permutation(seed, elements);
  else {
    const places = words(seed, 2 * most).map((word) => Math.floor(Number(word >> 11n) * 2 ** -53 * elements));
    const distinct = [...new Set(places)].sort((a, b) => a - b);
    among = permutation(seed, distinct.length).map((at) => distinct[at]);
  }
  return among.slice(0, most).sort((a, b) => a - b);
}
