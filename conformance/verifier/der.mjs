// As much DER as tokens and certificates need: tag, length, content; nothing guessed.

import { need } from "./basics.mjs";

export const SEQUENCE = 0x30, SET = 0x31, INTEGER = 0x02, OCTETS = 0x04, OID = 0x06, BOOLEAN = 0x01;
const RULE = "token.der";

class Node {
  constructor(tag, body, whole) {
    Object.assign(this, { tag, body, whole });
  }

  expect(tag, what) {
    need(this.tag === tag, RULE, `${what} has the tag ${this.tag}; expected ${tag}`);
    return this;
  }

  children() {
    const found = [];
    for (let at = 0; at < this.body.length; at += found.at(-1).whole.length) found.push(element(this.body, at));
    return found;
  }

  /** Children of which there have to be at least `count`. */
  parts(count, what) {
    const found = this.children();
    need(found.length >= count, RULE, `${what} has ${found.length} parts; expected ${count} or more`);
    return found;
  }

  integer() {
    this.expect(INTEGER, "a number");
    need(this.body.length > 0 && this.body.length <= 64, RULE, "a number has no bytes, or too many");
    return BigInt.asIntN(8 * this.body.length, BigInt(`0x${this.body.toString("hex")}`));
  }

  oid() {
    this.expect(OID, "an identifier");
    need(this.body.length > 0 && this.body.length <= 64, RULE, "an identifier has no bytes, or too many");
    const parts = [];
    let number = 0n;
    for (const byte of this.body) {
      number = (number << 7n) | BigInt(byte & 0x7f);
      if (byte < 0x80) {
        parts.push(number);
        number = 0n;
      }
    }
    const first = parts[0] < 80n ? parts[0] / 40n : 2n;
    return [first, parts[0] - 40n * first, ...parts.slice(1)].join(".");
  }
}

/** The one element that the bytes consist of. */
export function der(raw, what) {
  const found = element(raw, 0);
  need(found.whole.length === raw.length, RULE, `${what} has bytes behind its end`);
  return found;
}

function element(raw, at) {
  const say = (condition) => need(condition, RULE, "what should be DER is cut short, or has a length that DER does not write");
  say(raw.length - at >= 2);
  const tag = raw[at];
  need((tag & 0x1f) !== 0x1f, RULE, "what should be DER has a tag of several bytes");
  let size = raw[at + 1];
  let start = at + 2;
  if (size >= 0x80) {
    const count = size - 0x80;
    say(count >= 1 && count <= 4 && raw.length - start >= count && raw[start] !== 0);
    size = raw.readUIntBE(start, count);
    say(size >= 0x80);
    start += count;
  }
  say(raw.length - start >= size);
  return new Node(tag, raw.subarray(start, start + size), raw.subarray(at, start + size));
}
