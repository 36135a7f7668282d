// Refusals, hashes, and files that are opened without following links and bounded before they are read.

import { createHash } from "node:crypto";
import fs from "node:fs";
import path from "node:path";

/** What is refused, in one line. rule: what was exercised; status: 1 it contradicts itself or is about something else, 2 it is malformed. */
export class Refusal extends Error {
  constructor(rule, message, status = 2) {
    super(brief(message, 400));
    this.rule = rule;
    this.status = status;
  }
}

export function need(condition, rule, message, status = 2) {
  if (!condition) throw new Refusal(rule, message, status);
}

/** The same for what contradicts itself. */
export function agree(condition, rule, message) {
  need(condition, rule, message, 1);
}

/** Foreign text for a message: one line, of bounded length. */
export function brief(text, most = 80) {
  const shown = String(text).slice(0, most).replace(/[^\P{C} ]|[\p{Zl}\p{Zp}]/gu, "\ufffd");
  return String(text).length > most ? `${shown}…` : shown;
}

export function hash(...parts) {
  const hasher = createHash("sha256");
  for (const part of parts) hasher.update(part);
  return hasher.digest();
}

/** SHA-256 as the specification writes it. Strings are hashed as UTF-8. */
export function digest(...parts) {
  return `sha256:${hash(...parts).toString("hex")}`;
}

const MOST = 2 ** 31 - 1; // bytes that are read at once

/** A descriptor of a regular file that is no link, and its size. */
export function open(file, name = path.basename(file)) {
  let handle;
  try {
    handle = fs.openSync(file, fs.constants.O_RDONLY | fs.constants.O_NOFOLLOW | fs.constants.O_NONBLOCK);
  } catch (error) {
    if (error.code === "ENOENT") throw new Refusal("files.missing", `${name} is missing`);
    throw new Refusal("files.link", `${name} is a link, or cannot be opened (${error.code})`);
  }
  const found = fs.fstatSync(handle);
  if (!found.isFile()) {
    fs.closeSync(handle);
    throw new Refusal("files.link", `${name} is no regular file`);
  }
  return { handle, size: found.size };
}

/** Exactly `size` bytes at `offset`. */
export function readAt(handle, size, offset, name) {
  need(size <= MOST, "files.size", `${name} has ${size} bytes, which are more than this verifier reads at once`);
  const buffer = Buffer.alloc(size);
  let done = 0;
  while (done < size) {
    const count = fs.readSync(handle, buffer, done, size - done, offset + done);
    need(count > 0, "files.size", `${name} ends early`);
    done += count;
  }
  return buffer;
}

/** A whole file of at most `most` bytes. */
export function read(file, most, name = path.basename(file)) {
  const { handle, size } = open(file, name);
  try {
    need(size <= most, "files.size", `${name} has ${size} bytes; at most ${most} are accepted`);
    return readAt(handle, size, 0, name);
  } finally {
    fs.closeSync(handle);
  }
}

/** The lines of a file without their newline. Raises where the last one has none, or one is too long. */
export function* lines(file, most, longest) {
  const name = path.basename(file);
  const { handle, size } = open(file, name);
  try {
    need(size <= most, "files.size", `${name} has ${size} bytes; at most ${most} are accepted`);
    let rest = Buffer.alloc(0);
    for (let at = 0; at < size; ) {
      const piece = readAt(handle, Math.min(longest, size - at), at, name);
      at += piece.length;
      rest = Buffer.concat([rest, piece]);
      let begin = 0;
      for (let end = rest.indexOf(10); end >= 0; end = rest.indexOf(10, begin)) {
        need(end - begin < longest, "files.size", `${name} has a line of more than ${longest} bytes`);
        yield rest.subarray(begin, end);
        begin = end + 1;
      }
      rest = rest.subarray(begin);
      need(rest.length < longest, "files.size", `${name} has a line of more than ${longest} bytes`);
    }
    need(rest.length === 0, "log.cut", `${name}: the last line is cut short`);
  } finally {
    fs.closeSync(handle);
  }
}

/** The digest of a file that has exactly `size` bytes. */
export function fileDigest(file, size, rule = "files.size") {
  const name = path.basename(file);
  const found = open(file, name);
  try {
    need(size === undefined || found.size === size, rule, `${name} has ${found.size} bytes; expected ${size}`);
    const hasher = createHash("sha256");
    for (let at = 0; at < found.size; ) {
      const piece = readAt(found.handle, Math.min(1 << 20, found.size - at), at, name);
      hasher.update(piece);
      at += piece.length;
    }
    return `sha256:${hasher.digest("hex")}`;
  } finally {
    fs.closeSync(found.handle);
  }
}

/** What lies in a folder, links unfollowed. */
export function entries(folder) {
  const name = path.basename(folder);
  let found;
  try {
    need(fs.lstatSync(folder).isDirectory(), "files.link", `${name} is no folder`);
    found = fs.readdirSync(folder, { withFileTypes: true });
  } catch (error) {
    if (error instanceof Refusal) throw error;
    throw new Refusal("files.missing", `${name} is missing, or cannot be read (${error.code})`);
  }
  return found;
}
