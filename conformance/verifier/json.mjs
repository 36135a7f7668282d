// Canonical JSON (RFC 8785): parsed strictly, and the types of what it holds.

import { brief, need, Refusal } from "./basics.mjs";

const DEPTH = 64;
const LARGE = 2 ** 53;
const utf8 = new TextDecoder("utf-8", { fatal: true, ignoreBOM: true });

/** The value, whatever its spelling. */
export function parse(raw, what, rule = "json.syntax") {
  let text;
  try {
    text = utf8.decode(raw);
  } catch {
    throw new Refusal(rule, `${what} is not UTF-8`);
  }
  need(deepest(text) <= DEPTH, "json.depth", `${what} is nested deeper than ${DEPTH} levels`);
  try {
    return JSON.parse(text);
  } catch {
    throw new Refusal(rule, `${what} is not valid JSON`);
  }
}

/**
 * The value of a document that has to be canonical. floats: whether a number from 2^53 on may stand in it (where the specification says
 * `number`; other numbers of that size are integers that not every reader can tell from their neighbours).
 */
export function document(raw, what, { floats = false } = {}) {
  const value = parse(raw, what, "json.canonical");
  const encoded = encode(value, what, floats);
  need(Buffer.from(encoded).equals(raw), "json.canonical", `${what} is not in canonical form`);
  return value;
}

export function canonical(value) {
  return Buffer.from(encode(value, "it", true));
}

function encode(value, what, floats) {
  if (value === null || typeof value === "boolean") return String(value);
  if (typeof value === "number") {
    need(Number.isFinite(value), "json.canonical", `${what} holds a number that is not finite`);
    const integral = Number.isInteger(value) && Math.abs(value) >= LARGE && Math.abs(value) < 1e21;
    need(floats || !integral, "json.canonical", `${what} holds an integer beyond 2^53`);
    return Object.is(value, -0) ? "0" : String(value);
  }
  if (typeof value === "string") {
    need(!/\p{Surrogate}/u.test(value), "json.canonical", `${what} holds half a character`);
    return JSON.stringify(value);
  }
  if (Array.isArray(value)) return `[${value.map((item) => encode(item, what, floats)).join(",")}]`;
  const keys = Object.keys(value).sort();
  return `{${keys.map((key) => `${encode(key, what, floats)}:${encode(value[key], what, floats)}`).join(",")}}`;
}

function deepest(text) {
  let depth = 0;
  let most = 0;
  let inside = false;
  for (let at = 0; at < text.length && most <= DEPTH; at++) {
    const unit = text.charCodeAt(at);
    if (inside) {
      if (unit === 0x5c) at++;
      else if (unit === 0x22) inside = false;
    } else if (unit === 0x22) inside = true;
    else if (unit === 0x5b || unit === 0x7b) most = Math.max(most, ++depth);
    else if (unit === 0x5d || unit === 0x7d) depth--;
  }
  return most;
}

// ---- types ----------------------------------------------------------------------------------------------------------
// A type is a function of a value and of where it stands.

const typed = (test, name) => (value, where) => need(test(value), "json.type", `${where} is no ${name}`);

export const string = typed((value) => typeof value === "string", "string");
export const boolean = typed((value) => typeof value === "boolean", "boolean");
export const integer = typed((value) => Number.isSafeInteger(value), "integer");
export const number = typed((value) => typeof value === "number", "number");
export const anyObject = typed((value) => isObject(value), "object");
export const plain = typed((value) => value === null || ["string", "number", "boolean"].includes(typeof value), "plain value");

export function isObject(value) {
  return typeof value === "object" && value !== null && !Array.isArray(value);
}

export function digestType(value, where) {
  string(value, where);
  need(/^sha256:[0-9a-f]{64}$/.test(value), "digest", `${where} is no digest of the form sha256:<64 hex digits>`);
}

export function oneOf(...values) {
  return (value, where) => need(values.includes(value), "json.type", `${where} is ${brief(JSON.stringify(value))}`);
}

export function nullable(type) {
  return (value, where) => value === null || type(value, where);
}

export function list(type) {
  return (value, where) => {
    need(Array.isArray(value), "json.type", `${where} is no list`);
    value.forEach((item, at) => type(item, `${where}, entry ${at}`));
  };
}

export function map(type) {
  return (value, where) => {
    anyObject(value, where);
    for (const key of Object.keys(value)) type(value[key], `${where}: ${brief(key)}`);
  };
}

/** An object with exactly these fields. */
export function object(fields) {
  return (value, where) => {
    anyObject(value, where);
    for (const key of Object.keys(value)) need(Object.hasOwn(fields, key), "json.field", `${where} has an unknown field ${brief(key)}`);
    for (const key of Object.keys(fields)) {
      need(Object.hasOwn(value, key), "json.field", `${where} has no field ${key}`);
      fields[key](value[key], `${where}: ${key}`);
    }
  };
}

/** Order by Unicode code points, which is not that of UTF-16 code units. */
export function byCodePoints(a, b) {
  return Buffer.compare(Buffer.from(a), Buffer.from(b)); // as UTF-8 sorts
}
