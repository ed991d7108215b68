/** The name of a resource that is counted, as stack files reserve it and nodes announce it. */
export const resourceKind = /^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$/;

/** What that is, for errors. */
export const resourceKindWords =
  "1-63 letters, digits, dots, slashes, hyphens and underscores, beginning and ending with a letter or digit";
