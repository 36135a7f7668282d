// Checks one proof or one opening: structure, signatures, timestamps, multiproofs. Nothing is replayed and nothing executed.
//
//   node conformance/verify.mjs DIR [--trusted-key key.pub.pem]… [--threshold N] [--trusted-tsa roots.pem]… [--challenge second.json]
//
// Prints one line. Exit status: 0 it holds; 1 it contradicts itself, or is not signed as asked; 2 it cannot be read; 3 not decided.

import fs from "node:fs";
import path from "node:path";

import { gather, violation } from "./verifier/attestations.mjs";
import { brief, need, read, Refusal } from "./verifier/basics.mjs";
import { checkHeads, checkSigned } from "./verifier/cases.mjs";
import { checkOpening, load } from "./verifier/opening.mjs";
import { checkProof } from "./verifier/proof.mjs";
import { pemKey } from "./verifier/statements.mjs";
import { pemCertificates } from "./verifier/tokens.mjs";

const USAGE = "usage: node verify.mjs DIR [--trusted-key FILE]… [--threshold N] [--trusted-tsa FILE]… [--challenge FILE]";
const NAMES = ["--trusted-key", "--threshold", "--trusted-tsa", "--challenge"];

function parsed(words) {
  const given = { folder: null, "--trusted-key": [], "--threshold": [], "--trusted-tsa": [], "--challenge": [] };
  for (let at = 0; at < words.length; at++) {
    if (NAMES.includes(words[at]) && at + 1 < words.length) given[words[at]].push(words[++at]);
    else {
      need(!words[at].startsWith("--") && given.folder === null, "usage", USAGE);
      given.folder = words[at];
    }
  }
  const threshold = Number(given["--threshold"].at(-1) ?? 1);
  need(given.folder !== null && Number.isSafeInteger(threshold) && threshold >= 1, "usage", USAGE);
  const file = (name) => read(name, 1 << 20, name);
  return {
    folder: given.folder,
    threshold,
    keys: given["--trusted-key"].map((name) => pemKey(file(name), name)),
    roots: given["--trusted-tsa"].flatMap((name) => pemCertificates(file(name))),
    challenge: given["--challenge"].length ? load(given["--challenge"].at(-1), "second") : null,
  };
}

function opening({ folder, keys, challenge }) {
  const found = checkOpening(folder, challenge, keys);
  const whose = challenge === null ? "nobody says whose challenge it answers" : "it answers your challenge";
  return `the opening is intact: root ${found.proof.root}, ${found.proof.index.size} of ${found.proof.states.length} states and ${found.samples} samples, ${whose}; what was drawn is not computed here, and nothing is replayed`;
}

function proof({ folder, keys, threshold, roots }) {
  const found = checkProof(folder);
  const beside = gather(found, roots);
  checkHeads(beside);
  if (keys.length) checkSigned(beside, keys, threshold);
  const raw = [...found.index.values()].filter((line) => line.codec === "raw").length;
  const signers = [...beside.signed.values()].filter((item) => item.kind === "seal").flatMap((item) => item.keys);
  const parts = [
    `${found.segments.length} segments, ${raw} of ${found.states.length} states decoded`,
    signers.length ? `signed with ${[...new Set(signers)].map((key) => `${key.slice(0, 19)}…`).join(", ")}` : "not signed",
  ];
  if (roots.length) {
    const broken = found.header.claim === null ? null : violation(found);
    if (broken !== null) throw new Refusal(broken.rule, broken.message, 1);
    const dates = beside.stamps.filter((stamp) => !stamp.refused && stamp.kind === "seal").map((stamp) => stamp.token.latest);
    parts.push(dates.length ? `there by ${new Date(Math.min(...dates)).toISOString()}` : "not stamped by an authority that was named");
    parts.push(beside.unregistered ? `not registered (${beside.unregistered})` : "registered");
  }
  return `the proof is intact: root ${found.root}, ${parts.join(", ")}; nothing is replayed`;
}

let status = 0;
let message;
try {
  const given = parsed(process.argv.slice(2));
  need(fs.existsSync(given.folder), "usage", `${given.folder} does not exist`);
  message = fs.existsSync(path.join(given.folder, "opening.json")) ? opening(given) : proof(given);
} catch (error) {
  status = error instanceof Refusal ? error.status : 2;
  message = error instanceof Refusal ? error.message : `it cannot be read: ${brief(error.message, 200)}`;
}
console.log(message);
process.exitCode = status;
