import { writeFile } from "node:fs/promises";
import { ClusterError, messageOf } from "../../lib/errors/errors.ts";
import type { Action } from "../plan/diff.ts";
import type { Item } from "../plan/items.ts";
import { BatchChild, bridgeTool, type CommandFailure, ipTool, nftTool } from "./batch.ts";
import { commandsOf, type VethSource } from "./commands.ts";
import { isOverlayDevice, listChains, type Observation, observe } from "./observe.ts";
import { doomedGroup, rulesetText, tableName } from "./ruleset.ts";
import { runTool } from "./tools.ts";

// What removing says of something that is not there any more.
const goneAlready =
  /No such process|No such file or directory|Cannot find device|does not exist|Cannot assign requested address|No such device/;
// What adding says of something that is there already; whether it is right, the next comparison tells.
const thereAlready = /File exists/;

/** The kernel's network state, through long-lived tools. Not for two callers at once: the data path calls it in turn. */
export class Kernel implements AsyncDisposable {
  readonly #ip = new BatchChild(ipTool);
  readonly #bridge = new BatchChild(bridgeTool);
  readonly #nft = new BatchChild(nftTool);
  #ruleset = "";
  /** The number that nftables knows our nft by, and the child that it was learned from. */
  #nftProcess: number | undefined;
  #nftChild: number | undefined;
  /** Transactions since the last report of one. */
  #untold = 0;

  /**
   * Is the process, by the number that nftables reports, our own long-lived nft? That number is the one of the initial pid
   * namespace, which a netd in another cannot see: it is learned from the first transaction of each child.
   */
  isOwnProcess(pid: number): boolean {
    if (this.#nftChild !== this.#nft.pid) {
      this.#nftChild = this.#nft.pid;
      this.#nftProcess = undefined;
    }
    if (this.#nftProcess === undefined && this.#untold > 0) this.#nftProcess = pid;
    this.#untold = 0;
    return this.#nftProcess === pid;
  }

  /** A change that looked like another's turned out to be none: learns its own number anew. */
  doubtOwnProcess(): void {
    this.#nftProcess = undefined;
  }

  /**
   * Makes table, sets, chains and rules what they have to be, in one transaction that keeps the elements: established
   * connections and new ones go on. Chains of another version go in the same transaction; a table with sets of other types
   * or chains in other places is replaced in one.
   */
  async ensureRuleset(): Promise<void> {
    try {
      await runTool("nft", ["-f", "-"], rulesetText(await listChains()));
    } catch {
      await runTool(
        "nft",
        ["-f", "-"],
        `add table inet ${tableName}\ndelete table inet ${tableName}\n${rulesetText()}`,
      );
    }
    // nft -i has its own cache of chains, which maps refer to.
    this.#ruleset = (await observe([])).ruleset;
    // Devices that an earlier run had no time to delete.
    await this.#ip.run([`link delete group ${doomedGroup}`]);
  }

  /** Is the ruleset the one that was loaded? */
  isRuleset(observation: Observation): boolean {
    return observation.ruleset === this.#ruleset;
  }

  async observe(sysctls: readonly string[]): Promise<Observation> {
    return await observe(sysctls);
  }

  /**
   * Carries out a plan: what is needed first, then, in one nftables transaction, who may go where, then what is not needed
   * any more. Goes on past failures and throws `internal`, naming each failed command: what is in the kernel then has to be
   * observed. Removing what is gone already is no failure.
   */
  async apply(actions: readonly Action[], vethOf: (device: string) => VethSource | undefined): Promise<void> {
    let makesDevices = false;
    const commands = commandsOf(actions, (device) => {
      const source = vethOf(device);
      if (source?.kind === "namespace") makesDevices = true;
      return source;
    });
    for (const action of actions) {
      if (action.do === "set" && action.item.kind === "link" && isOverlayDevice(action.item.key)) makesDevices = true;
    }
    // The tools remember the numbers of devices by name: a name that is made again has another.
    if (makesDevices) await this.#forgetDevices();
    const failures: CommandFailure[] = [];
    const real = (found: readonly CommandFailure[], ignore: RegExp | undefined) => {
      for (const failure of found) if (!ignore?.test(failure.message)) failures.push(failure);
    };
    await this.#write(commands.settings, failures);
    real(await this.#ip.run(commands.ipSet), thereAlready);
    await this.#write(commands.deviceSettings, failures);
    real(await this.#bridge.run(commands.bridgeSet), undefined);
    if (commands.nft !== "") {
      this.#untold++;
      real(await this.#nft.run([commands.nft]), undefined);
    }
    real(await this.#bridge.run(commands.bridgeRemove), goneAlready);
    real(await this.#ip.run(commands.ipRemove), goneAlready);
    if (failures.length > 0) {
      await this.#forgetDevices();
      const shown = failures.slice(0, 3).map(({ command, message }) => `${command.slice(0, 300)}: ${message}`);
      const more = failures.length > 3 ? ` (and ${failures.length - 3} more)` : "";
      throw new ClusterError(`the kernel refused ${shown.join("; ")}${more}`, { code: "internal" });
    }
  }

  /** Runs `ip` commands of the caller's own; resolves to those that failed. */
  async ip(commands: readonly string[]): Promise<readonly CommandFailure[]> {
    return await this.#ip.run(commands);
  }

  async [Symbol.asyncDispose](): Promise<void> {
    await Promise.all([this.#ip, this.#bridge, this.#nft].map((child) => child[Symbol.asyncDispose]()));
  }

  async #forgetDevices(): Promise<void> {
    await Promise.all([this.#ip.restart(), this.#bridge.restart()]);
  }

  async #write(settings: readonly Item[], failures: CommandFailure[]): Promise<void> {
    for (const { key, value } of settings) {
      try {
        await writeFile(`/proc/sys/${key}`, value);
      } catch (error) {
        // Not every kernel has every setting; what is there and refused is a failure.
        if (!messageOf(error).startsWith("ENOENT"))
          failures.push({ command: `sysctl ${key}=${value}`, message: messageOf(error) });
      }
    }
  }
}
