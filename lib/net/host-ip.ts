/** Does it stand for every address of a host: absent, empty, or one of those that mean "any"? */
export function isEveryAddress(hostIp: string | undefined): boolean {
  return hostIp === undefined || hostIp === "" || hostIp === "0.0.0.0" || hostIp === "::";
}

/** Have two places to publish at an address of a host in common, so that a port can be published at one of them only? */
export function shareAddress(a: string | undefined, b: string | undefined): boolean {
  return a === b || isEveryAddress(a) || isEveryAddress(b);
}
