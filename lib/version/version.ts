import packageFile from "../../package.json" with { type: "json" };

/** The release that every program of one installation is of, as in package.json. */
export const version: string = packageFile.version;
