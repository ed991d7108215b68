import { chmod, copyFile, link, mkdir, mkdtemp, rm, writeFile } from "node:fs/promises";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { type BuiltImage, buildImage, busyboxApplets, type Layer, layerOfDirectory, type RunConfig } from "./image.ts";

/** A small root file system in one layer: Debian's busybox-static with every applet, users root and www (33), /tmp, /etc. */
export async function busyboxLayer(): Promise<Layer> {
  const root = await mkdtemp(join(tmpdir(), "embassy-busybox-"));
  try {
    for (const dir of ["bin", "etc", "tmp", "root", "proc", "sys", "dev", "var/www", "home"]) {
      await mkdir(join(root, dir), { recursive: true });
    }
    await chmod(root, 0o755);
    await chmod(join(root, "tmp"), 0o1777);
    await copyFile("/bin/busybox", join(root, "bin/busybox"));
    await chmod(join(root, "bin/busybox"), 0o755);
    for (const applet of await busyboxApplets()) await link(join(root, "bin/busybox"), join(root, "bin", applet));
    await writeFile(
      join(root, "etc/passwd"),
      "root:x:0:0:root:/root:/bin/sh\nwww:x:33:33:www:/var/www:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
    );
    await writeFile(join(root, "etc/group"), "root:x:0:\nwww:x:33:\nlogs:x:44:www\nnogroup:x:65534:\n");
    return await layerOfDirectory(root, { owner: "0:0" });
  } finally {
    await rm(root, { recursive: true, force: true });
  }
}

/** An image of `busyboxLayer` and further layers above it; runs `sh` unless the configuration says otherwise. */
export async function busyboxImage(config: RunConfig = {}, more: readonly Layer[] = []): Promise<BuiltImage> {
  const run = { Cmd: ["sh"], Env: ["PATH=/bin"], ...config };
  return buildImage({ layers: [await busyboxLayer(), ...more], config: run });
}
