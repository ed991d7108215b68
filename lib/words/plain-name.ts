/** What may name a counted resource or a taint, in stack files, in options and on the command line. */
export const plainName = /^[A-Za-z0-9]([A-Za-z0-9._/-]{0,61}[A-Za-z0-9])?$/;

/** What that is, for errors. */
export const plainNameWords =
  "1-63 letters, digits, dots, slashes, hyphens and underscores, beginning and ending with a letter or digit";
