// The documents of a proof (docs/spec/format.md, sections 3, 4, 8, 9, 11 and 12), of versions 1 and 2.

import { agree, brief, digest, need } from "./basics.mjs";
import {
  anyObject, boolean, byCodePoints, canonical, digestType, document, integer, list, map, nullable, number, object, oneOf, plain, string,
} from "./json.mjs";

const STEPS = 2 ** 48;
const INTERVAL = 2 ** 32;
const VARIABLES = {
  ATEN_CPU_CAPABILITY: /^(default|avx2|avx512|vsx|zvector|sve256)$/,
  ONEDNN_MAX_CPU_ISA: /^[A-Z0-9_]{1,32}$/,
  MKL_CBWR: /^[A-Z0-9_,]{1,32}$/,
  MKL_ENABLE_INSTRUCTIONS: /^[A-Z0-9_]{1,32}$/,
  NPY_DISABLE_CPU_FEATURES: /^[A-Za-z0-9_, ]{1,512}$/,
  NPY_ENABLE_CPU_FEATURES: /^[A-Za-z0-9_, ]{1,512}$/,
  CUBLAS_WORKSPACE_CONFIG: /^:\d{1,6}:\d{1,4}(:\d{1,6}:\d{1,4})?$/,
};
const CODECS = ["raw", "lossless", "float16", "quantised", "compact"];
export const EXACT = ["raw", "lossless"];
const ARITHMETICS = ["native", "portable"];

const between = (low, high) => (value) => value >= low && value <= high;
const printable = (text) => /^([^\p{C}\p{Z}]| )+$/u.test(text);
const short = (name) => printable(name) && [...name].length <= 200;
const named = (name) => short(name) && !/[/\\]/.test(name) && name !== "." && name !== "..";

const dataType = object({ root: digestType, samples: integer, salted: boolean });
const codecType = object({ name: string, version: integer, in_loop: boolean, options: anyObject });
const inputType = object({ name: string, digest: digestType, bytes: integer });
const environmentType = object({
  torch: string, python: string, numpy: string, machine: string, vendor: string, isa: list(string), capability: string,
  threads: integer, interop_threads: integer, variables: map(string),
  flags: object({
    deterministic: boolean, cudnn_deterministic: boolean, cudnn_benchmark: boolean, cudnn_tf32: boolean, matmul_precision: string,
    mkldnn: boolean, flush_denormal: boolean,
  }),
  device: object({
    type: string, name: nullable(string), capability: nullable(string), cuda: nullable(string), cudnn: nullable(string),
  }),
});
const taskType = object({ digest: digestType, name: string, description: anyObject, sources: map(string) });
const initializationType = object({ kind: oneOf("derived", "recorded", "linked"), proof: nullable(digestType) });
const headerTypes = {
  1: object({
    format: string, task: taskType, data: dataType, initialization: initializationType, codec: codecType, claim: nullable(anyObject),
    training: object({ steps: integer, interval: integer, steps_per_epoch: integer }),
    randomness: object({ mode: oneOf("derived", "recorded"), key: string, seed: nullable(string), claim: nullable(digestType) }),
  }),
  2: object({
    format: string, task: taskType, data: dataType, initialization: initializationType, codec: codecType, claim: nullable(anyObject),
    training: object({ planned: nullable(integer), interval: integer, steps_per_epoch: integer }),
    randomness: object({
      mode: oneOf("derived", "recorded"), key: string, seed: nullable(string), claim: nullable(digestType), anchor: nullable(digestType),
    }),
    program: object({
      kind: oneOf("task", "script"), reference: nullable(string), arguments: list(string), settings: map(plain), sealed: nullable(digestType),
    }),
    inputs: list(inputType),
    parts: map(oneOf("module", "optimizer", "scheduler", "scaler", "stateful", "progress")),
    ranks: integer, arithmetic: string,
  }),
};

/** A header, as version 2 has it; `version` says which one it was, `planned` may be null. */
export function header(raw) {
  const value = document(raw, "header.json");
  anyObject(value, "header.json");
  const version = { "pol/proof/v1": 1, "pol/proof/v2": 2 }[value.format];
  need(version !== undefined, "version", `header.json has the format ${brief(value.format)}, which this verifier does not read`);
  headerTypes[version](value, "header.json");
  const { training, randomness } = value;
  const found = { ...value, version, planned: version === 1 ? training.steps : training.planned };
  if (version === 1) {
    found.randomness = { ...randomness, anchor: null };
    found.program = { kind: "task", reference: null, arguments: [], settings: {}, sealed: null };
    Object.assign(found, { inputs: [], parts: null, ranks: 1, arithmetic: "native" });
  }
  const range = [found.planned ?? 1, training.steps_per_epoch].every(between(1, STEPS)) && between(1, INTERVAL)(training.interval);
  need(range, "range", "header.json: steps or interval are out of range");
  need(found.data.samples >= 1, "range", "header.json: the data set has no samples");
  checkRandomness(found);
  const linked = found.initialization.kind === "linked";
  need(linked === (found.initialization.proof !== null), "initialization", "header.json: a linked start, and no other, names a proof");
  checkCodec(found.codec);
  checkProgram(found);
  checkInputs(found.inputs);
  if (version > 1) checkParts(found.parts);
  need(found.ranks === 1, "reserved", "header.json: several processes, which is reserved");
  need(ARITHMETICS.includes(found.arithmetic), "reserved", `header.json: unknown arithmetic ${brief(found.arithmetic)}`);
  const portable = found.program.kind === "task" && randomness.mode === "derived";
  need(found.arithmetic === "native" || portable, "reserved", "header.json: what is recorded has native arithmetic");
  const own = digest("pol/v1/task\0", canonical(found.task.description));
  agree(own === found.task.digest, "task", "header.json: the task's digest is not that of its description");
  return found;
}

function checkRandomness({ randomness, claim }) {
  const say = (condition, message) => need(condition, "randomness", `header.json: ${message}`);
  say(/^[0-9a-f]{64}$/.test(randomness.key), "the key is not 64 hex digits");
  const one = (randomness.claim === null) !== (randomness.seed === null);
  say(one && (randomness.claim === null) === (claim === null), "the key comes from either a seed or a claim, which the header then holds");
  say(randomness.anchor === null || randomness.claim !== null, "a timestamp of a claim, and no claim");
  if (randomness.seed !== null) {
    const spelled = /^(0|[1-9][0-9]{0,19})$/.test(randomness.seed);
    say(spelled && BigInt(randomness.seed) < 1n << 64n, "the seed is no decimal integer below 2^64");
  }
}

function checkCodec(codec) {
  need(CODECS.includes(codec.name) && codec.version === 1, "codec", `header.json: unknown codec ${brief(codec.name)} ${codec.version}`);
  const plainly = codec.in_loop === !EXACT.includes(codec.name) && Object.keys(codec.options).length === 0;
  need(plainly, "codec", "header.json: the codec is claimed with options that it does not have");
}

function checkProgram({ program, randomness, initialization, task, version }) {
  const say = (condition, message) => need(condition, "program", `header.json: the program ${message}`);
  say(program.kind === "task" || randomness.mode === initialization.kind, "is a script, whose first state is recorded or derived, as its order is");
  say(program.kind === "task" || program.sealed === null, "is a script, and sealed");
  say(program.reference === null || named(program.reference), "has a reference that names no file, module or function");
  say(program.arguments.length <= 1000 && Object.keys(program.settings).length <= 1000, "has too many arguments or settings");
  const texts = [...program.arguments, ...Object.keys(program.settings), ...Object.values(program.settings)];
  say(texts.every((text) => typeof text !== "string" || [...text].length <= 4096), "has an argument or setting that is too long");
  if (version > 1) {
    const held = Object.hasOwn(task.description, "program") ? task.description.program : null;
    const own = held === null ? null : digest("pol/v1/program\0", canonical(held));
    say(program.sealed === own, "is sealed under another digest than that of the one in the description");
  }
}

function checkInputs(inputs) {
  const say = (condition, message) => need(condition, "inputs", `header.json: ${message}`);
  say(inputs.length <= 10_000, "too many inputs");
  for (const input of inputs) say(named(input.name) && input.bytes >= 0, "an input has no name of a file, or no size");
  for (let at = 1; at < inputs.length; at++) {
    const [a, b] = [inputs[at - 1], inputs[at]];
    say((byCodePoints(a.name, b.name) || byCodePoints(a.digest, b.digest)) <= 0, "the inputs are not in order");
  }
}

function checkParts(parts) {
  const say = (condition, message) => need(condition, "parts", `header.json: ${message}`);
  const names = Object.keys(parts);
  say(names.length <= 1000 && names.every(short), "the parts have no names");
  const own = (name) => (Object.hasOwn(parts, name) ? parts[name] : undefined);
  say(own("model") === "module" && own("progress") === "progress", "the states have no model, or no step");
  say(!names.some((name) => /@[0-9]+$/.test(name)), "a part is named as another process's");
}

/** Whether the end of a segment at step `stop` is what a codec in the loop makes of it. */
export function rounded(head, stop) {
  return head.codec.in_loop && stop % head.training.interval === 0 && stop !== head.planned;
}

// ---- log and index --------------------------------------------------------------------------------------------------

const evaluation = nullable(map(number));
const segment = {
  kind: string, prev: digestType, index: integer, start: integer, stop: integer, arrived: digestType, state: digestType,
  displacement: object({ state: number, weights: number }), environment: digestType,
  block: object({ digest: digestType, bytes: integer }), evaluation,
};
const LINES = {
  1: {
    start: object({ kind: string, prev: digestType, state: digestType }),
    environment: object({ kind: string, prev: digestType, digest: digestType, environment: environmentType }),
    segment: object(segment),
    end: object({ kind: string, prev: digestType, final_weights: digestType, evaluation }),
  },
};
LINES[2] = {
  ...LINES[1],
  event: object({ kind: string, prev: digestType, step: integer, event: anyObject }),
  end: object({
    kind: string, prev: digestType, steps: integer, ended: oneOf("completed", "stopped"), final_weights: digestType, evaluation,
  }),
};
const EVENTS = {
  reload: object({ name: string, parts: list(string), step: nullable(integer), input: nullable(digestType), state: digestType }),
  group: object({ name: string, part: string, group: integer, parameters: integer }),
};
const own = (table, name) => (typeof name === "string" && Object.hasOwn(table, name) ? table[name] : undefined);

/** A line of the log, as version 2 has it. */
export function line(raw, head, where) {
  const value = document(raw, where, { floats: true });
  anyObject(value, where);
  const type = own(LINES[head.version], value.kind);
  need(type !== undefined, "json.type", `${where} is of the unknown kind ${brief(value.kind)}`);
  type(value, where);
  if (value.kind === "end" && head.version === 1) return { ...value, steps: head.planned, ended: "completed" };
  if (value.kind === "event") checkEvent(value, raw, head, where);
  return value;
}

function checkEvent({ step, event }, raw, head, where) {
  const type = own(EVENTS, event.name);
  need(type !== undefined, "json.type", `${where} is an event of the unknown name ${brief(event.name)}`);
  type(event, where);
  const say = (condition, message) => need(condition, "event", `${where}: ${message}`);
  say(raw.length <= 1 << 14, "an event is too long");
  if (event.name === "group") {
    say(own(head.parts, event.part) === "optimizer", "a group for what is no optimizer");
    say([event.group, event.parameters].every(between(1, STEPS)), "a group without number or parameters");
    return;
  }
  const ordered = event.parts.every((part, at) => at === 0 || byCodePoints(event.parts[at - 1], part) < 0);
  say(event.parts.length > 0 && ordered && event.parts.every((part) => Object.hasOwn(head.parts, part)), "parts that no state has, or out of order");
  say((event.step === null) !== (event.input === null), "a reload is from an earlier step or from an input, and says which");
  say(event.step === null || between(0, step)(event.step), "a reload from a step that was not taken");
}

export function environment(value, where) {
  environmentType(value, where);
  const say = (condition, message) => need(condition, "environment", `${where}: ${message}`);
  for (const [name, text] of Object.entries(value.variables)) {
    say(Object.hasOwn(VARIABLES, name) && VARIABLES[name].test(text), `the environment sets ${brief(name)}, which is not allowed`);
  }
  say([value.threads, value.interop_threads].every(between(1, 4096)), "the environment's threads are out of range");
  say(["cpu", "cuda"].includes(value.device.type), "the environment's device is unknown");
  say(["highest", "high", "medium"].includes(value.flags.matmul_precision), "the environment's precision is unknown");
  return digest("pol/v1/environment\0", canonical(value));
}

const storedType = object({
  kind: oneOf("state"), prev: digestType, state: digestType, object: digestType, bytes: integer, codec: string, base: nullable(digestType),
});
const sealType = object({ schema: string, root: digestType, segments: integer, index: digestType });

export function stored(raw, where) {
  const value = document(raw, where);
  storedType(value, where);
  return value;
}

export function seal(raw, version) {
  const value = document(raw, "seal.json");
  sealType(value, "seal.json");
  need(value.schema === `pol/seal/v${version}`, "version", `seal.json has the schema ${brief(value.schema)}, which does not go with the header`);
  return value;
}

// ---- claims ---------------------------------------------------------------------------------------------------------

const claimType = object({
  format: string, task: digestType, name: string, data: dataType, steps: nullable(integer), interval: integer, steps_per_epoch: integer,
  codec: codecType, environment: environmentType, nonce: string, arithmetic: string, sources: nullable(digestType), arguments: list(string),
  settings: map(plain), sealed: nullable(digestType), inputs: list(inputType), start: nullable(digestType), owners: list(digestType),
  threshold: integer, recovery: nullable(digestType),
});

/** Whether a claim says what one can. */
export function claim(value) {
  claimType(value, "the claim");
  const { owners, threshold } = value;
  const fits = new Set(owners).size === owners.length && owners.length <= 64 && threshold <= owners.length && threshold >= Math.min(1, owners.length);
  need(fits, "claim", "the claim names owners twice, too many, or a threshold that they cannot reach");
  const spare = value.recovery === null || (owners.length > 0 && owners.length < 64 && !owners.includes(value.recovery));
  need(spare, "claim", "the claim names a recovery key that is an owner's, or one without owners");
  return value;
}
