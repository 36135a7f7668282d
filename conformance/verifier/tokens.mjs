// Timestamps: RFC 3161 tokens (format.md, section 17), and the certificates of those who make them.

import { createHash, verify, X509Certificate } from "node:crypto";

import { brief, digest, need, Refusal } from "./basics.mjs";
import { BOOLEAN, der, INTEGER, OCTETS, SEQUENCE, SET } from "./der.mjs";

const MAX_TOKEN = 1 << 16;
const SIGNED_DATA = "1.2.840.113549.1.7.2", TST_INFO = "1.2.840.113549.1.9.16.1.4";
const CONTENT_TYPE = "1.2.840.113549.1.9.3", MESSAGE_DIGEST = "1.2.840.113549.1.9.4";
const CERTIFICATE_1 = "1.2.840.113549.1.9.16.2.12", CERTIFICATE_2 = "1.2.840.113549.1.9.16.2.47";
const HASHES = { "2.16.840.1.101.3.4.2.1": "sha256", "2.16.840.1.101.3.4.2.2": "sha384", "2.16.840.1.101.3.4.2.3": "sha512" };
const BASIC_CONSTRAINTS = "2.5.29.19", KEY_USAGE = "2.5.29.15", EXTENDED_USAGE = "2.5.29.37", TIME_STAMPING = "1.3.6.1.5.5.7.3.8";
const READ = new Set([BASIC_CONSTRAINTS, KEY_USAGE, EXTENDED_USAGE]);
const ORDERS = {
  prime256v1: [32, 0xffffffff00000000ffffffffffffffffbce6faada7179e84f3b9cac2fc632551n],
  secp384r1: [48, 0xffffffffffffffffffffffffffffffffffffffffffffffffc7634d81f4372ddf581a0db248b0a77aecec196accc52973n],
  secp521r1: [66, 0x01fffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffffa51868783bf2f966b7fcc0148f709a5d03bb5c9b8899c47aebb6fb71e91386409n],
};
const DEPTH = 10; // certificates of a chain

const hashed = (name, raw) => createHash(name).update(raw).digest();

/** A token whose own signature holds, by whoever it is: what it stamps, when, its anchor, its certificates. */
export function token(raw, what) {
  need(raw.length <= MAX_TOKEN, "token.der", `${what} has ${raw.length} bytes; at most ${MAX_TOKEN} are accepted`);
  try {
    return parsed(raw, what);
  } catch (error) {
    if (error instanceof Refusal) throw error;
    throw new Refusal("token.der", `${what} is no timestamp token that can be used: ${brief(error.message)}`);
  }
}

function parsed(raw, what) {
  const form = (condition, message) => need(condition, "token.form", `${what}: ${message}`);
  const top = der(raw, what).expect(SEQUENCE, what).parts(1, what);
  const status = top[0].expect(SEQUENCE, "the status").parts(1, "the status")[0].integer();
  need(status === 0n && top.length === 2, "token.status", `${what}: the authority refused (status ${status})`);
  const [kind, wrapped] = top[1].expect(SEQUENCE, "the token").parts(2, "the token");
  form(kind.oid() === SIGNED_DATA, "it is no signed data");
  const parts = inside(wrapped, "signed data").expect(SEQUENCE, "signed data").parts(4, "signed data");
  need(parts[0].integer() >= 0n && parts[0].body.length === 1, "token.der", "signed data has no version"); // which one, nobody signs
  const content = parts[2].expect(SEQUENCE, "the content").parts(2, "the content");
  const signers = parts.at(-1).expect(SET, "the list of signers").children();
  form(content[0].oid() === TST_INFO && content.length === 2 && signers.length === 1, "it is not the statement of one authority about a time");
  const info = inside(content[1], "the content").expect(OCTETS, "the time").body;
  const signer = signerInfo(signers[0], form);
  const hashes = parts[1].expect(SET, "the algorithms").children().map(algorithm);
  form(hashes.every((name) => HASHES[name] !== undefined) && hashes.includes(signer.algorithm), "its list of hash functions is another one than its signer's");
  const given = parts.find((part) => part.tag === 0xa0);
  const certificates = given === undefined ? [] : given.children().map((item) => certificate(item.whole));
  const leaf = certificates.find((item) => item.issuer.equals(signer.issuer) && item.serial === signer.serial);
  need(leaf !== undefined, "token.certificate", `${what}: the authority's certificate is not in it`);
  checkSigner(signer, info, leaf, what, form);
  const time = tstInfo(info, what);
  const usage = leaf.extensions.get(EXTENDED_USAGE);
  const purposes = usage === undefined ? [] : der(usage.value, "extended key usage").children().map((item) => item.oid());
  const alone = usage !== undefined && usage.critical && purposes.join() === TIME_STAMPING;
  need(alone, "token.usage", `${what}: the authority's certificate is not for timestamps alone (critical extended key usage)`);
  return { ...time, certificates, leaf, anchor: anchor(signer, leaf), raw };
}

/** What an explicit tag [0] holds. */
function inside(node, what) {
  const found = node.expect(0xa0, what).children();
  need(found.length === 1, "token.der", `${what} has several parts`);
  return found[0];
}

/** The identifier of an algorithm whose parameters, if it has any, are null. */
function algorithm(node) {
  const [name, parameters, ...more] = node.expect(SEQUENCE, "an algorithm").parts(1, "an algorithm");
  const plain = more.length === 0 && (parameters === undefined || (parameters.tag === 0x05 && parameters.body.length === 0));
  need(plain, "token.der", "an algorithm has parameters");
  return name.oid();
}

function signerInfo(node, form) {
  const parts = node.expect(SEQUENCE, "the signer").parts(6, "the signer");
  const [issuer, serial] = parts[1].expect(SEQUENCE, "the signer's name").parts(2, "the signer's name");
  const signed = parts[3].expect(0xa0, "the signed attributes");
  const attributes = new Map();
  for (const item of signed.children()) {
    const [kind, values] = item.parts(2, "an attribute");
    const found = values.expect(SET, "an attribute").children();
    form(found.length === 1 && !attributes.has(kind.oid()), "an attribute stands in it twice");
    attributes.set(kind.oid(), found[0]);
  }
  const name = algorithm(parts[2]);
  const hash = HASHES[name];
  form(hash !== undefined, "it is signed with a hash function other than SHA-256, SHA-384 or SHA-512");
  // What is signed has the tag of a SET, in the place of the one that says where it stands.
  const message = Buffer.concat([Buffer.from([SET]), signed.whole.subarray(1)]);
  algorithm(parts[4]); // which one it is follows from the key
  form(parts[0].integer() === 1n, "its signer is named in another way than by issuer and serial number");
  const signature = parts[5].expect(OCTETS, "the signature").body;
  return { issuer: issuer.whole, serial: serial.integer(), algorithm: name, hash, attributes, message, signature };
}

function checkSigner(signer, info, leaf, what, form) {
  const own = (kind) => signer.attributes.get(kind);
  form(own(CONTENT_TYPE)?.oid() === TST_INFO, "what is signed is not a time");
  const named = own(MESSAGE_DIGEST)?.expect(OCTETS, "a digest").body;
  need(named?.equals(hashed(signer.hash, info)), "token.signature", `${what}: the time is not the one that was signed`);
  checkCertificateName(own(CERTIFICATE_2), own(CERTIFICATE_1), leaf, what);
  const type = leaf.key.asymmetricKeyType;
  need(type === "rsa" || type === "ec", "token.signature", `${what}: the authority's key is neither RSA nor on an elliptic curve`);
  let good = false;
  try {
    good = verify(signer.hash, signer.message, leaf.key, signer.signature);
  } catch {
    good = false;
  }
  need(good, "token.signature", `${what}: the authority's signature does not fit`);
}

/** The signing-certificate attribute (RFC 2634, RFC 5816): without it another certificate of the key could be put in. */
function checkCertificateName(second, first, leaf, what) {
  const attribute = second ?? first;
  need(attribute !== undefined, "token.ess", `${what} does not say which certificate it is signed with`);
  const first_ = (node) => node.expect(SEQUENCE, "an attribute").parts(1, "an attribute")[0];
  let named = first_(first_(attribute)).expect(SEQUENCE, "an attribute").parts(1, "an attribute");
  let hash = second === undefined ? "sha1" : "sha256";
  if (second !== undefined && named[0].tag === SEQUENCE) {
    hash = HASHES[algorithm(named[0])];
    need(hash !== undefined, "token.ess", `${what} names the certificate by an unknown hash function`);
    named = named.slice(1);
  }
  const same = named[0]?.expect(OCTETS, "a certificate's digest").body.equals(hashed(hash, leaf.raw));
  need(same, "token.ess", `${what} is signed with another certificate than the one in it`);
}

function tstInfo(raw, what) {
  const parts = der(raw, "the time").expect(SEQUENCE, "the time").parts(5, "the time");
  need(parts[0].integer() === 1n, "token.form", `${what}: the time is of another version than 1`);
  parts[1].oid();
  parts[3].integer();
  const [name, message] = parts[2].expect(SEQUENCE, "the imprint").parts(2, "the imprint");
  const digest_ = message.expect(OCTETS, "the imprint").body;
  const sha256 = HASHES[algorithm(name)] === "sha256" && digest_.length === 32;
  need(sha256, "token.imprint", `${what}: what it stamps is not named by SHA-256`);
  const at = generalizedTime(parts[4].expect(0x18, "the time").body);
  let about = 0;
  if (parts[5]?.tag === SEQUENCE) {
    for (const item of parts[5].children()) {
      const scale = { [INTEGER]: 1e3, 0x80: 1, 0x81: 1e-3 }[item.tag];
      need(scale !== undefined && item.body.length > 0 && item.body.length <= 6, "token.der", "the accuracy is malformed");
      about += item.body.readUIntBE(0, item.body.length) * scale;
    }
  }
  about ||= 1000;
  need(Date.UTC(1970) <= at - about && at + about <= Date.UTC(9999), "token.form", `${what}: its time is none that a clock may have`);
  return { stamped: digest_.toString("hex"), at, earliest: at - about, latest: at + about };
}

function generalizedTime(body) {
  const found = /^(\d{4})(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\.\d*[1-9])?Z$/.exec(body.toString("latin1"));
  need(found !== null, "token.der", "a time is not written as it has to be");
  const [, year, month, day, hours, minutes, seconds, fraction] = found;
  return moment([year, month, day, hours, minutes, seconds]) + Number(fraction ?? 0) * 1000;
}

function moment(fields) {
  const [year, month, day, hours, minutes, seconds] = fields.map(Number);
  const at = Date.UTC(year, month - 1, day, hours, minutes, seconds);
  const again = new Date(at);
  const real = again.getUTCMonth() === month - 1 && again.getUTCDate() === day && hours < 24 && minutes < 60 && seconds < 60;
  need(real, "token.der", "a time that there is not");
  return at;
}

/** A digest of what the authority signed and of the signature in its normal form: what a run's key may follow from. */
function anchor({ message, signature }, leaf) {
  const size = Buffer.alloc(8);
  size.writeBigUInt64LE(BigInt(message.length));
  return digest("pol/v2/anchor\0", size, message, normal(signature, leaf.key));
}

function normal(signature, key) {
  if (key.asymmetricKeyType === "rsa") return signature;
  const found = ORDERS[key.asymmetricKeyDetails.namedCurve];
  need(found !== undefined, "token.signature", "the authority's key is on a curve that this verifier does not know");
  const [width, order] = found;
  const [r, s] = der(signature, "the signature").parts(2, "the signature").map((item) => item.integer());
  const low = s > order - s ? order - s : s;
  return Buffer.from([r, low].map((value) => value.toString(16).padStart(2 * width, "0")).join(""), "hex");
}

// ---- certificates ---------------------------------------------------------------------------------------------------

/** What is needed of a certificate (RFC 5280). */
export function certificate(raw) {
  const x509 = new X509Certificate(raw);
  const parts = der(raw, "a certificate").parts(3, "a certificate")[0].children();
  const fields = parts[0].tag === 0xa0 ? parts.slice(1) : parts;
  const [serial, , issuer, validity, subject] = fields;
  const [since, until] = validity.parts(2, "a certificate's validity").map(certificateTime);
  const extensions = new Map();
  const wrapped = fields.find((part) => part.tag === 0xa3);
  for (const item of wrapped === undefined ? [] : wrapped.parts(1, "extensions")[0].children()) {
    const inner = item.parts(2, "an extension");
    const critical = inner[1].tag === BOOLEAN && inner[1].body[0] === 0xff;
    extensions.set(inner[0].oid(), { critical, value: inner.at(-1).expect(OCTETS, "an extension").body });
  }
  return {
    raw, x509, key: x509.publicKey, serial: serial.integer(), issuer: issuer.whole, subject: subject.whole, since, until, extensions,
  };
}

function certificateTime(node) {
  if (node.tag === 0x18) return generalizedTime(node.body);
  const found = /^(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)(\d\d)Z$/.exec(node.expect(0x17, "a time").body.toString("latin1"));
  need(found !== null, "token.der", "a time is not written as it has to be");
  const [year, ...rest] = found.slice(1);
  return moment([Number(year) + (Number(year) < 50 ? 2000 : 1900), ...rest]);
}

/** Certificates in PEM, one after the other. */
export function pemCertificates(raw) {
  const found = raw.toString("latin1").match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  return found.map((pem) => certificate(new X509Certificate(pem).raw));
}

/** Why none of the named authorities vouches for a token at the time that it says; empty where one does. */
export function distrust(found, named) {
  const roots = named.filter((item) => item.issuer.equals(item.subject));
  if (named.length === 0) return "no authority was named";
  if (roots.length === 0) return "none of the certificates that were named is a root";
  const others = [...found.certificates, ...named.filter((item) => !roots.includes(item))];
  return leads(found.leaf, roots, others, found.at, 0) ? "" : "no authority that was named vouches for it at the time that it says";
}

/** Whether a certificate that lies `below` others is good at a time, by way of certificates that may issue, down from a root. */
function leads(item, roots, others, at, below) {
  if (at < item.since || at > item.until || below > DEPTH || !understood(item)) return false;
  if (below > 0 && !mayIssue(item, below)) return false;
  if (roots.some((root) => root.raw.equals(item.raw))) return item.x509.verify(item.key);
  const issuers = [...roots, ...others].filter((other) => other.subject.equals(item.issuer) && !other.raw.equals(item.raw));
  return issuers.some((issuer) => signedBy(item, issuer) && leads(issuer, roots, others.filter((other) => other !== item), at, below + 1));
}

function signedBy(item, issuer) {
  try {
    return item.x509.verify(issuer.key);
  } catch {
    return false;
  }
}

// A critical extension that is not understood makes a certificate worthless.
const understood = (item) => [...item.extensions].every(([kind, { critical }]) => !critical || READ.has(kind));

function mayIssue(item, below) {
  const constraints = item.extensions.get(BASIC_CONSTRAINTS);
  if (constraints === undefined) return false;
  const parts = der(constraints.value, "basic constraints").children();
  if (parts[0]?.tag !== BOOLEAN || parts[0].body[0] !== 0xff) return false;
  if (parts[1] !== undefined && parts[1].integer() < BigInt(below - 1)) return false;
  const usage = item.extensions.get(KEY_USAGE);
  return usage === undefined || (der(usage.value, "key usage").expect(0x03, "key usage").body[1] & 0x04) !== 0;
}
