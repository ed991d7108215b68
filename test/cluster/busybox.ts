import { mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { busyboxImage } from "../images/busybox.ts";
import { layerOfDirectory } from "../images/image.ts";
import type { Cluster } from "./cluster.ts";

/** Pushes the image busybox:1: every applet, a shell as its command, and /www/index.html that says "page". Returns its reference. */
export async function pushBusybox(cluster: Cluster): Promise<string> {
  const directory = await mkdtemp(join(tmpdir(), "embassy-page-"));
  try {
    await mkdir(join(directory, "www"));
    await writeFile(join(directory, "www/index.html"), "page\n");
    const page = await layerOfDirectory(directory, { owner: "0:0" });
    return await cluster.push("busybox", "1", await busyboxImage({}, [page]));
  } finally {
    await rm(directory, { recursive: true, force: true });
  }
}
