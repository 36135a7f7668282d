// Runs the conformance suite: `node conformance/run.mjs [FOLDER] [--json]`. Exit status 0 where this verifier agrees on every case, 1 where not, 2 without a suite.

import fs from "node:fs";
import os from "node:os";
import path from "node:path";
import { fileURLToPath } from "node:url";

import { assemble, judged } from "./verifier/cases.mjs";

const options = process.argv.slice(2);
const home = options.find((option) => !option.startsWith("--")) ?? path.join(path.dirname(fileURLToPath(import.meta.url)), "v2");
const list = path.join(home, "manifest.json");
if (!fs.existsSync(list)) {
  console.error(`${list} does not exist; name the folder of a version of the suite, or none`);
  process.exit(2);
}
const { cases } = JSON.parse(fs.readFileSync(list, "utf8"));
const byId = new Map(cases.map((entry) => [entry.id, entry]));
const scratch = fs.mkdtempSync(path.join(os.tmpdir(), "conformance-"));
const found = [];
try {
  for (const entry of cases) {
    const folder = path.join(scratch, entry.id);
    assemble(home, entry, entry.base === null ? null : byId.get(entry.base), folder);
    const said = judged(entry.kind, folder, path.join(home, "given"), entry.given);
    const agrees = said.status === entry.status && (entry.status === 0 || said.rule === entry.rule);
    found.push({ id: entry.id, ...said, agrees });
    fs.rmSync(folder, { recursive: true });
  }
} finally {
  fs.rmSync(scratch, { recursive: true, force: true });
}
const wrong = found.filter((item) => !item.agrees);
if (options.includes("--json")) console.log(JSON.stringify(found));
else {
  for (const { id, status, rule, says } of wrong) {
    console.log(`${id}: expected ${byId.get(id).status} (${byId.get(id).rule}), found ${status}${status ? ` (${rule}: ${says})` : ""}`);
  }
  const passing = cases.filter((entry) => entry.status === 0).length;
  console.log(`${cases.length} cases, ${passing} of them to pass: ${wrong.length ? `${wrong.length} disagree` : "agrees on all"}`);
}
process.exitCode = wrong.length ? 1 : 0;
