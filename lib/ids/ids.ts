import { randomBytes } from "node:crypto";

const alphabet = "abcdefghijklmnopqrstuvwxyz234567";

/** A new id: 12 characters of a-z2-7, 60 random bits. Usable in file, device, cgroup and DNS names. */
export function newId(): string {
  let id = "";
  for (const byte of randomBytes(12)) id += alphabet[byte & 31];
  return id;
}

/** Does the text have the form of an id? */
export function isId(text: string): boolean {
  return /^[a-z2-7]{12}$/.test(text);
}
