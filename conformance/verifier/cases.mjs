// What this verifier says of a case of the conformance suite.

import fs from "node:fs";
import path from "node:path";

import { agree, hash, read, Refusal } from "./basics.mjs";
import { counted, gather, violation } from "./attestations.mjs";
import { document } from "./json.mjs";
import { checkOpening, load } from "./opening.mjs";
import { checkProof, openProof } from "./proof.mjs";
import { samples, underRoot } from "./samples.mjs";
import { pemKey, publicKey, verdictSigners } from "./statements.mjs";
import { distrust, pemCertificates, token } from "./tokens.mjs";

const MAX = 2 << 20;

/** {status, rule, says}: 0 where the case in `folder` passes. bring: where the files are that the verifier brings, `given` which. */
export function judged(kind, folder, bring, given) {
  try {
    if (!Object.hasOwn(JUDGES, kind)) throw new Refusal("kind", `an unknown kind of case: ${kind}`, 3);
    JUDGES[kind](folder, bringing(bring, given));
    return { status: 0, rule: "", says: "" };
  } catch (error) {
    if (!(error instanceof Refusal)) throw error;
    return { status: error.status, rule: error.rule, says: error.message };
  }
}

function bringing(bring, given) {
  const file = (name) => read(path.join(bring, name), MAX);
  return {
    ...given,
    keys: (given.keys ?? []).map((name) => pemKey(file(name), name)),
    roots: (given.roots ?? []).flatMap((name) => pemCertificates(file(name))),
    second: given.challenge ? load(path.join(bring, given.challenge), "second") : null,
  };
}

/** The first thing that counts for nothing, if anything does, as the reason why something is missing. */
function missing(fallback, ...reasons) {
  const { rule, message } = reasons.flat()[0] ?? fallback;
  throw new Refusal(rule, message, 1);
}

/** Nothing that is said of this very run is false. */
export function checkHeads({ wrong }) {
  if (wrong.length) throw new Refusal(wrong[0].rule, wrong[0].message, 1);
}

/** Enough of the keys signed the seal. */
export function checkSigned(found, keys, threshold) {
  const signers = counted(found, keys);
  if (signers < threshold) missing({ rule: "signature", message: `${signers} of the ${threshold} keys that are asked for signed the proof` }, found.ignored);
}

const JUDGES = {
  canonical: (folder) => document(read(path.join(folder, "value.json"), MAX), "value.json"),
  key: (folder) => publicKey(read(path.join(folder, "key.der"), 1 << 16), "the key"),
  proof: (folder) => checkProof(folder),
  signed: (folder, { keys, threshold }) => checkSigned(gather(openProof(folder), []), keys, threshold),
  stamped(folder, { roots, statement }) {
    const found = gather(openProof(folder), roots);
    const stamps = found.stamps.filter((stamp) => stamp.kind === statement);
    if (stamps.some((stamp) => !stamp.refused)) return;
    const refused = stamps.map(({ rule, refused: message }) => ({ rule, message }));
    missing({ rule: "stamp", message: "nothing stamps it" }, refused, found.ignored);
  },
  heads: (folder, { roots }) => checkHeads(gather(openProof(folder), roots)),
  registered(folder, { roots }) {
    const proof = openProof(folder);
    const found = gather(proof, roots);
    const broken = proof.header.claim === null ? null : violation(proof);
    if (broken !== null) throw new Refusal(broken.rule, broken.message, 1);
    agree(found.unregistered === "", "registered", found.unregistered);
  },
  timestamp(folder, { roots }) {
    const found = token(read(path.join(folder, "token.tsr"), MAX), "the token");
    agree(found.stamped === hash(read(path.join(folder, "file"), MAX)).toString("hex"), "token.imprint", "it stamps another file");
    const reason = distrust(found, roots);
    agree(reason === "", "token.chain", reason);
  },
  verdict(folder, { keys }) {
    const signers = verdictSigners(read(path.join(folder, "verdict.json"), MAX), read(path.join(folder, "verdict.json.dsse.json"), MAX));
    agree(signers !== null, "statement", "the statement is about another verdict, or says something else of it");
    agree(signers.some((key) => keys.includes(key)), "signature", "none of the keys signed this verdict");
  },
  samples: (folder, { data }) => underRoot(samples(read(path.join(folder, "samples.bin"), MAX), data.salted), data),
  opening: (folder, { second, keys }) => checkOpening(folder, second, keys),
};

/** The files of a case, put together in a new folder: those of its base, less what is gone, and its own. */
export function assemble(home, entry, base, target) {
  fs.mkdirSync(target, { recursive: true });
  for (const name of base === null ? [entry.path] : [base.path, entry.path]) {
    const from = path.join(home, name);
    if (fs.existsSync(from)) copy(from, target);
  }
  for (const name of entry.removed) fs.rmSync(path.join(target, name));
  prune(target, target);
}

function copy(from, to) {
  fs.mkdirSync(to, { recursive: true });
  for (const entry of fs.readdirSync(from, { withFileTypes: true })) {
    const [source, target] = [path.join(from, entry.name), path.join(to, entry.name)];
    if (entry.isDirectory()) copy(source, target);
    else {
      fs.rmSync(target, { force: true });
      if (entry.isSymbolicLink()) fs.symlinkSync(fs.readlinkSync(source), target);
      else fs.copyFileSync(source, target);
    }
  }
}

// A folder that nothing is left in is not there.
function prune(folder, top) {
  for (const entry of fs.readdirSync(folder, { withFileTypes: true })) if (entry.isDirectory()) prune(path.join(folder, entry.name), top);
  if (folder !== top && fs.readdirSync(folder).length === 0) fs.rmdirSync(folder);
}
