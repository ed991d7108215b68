import { readdir, rm, rmdir } from "node:fs/promises";
import { join } from "node:path";
import { isHostDevice, isOverlayDevice, observe, preparedDevice } from "./observe.ts";
import { doomedGroup, gatewayAddress, tableName } from "./ruleset.ts";
import { runTool } from "./tools.ts";

/**
 * Takes away everything of netd's from this network namespace and its folder of namespace pins, and nothing else. Settings
 * under /proc/sys stay as they are: what they were before is not known. Running it again changes nothing.
 */
export async function cleanup(pinDirectory: string): Promise<{ readonly removed: number }> {
  const { items, ruleset } = await observe([]);
  const commands: string[] = [];
  const devices: string[] = [];
  for (const item of items.values()) {
    if (item.kind === "rule") {
      const space = item.key.indexOf(" ");
      commands.push(`rule del pref ${item.key.slice(0, space)} ${item.key.slice(space + 1)} ${item.value}`);
    }
    if (item.kind === "link" && (isOverlayDevice(item.key) || isHostDevice(item.key))) devices.push(item.key);
  }
  const pins = await readdir(pinDirectory).catch(() => []);
  // They go with their namespaces, but only some time after those.
  for (const pin of pins) commands.push(`link delete ${preparedDevice(pin)}`);
  for (const device of devices) commands.push(`link set dev ${device} group ${doomedGroup}`);
  commands.push(
    `link delete group ${doomedGroup}`,
    "route flush table all proto 76",
    `addr del ${gatewayAddress}/32 dev lo`,
  );
  // Each that fails was gone: -force goes on.
  await runTool("ip", ["-4", "-force", "-batch", "-"], `${commands.join("\n")}\n`).catch(() => "");
  if (ruleset !== "") await runTool("nft", ["delete", "table", "inet", tableName]);
  for (const pin of pins) {
    const path = join(pinDirectory, pin);
    await runTool("umount", ["-l", path]).catch(() => "");
    await rm(path, { force: true });
  }
  await rmdir(pinDirectory).catch(() => {});
  return { removed: items.size + pins.length + (ruleset === "" ? 0 : 1) };
}
