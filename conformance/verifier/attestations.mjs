// What lies beside a root, held against the proof that it is said to be about (format.md, section 17).

import { brief, digest, hash, need } from "./basics.mjs";
import { claim as claimForm } from "./documents.mjs";
import { canonical, document, isObject } from "./json.mjs";
import { envelope, made, publicKey, signedBy, statement, told } from "./statements.mjs";
import { distrust, token } from "./tokens.mjs";

const MAX_TRIED = 16384; // pairs of a key and a signature, of all envelopes
const SKEW = 5 * 60 * 1000; // between clocks of two authorities, beyond what each says of its own

/** The digest of a task's description and sources; null where they are not fixed. */
export function sourcesDigest({ digest: task, sources }) {
  const fixed = !Object.values(sources).includes("unavailable") && Object.keys(sources).some((name) => name.startsWith("module:"));
  return fixed ? digest("pol/v1/sources\0", canonical({ task, sources })) : null;
}

/** Whether a statement is, to the byte, the one that is made of this proof. */
function fits(proof, { kind, predicate, signers, payload }) {
  const { header } = proof;
  const { task, data, randomness, training } = header;
  if (kind === "claim") {
    if (header.claim === null) return false;
    const subject = { claim: hash(canonical(header.claim)).toString("hex") };
    return made("claim", subject, { claim: header.claim, claimDigest: randomness.claim }, signers).equals(payload);
  }
  if (kind === "recovery") return fitsClaim(header, predicate, signers, payload);
  if (kind === "head") {
    if (!proof.heads.has(predicate.head)) return false;
    const fields = { head: predicate.head, steps: proof.heads.get(predicate.head) };
    if (isDigest(predicate.previous)) fields.previous = predicate.previous;
    return made("head", { "header.json": proof.headerFile }, fields, signers).equals(payload);
  }
  const fields = {
    root: proof.root, format: header.format, claim: randomness.claim, anchor: randomness.anchor,
    task: { digest: task.digest, name: task.name, sources: sourcesDigest(task) }, data: { root: data.root, samples: data.samples },
    parent: header.initialization.proof, steps: proof.steps, segments: proof.segments.length, interval: training.interval,
    finalWeights: proof.end.final_weights,
  };
  return kind === "seal" && made("seal", { "header.json": proof.headerFile, "log.jsonl": proof.logFile }, fields, signers).equals(payload);
}

const isDigest = (value) => typeof value === "string" && /^sha256:[0-9a-f]{64}$/.test(value);

/** Whether a statement of recovery is about the claim of this proof, by the one key that the claim names for it. */
function fitsClaim({ claim, randomness }, predicate, signers, payload) {
  const next = successor(predicate);
  if (claim === null || next === null || !isDigest(predicate.owner)) return false;
  if (signers.length !== 1 || signers[0].digest !== claim.recovery) return false;
  const fields = { claimDigest: randomness.claim, owner: predicate.owner, successor: told(next) };
  return made("recovery", { successor: hash(next.encoded).toString("hex") }, fields, signers).equals(payload);
}

/** The key that takes another one's place; null where there is none that may sign. */
function successor(predicate) {
  try {
    return publicKey(Buffer.from(predicate.successor.publicKey, "base64"), "the successor's key");
  } catch {
    return null;
  }
}

/** By key, the owners in whose place the claim's recovery key put it, by way of others too. */
function replacements({ header }, signed, recoveries) {
  const { recovery, owners, threshold } = header.claim ?? {};
  const by = (keys) => (Array.isArray(owners) ? keys.filter((key) => owners.includes(key)).length : 0);
  const owned = [...signed.values()].some(({ kind, keys }) => kind === "claim" && by(keys) >= Math.max(1, threshold));
  const direct = new Map();
  for (const [name, { next, owner }] of owned ? recoveries : []) {
    if (signed.get(name).keys.includes(recovery)) direct.set(next, [...(direct.get(next) ?? []), owner]);
  }
  // Owners who did not sign the claim themselves never named the recovery key.
  const named = new Set([...signed.values()].filter(({ kind }) => kind === "claim").flatMap(({ keys }) => keys).filter((key) => owners?.includes(key)));
  const found = new Map();
  for (const key of direct.keys()) {
    const reached = new Set();
    for (const waiting = [key]; waiting.length; ) {
      const more = (direct.get(waiting.pop()) ?? []).filter((one) => !reached.has(one));
      for (const one of more) reached.add(one);
      waiting.push(...more);
    }
    const stands = [...reached].filter((one) => one !== key && named.has(one));
    if (stands.length) found.set(key, stands);
  }
  return found;
}

/** How many of `keys` signed the seal, by themselves or by a successor; no key stands for two. */
export function counted({ signed, replaced }, keys) {
  const signers = new Set([...signed.values()].filter((item) => item.kind === "seal").flatMap((item) => item.keys));
  const stands = new Map([...signers].map((key) => [key, [key, ...(replaced.get(key) ?? [])].filter((one) => keys.includes(one))]));
  const taken = new Map();
  const place = (signer, tried) =>
    stands.get(signer).some((key) => {
      if (tried.has(key)) return false;
      tried.add(key);
      if (taken.has(key) && !place(taken.get(key), tried)) return false;
      taken.set(key, signer);
      return true;
    });
  return [...signers].filter((signer) => place(signer, new Set())).length;
}

/** What the heads say of this very run that does not hold, as {rule, message}. */
function falsehoods(heads, stamps, names, tokens, signed) {
  const found = [];
  const below = (name) => names.get(tokens.has(name) ? tokens.get(name).token.stamped : (heads.get(name)?.previous ?? "")) ?? null;
  for (const [name, { steps, previous }] of heads) {
    if (previous === null) continue;
    const before = names.get(previous);
    if (before === undefined || !tokens.has(before)) {
      found.push({ rule: "head.chain", message: `${name} contains a timestamp that is not here` });
      continue;
    }
    const about = chain(tokens.get(before).token, names, tokens).at(-1);
    const claimed = tokens.get(before).file.kind === "claim" && signed.get(about)?.kind === "claim";
    if (!claimed && !(heads.get(about)?.steps < steps)) found.push({ rule: "head.chain", message: `${name} follows a timestamp that is neither on an earlier head nor on the claim` });
  }
  const dated = new Map(stamps.filter((stamp) => !stamp.refused).map((stamp) => [stamp.file, stamp.token]));
  for (const stamp of stamps) {
    if (stamp.refused || stamp.kind !== "head") continue;
    for (let name = below(stamp.file); name !== null; name = below(name)) {
      if (!dated.has(name) || stamp.token.latest + SKEW >= dated.get(name).earliest) continue;
      found.push({ rule: "head.order", message: `${stamp.file} says a time before that of ${name}, which it contains` });
      break;
    }
  }
  return found;
}

/** A list of gaps, which counts for nothing. */
function gaps({ form, raw, name }) {
  const say = (condition) => need(condition, "gaps", `${name} is no list of at most 1,000 gaps (pol/gaps/v1)`);
  say(form === "json");
  const value = document(raw, name);
  const count = (number) => Number.isSafeInteger(number);
  say(isObject(value) && Object.keys(value).length === 2 && value.schema === "pol/gaps/v1" && Array.isArray(value.gaps) && value.gaps.length <= 1000);
  for (const gap of value.gaps) {
    say(isObject(gap) && Object.keys(gap).sort().join() === "after,since,tries,until,why");
    say(count(gap.after) && gap.after >= 0 && count(gap.tries) && gap.tries >= 0 && (gap.until === null || count(gap.until)));
    say(typeof gap.since === "string" && [...gap.since].length <= 200 && typeof gap.why === "string" && [...gap.why].length <= 201);
  }
}

/**
 * What counts: signed (file name → {kind, keys}) and stamps, each with `refused` (empty where an authority of `named` vouches for it).
 * ignored: what counts for nothing, as {rule, message}. wrong: what is false of this very run, and held against it. replaced: by key,
 * those in whose place it was put.
 */
export function gather(proof, named) {
  const signed = new Map();
  const tokens = new Map();
  const ignored = [], wrong = [];
  const heads = new Map(), recoveries = new Map();
  let tried = 0;
  for (const file of [...proof.attestations.values()].sort((a, b) => (a.name < b.name ? -1 : 1))) {
    if (file.kind === "gaps") {
      gaps(file);
      continue;
    }
    if (file.form === "tsr") {
      tokens.set(file.name, { file, token: token(file.raw, file.name) });
      continue;
    }
    const opened = file.form === "json" ? null : envelope(file.raw, file.name);
    const found = statement(opened === null ? file.raw : opened.payload, opened === null ? file.name : `the payload of ${file.name}`);
    need(found.kind === file.kind, "statement.type", `${file.name} holds a statement of the kind ${found.kind}`);
    tried += opened === null ? 0 : new Set(found.signers.map((key) => key.digest)).size * opened.signatures.length;
    need(tried <= MAX_TRIED, "envelope", `${file.name} and the envelopes before it name more keys and signatures than are tried`);
    const keys = opened === null ? [] : signedBy(opened, found.signers);
    if (!fits(proof, found)) {
      const refusal = { rule: "statement", message: `${file.name} is about something else, or says something else` };
      ignored.push(refusal);
      if (found.kind === "head" && canonical(found.subject).equals(canonical([{ name: "header.json", digest: { sha256: proof.headerFile } }]))) wrong.push({ ...refusal, rule: "head.false" });
    }
    else if (opened !== null && keys.length === 0) ignored.push({ rule: "signature", message: `${file.name} has no signature that is good for a key which it names` });
    else {
      signed.set(file.name, { kind: file.kind, keys });
      const { head, previous, owner } = found.predicate;
      if (file.kind === "head") heads.set(file.name, { steps: proof.heads.get(head), previous: isDigest(previous) ? previous.slice(7) : null });
      if (file.kind === "recovery") recoveries.set(file.name, { next: successor(found.predicate).digest, owner });
    }
  }
  const names = new Map([...proof.attestations.values()].map((file) => [file.sha256, file.name]));
  const stamps = [];
  for (const { file, token: found } of tokens.values()) {
    const below = chain(found, names, tokens);
    const about = signed.get(below.at(-1));
    if (about === undefined || about.kind !== file.kind) ignored.push({ rule: "stamp", message: `${file.name} stamps something else than a statement about this proof that is here` });
    else stamps.push({ file: file.name, kind: file.kind, about: below.at(-1), below, token: found, refused: distrust(found, named), rule: "token.chain" });
  }
  wrong.push(...falsehoods(heads, stamps, names, tokens, signed));
  const { anchored, reason } = registered(proof, { signed, stamps });
  if (anchored.size) {
    const begun = Math.max(...stamps.filter((stamp) => anchored.has(stamp.file)).map((stamp) => stamp.token.earliest));
    for (const stamp of stamps) {
      if (stamp.kind === "claim" || stamp.refused || stamp.token.latest + SKEW >= begun) continue;
      stamp.refused = "it says a time before the claim was stamped, from which the run follows";
      stamp.rule = "stamp.order";
    }
  }
  return { signed, stamps, ignored, wrong, replaced: replacements(proof, signed, recoveries), unregistered: reason };
}

/** Names of the files below a token: tokens, then a statement; the last one is empty where it is not here. */
function chain(found, names, tokens) {
  const below = [];
  for (;;) {
    const name = names.get(found.stamped) ?? "";
    below.push(name);
    if (!tokens.has(name)) return below;
    found = tokens.get(name).token; // hashes make no circles
  }
}

/** The trusted tokens that the run's key follows from; and why the proof is not registered, empty where it is. */
function registered({ header }, { signed, stamps }) {
  const not = (reason) => ({ anchored: new Set(), reason });
  const { claim, randomness } = header;
  if (claim === null || header.version < 2) return not("it was not made under a claim of version 2");
  const { owners, threshold } = claim;
  const formed = Array.isArray(owners) && owners.every((key) => typeof key === "string") && Number.isSafeInteger(threshold);
  if (!formed) return not("its claim is malformed");
  if (owners.length === 0 || (claim.sources ?? null) === null) return not("its claim names no owner, or does not fix the task's sources");
  if (randomness.anchor === null) return not("its key does not follow from a timestamp on the claim");
  const last = stamps.filter((stamp) => stamp.kind === "claim" && stamp.token.anchor === randomness.anchor);
  if (last.length === 0) return not("the timestamp that its key follows from is not here");
  const trusted = new Set(stamps.filter((stamp) => !stamp.refused).map((stamp) => stamp.file));
  let reason = "its claim is not signed by as many of its owners as it asks for";
  for (const stamp of last) {
    const { keys } = signed.get(stamp.about);
    if (keys.filter((key) => owners.includes(key)).length < Math.max(1, threshold)) continue;
    // The last one decides: its maker could make any number, each with another key.
    if (trusted.has(stamp.file)) return { anchored: new Set([stamp.file, ...stamp.below].filter((name) => trusted.has(name))), reason: "" };
    reason = `the last timestamp on its claim counts for nothing: ${stamp.refused}`;
  }
  return not(reason);
}

/** Where a proof does not keep to its own claim, as {rule, message}; null where it does. */
export function violation({ header, environments }) {
  const claim = claimForm(header.claim);
  const { randomness, training, program } = header;
  const own = digest("pol/v2/claim\0", canonical(claim));
  if (own !== randomness.claim) return { rule: "claim.key", message: "the claim's digest is not the one that the key names" };
  const key = randomness.anchor === null ? own : digest("pol/v2/anchored\0", own, "\0", randomness.anchor);
  if (key.slice(7) !== randomness.key) return { rule: "claim.key", message: "the key is not the hash of claim and timestamp" };
  const kept = (condition, message) => (condition ? null : { rule: "claim.kept", message });
  const fixed = {
    task: header.task.digest, name: header.task.name, data: header.data, format: header.format, steps: header.planned,
    interval: training.interval, steps_per_epoch: training.steps_per_epoch, arithmetic: header.arithmetic, arguments: program.arguments,
    settings: program.settings, sealed: program.sealed, inputs: header.inputs, codec: header.codec, start: header.initialization.proof,
  };
  if (claim.sources !== null) fixed.sources = sourcesDigest(header.task);
  const same = (a, b) => canonical(a).equals(canonical(b));
  const differing = Object.keys(fixed).find((name) => !same(fixed[name], claim[name]));
  return (
    kept(randomness.mode !== "recorded", "under a claim batches and generator states follow from it, but here they were recorded") ??
    kept(header.initialization.kind !== "recorded", "under a claim the initial state follows from it, but here it was recorded") ??
    kept(differing === undefined, `the claim fixes ${brief(differing)} as something else`) ??
    kept([...environments.values()].every((one) => same(one, claim.environment)), "the claim fixes another environment")
  );
}
