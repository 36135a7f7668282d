// Keys, DSSE envelopes, and statements (predicate.md; format.md, section 17; opening.md).

import { createPublicKey, verify } from "node:crypto";

import { brief, digest, hash, need } from "./basics.mjs";
import { canonical, document, isObject, parse } from "./json.mjs";

export const PAYLOAD_TYPE = "application/vnd.in-toto+json";
const STATEMENT = "https://in-toto.io/Statement/v1";
const KINDS = ["claim", "head", "seal", "recovery", "verdict", "answers", "opening"];
const TYPES = new Map(KINDS.map((kind) => [`urn:proof-of-learning:training:${kind}:v1`, kind]));
const MAX_ENVELOPE = 2 << 20, MAX_SIGNATURES = 16, MAX_SIGNERS = 64;

// ---- keys -----------------------------------------------------------------------------------------------------------

const P = 2n ** 255n - 19n;
const ORDER_8 = 0x5fc536d880238b13933c6d305acdfd5f098eff289f4c345b027b2c28f95e826n; // y of points of order 8; the other is its negative
const SMALL = new Set([0n, 1n, P - 1n, ORDER_8, P - ORDER_8]);

/** A public key from its one DER form (SubjectPublicKeyInfo): P-256, or Ed25519 of large order. */
export function publicKey(encoded, what) {
  let key;
  try {
    key = createPublicKey({ key: encoded, format: "der", type: "spki" });
  } catch {
    need(false, "key.form", `${what} cannot be read`);
  }
  const type = key.asymmetricKeyType;
  const known = type === "ed25519" || (type === "ec" && key.asymmetricKeyDetails.namedCurve === "prime256v1");
  need(known, "key.kind", `${what} is of another kind than P-256 or Ed25519`);
  need(key.export({ format: "der", type: "spki" }).equals(encoded) && (type !== "ec" || encoded.length === 91), "key.form", `${what} is not in its one form`);
  if (type === "ed25519") {
    const y = BigInt(`0x${Buffer.from(encoded.subarray(-32)).reverse().toString("hex")}`) & (2n ** 255n - 1n);
    need(y < P && !SMALL.has(y), "key.order", `${what} is an Ed25519 key of small order, for which anybody can make signatures`);
  }
  return { key, encoded, digest: digest(encoded) };
}

/** The digest of a public key in PEM. */
export function pemKey(raw, what) {
  const found = /-----BEGIN PUBLIC KEY-----([A-Za-z0-9+/=\s]+)-----END PUBLIC KEY-----/.exec(raw.toString("latin1"));
  need(found !== null, "key.form", `${what} is no public key in PEM`);
  return publicKey(Buffer.from(found[1], "base64"), what).digest;
}

function good({ key }, signature, message) {
  try {
    return verify(key.asymmetricKeyType === "ed25519" ? null : "sha256", message, key, signature);
  } catch {
    return false;
  }
}

// ---- envelopes ------------------------------------------------------------------------------------------------------

/** DSSE's pre-authentication encoding: the bytes that are signed. */
function pae(payload) {
  return Buffer.concat([Buffer.from(`DSSEv1 ${PAYLOAD_TYPE.length} ${PAYLOAD_TYPE} ${payload.length} `), payload]);
}

/** Payload and signatures; fields that are not known, key ids and repetitions do no harm. */
export function envelope(raw, what) {
  const say = (condition, message) => need(condition, "envelope", `${what} ${message}`);
  say(raw.length <= MAX_ENVELOPE, `has ${raw.length} bytes; at most ${MAX_ENVELOPE} are accepted`);
  const value = parse(raw, what);
  say(isObject(value) && value.payloadType === PAYLOAD_TYPE, `is no DSSE envelope with a payload of type ${PAYLOAD_TYPE}`);
  say(Array.isArray(value.signatures) && value.signatures.length <= MAX_SIGNATURES, `has no list of at most ${MAX_SIGNATURES} signatures`);
  const payload = base64(value.payload, true);
  say(payload !== null, "has no payload in base64");
  const signatures = value.signatures.filter(isObject).map((item) => base64(item.sig, true)).filter((made) => made?.length);
  return { payload, signatures };
}

/** Digests of those keys that a signature is good for: keys are counted, not signatures. */
export function signedBy({ payload, signatures }, keys) {
  const message = pae(payload);
  const found = keys.filter((key) => signatures.some((signature) => good(key, signature, message)));
  return [...new Set(found.map((key) => key.digest))];
}

function base64(text, either) {
  if (typeof text !== "string") return null;
  const plain = either ? text.replaceAll("-", "+").replaceAll("_", "/") : text;
  return plain.length % 4 === 0 && /^[A-Za-z0-9+/]*={0,2}$/.test(plain) ? Buffer.from(plain, "base64") : null;
}

// ---- statements -----------------------------------------------------------------------------------------------------

/** A statement as it was read: nothing in it is believed. */
export function statement(payload, what) {
  const value = document(payload, what);
  const type = (condition, message) => need(condition, "statement.type", `${what} ${message}`);
  type(isObject(value) && value._type === STATEMENT, "is no in-toto statement");
  const kind = TYPES.get(value.predicateType);
  type(kind !== undefined && isObject(value.predicate), `has a predicate of the type ${brief(value.predicateType)}, which is not known`);
  const { signers } = value.predicate;
  need(Array.isArray(signers) && signers.length <= MAX_SIGNERS, "statement", `${what} has no list of at most ${MAX_SIGNERS} signers`);
  const keys = signers.map((item) => {
    const encoded = isObject(item) ? base64(item.publicKey, false) : null;
    need(encoded !== null, "statement", `${what} names a signer without a public key`);
    return publicKey(encoded, `${what}: the key of a signer`);
  });
  return { kind, subject: value.subject ?? null, predicate: value.predicate, signers: keys, payload };
}

/** A key as a statement has it. */
export const told = (key) => ({ digest: key.digest, publicKey: key.encoded.toString("base64") });

/** The bytes of a statement with these subjects {name: SHA-256} and fields, signed by these keys. */
export function made(kind, subjects, fields, keys) {
  const signers = [...new Map(keys.map((key) => [key.digest, key])).values()].sort((a, b) => (a.digest < b.digest ? -1 : 1));
  return canonical({
    _type: STATEMENT,
    subject: Object.entries(subjects).map(([name, sha256]) => ({ name, digest: { sha256 } })),
    predicateType: `urn:proof-of-learning:training:${kind}:v1`,
    predicate: { ...fields, signers: signers.map(told) },
  });
}

/** The fields that a statement on a verdict repeats of it. */
export function repeated(verdict) {
  const part = (name, ...fields) =>
    isObject(verdict[name]) ? Object.fromEntries(fields.map((field) => [field, verdict[name][field] ?? null])) : {};
  return {
    verdict: verdict.verdict ?? null, assurance: verdict.assurance ?? null, proof: part("proof", "root", "final_weights"),
    conditions: part("conditions", "task", "sources", "data"), nonce: part("nonce", "value", "origin"),
    guarantee: verdict.guarantee ?? null, rules: verdict.rules ?? null, policy: verdict.policy ?? null,
  };
}

/** Who signed this very verdict: digests of keys. */
export function verdictSigners(file, raw) {
  const opened = envelope(raw, "the envelope");
  const found = statement(opened.payload, "the envelope's payload");
  const value = parse(file, "the verdict");
  need(isObject(value) && value.schema === "pol/verdict/v1", "version", "the verdict has another schema");
  const own = made("verdict", { "verdict.json": hash(file).toString("hex") }, repeated(value), found.signers);
  return own.equals(found.payload) ? signedBy(opened, found.signers) : null;
}
