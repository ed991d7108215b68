import { ClusterError } from "../../lib/errors/errors.ts";
import type { Assignment } from "../../proto/gen/embassy/v1/dispatcher.ts";
import type { ContainerSpec, HostEntry } from "../../proto/gen/embassy/v1/stack.ts";
import type { Image } from "../images/types.ts";
import type { ContainerMount, CreateRequest, HostsEntry, Resolver } from "../runtime/types.ts";
import type { TaskNet } from "./record.ts";

/** The assignment's container. Throws `invalid` when the control plane sent none. */
export function containerOf(assignment: Assignment): ContainerSpec {
  if (assignment.container !== undefined) return assignment.container;
  throw new ClusterError("the assignment says nothing of a container", {
    code: "invalid",
    subject: `task/${assignment.taskId}`,
  });
}

/** What the runtime is asked to make for a task whose parts are prepared. Pure. */
export function createRequest(
  assignment: Assignment,
  image: Image,
  rootfs: string,
  network: TaskNet,
  mounts: readonly ContainerMount[],
): CreateRequest {
  const container = containerOf(assignment);
  return {
    id: assignment.taskId,
    name: assignment.taskName,
    container,
    resources: assignment.resources,
    image: image.config,
    rootfs,
    netnsPath: network.netnsPath,
    environment: assignment.linkEnvironment,
    mounts: sortMounts(mounts),
    hosts: hostsOf(container, assignment.linkHosts, network),
    address: network.addresses[0]?.address,
    resolver: resolverOf(container, network),
  };
}

/** The user's own lines first: of two with one name the first counts. */
function hostsOf(container: ContainerSpec, links: readonly HostEntry[], network: TaskNet): HostsEntry[] {
  return [...container.extraHosts, ...links].map(({ name, address }) => ({
    // The gateway is an address of this host, the same on every host.
    address: address === "host-gateway" ? network.dnsAddress : address,
    names: [name],
  }));
}

function resolverOf(container: ContainerSpec, network: TaskNet): Resolver {
  return {
    nameservers: network.dnsAddress === "" ? [] : [network.dnsAddress],
    search: container.dnsSearch,
    // A name without a dot is a service's: asked as it is, before any search domain.
    options: container.dnsOptions.length > 0 ? container.dnsOptions : ["ndots:0"],
  };
}

/** A mount below another comes after it; otherwise the order is kept. */
function sortMounts(mounts: readonly ContainerMount[]): ContainerMount[] {
  const depth = (mount: ContainerMount) => mount.target.split("/").filter((part) => part !== "").length;
  return mounts.toSorted((a, b) => depth(a) - depth(b));
}

/** What stops the container kindly: the service's signal, else the image's, else SIGTERM. */
export function stopSignal(assignment: Assignment, image: Image | undefined): string {
  return assignment.container?.stopSignal || image?.config.stopSignal || "SIGTERM";
}

/** How long it may take to stop before it is killed. */
export function stopGraceMs(assignment: Assignment): number {
  return assignment.container?.stopGraceMs || 10_000;
}
