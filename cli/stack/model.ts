import type { stack } from "./keys/stack.ts";
import type { Infer } from "./schema.ts";

/**
 * A stack as its files describe it, once everything that depends on the machine that loads it is resolved: one file's
 * worth, in long forms, with defaults. Keys and paths are those of a stack file, so that what is said about
 * `services.web.ports[0].target` can be looked up in both. Units: durations in milliseconds, sizes in bytes, CPUs in
 * thousandths.
 */
export type Stack = Omit<
  RawStack,
  "name" | "services" | "networks" | "volumes" | "configs" | "secrets" | "x-external-services" | "include" | "version"
> & {
  name: string;
  services: Record<string, Service>;
  networks: Record<string, Network>;
  volumes: Record<string, Volume>;
  configs: Record<string, Config>;
  secrets: Record<string, Secret>;
  "x-external-services": Record<string, ExternalService>;
};

/** What `finish` gives: as the files say it. */
export type RawStack = Infer<typeof stack>;
type Of<K extends keyof RawStack> = NonNullable<RawStack[K]> extends Record<string, infer V> ? V : never;

export type RawService = Of<"services">;
type ResolvedAway =
  | "env_file"
  | "label_file"
  | "extends"
  | "profiles"
  | "scale"
  | "restart"
  | "cpus"
  | "mem_limit"
  | "mem_reservation"
  | "pids_limit";
export type Deploy = NonNullable<RawService["deploy"]>;
export type RestartPolicy = NonNullable<Deploy["restart_policy"]>;
export type UpdateConfig = NonNullable<Deploy["update_config"]>;
export type Service = Omit<RawService, ResolvedAway | "image" | "deploy" | "networks" | "environment" | "labels"> & {
  image: string;
  environment: Record<string, string>;
  labels: Record<string, string>;
  /** Empty with network_mode; else at least one. */
  networks: Record<string, ServiceNetwork>;
  deploy: Deploy & { restart_policy: RestartPolicy; update_config: UpdateConfig; rollback_config: UpdateConfig };
};
export type ServiceNetwork = NonNullable<RawService["networks"]>[string];
export type Healthcheck = NonNullable<RawService["healthcheck"]>;
export type Port = NonNullable<RawService["ports"]>[number];
export type Mount = NonNullable<RawService["volumes"]>[number];
export type Grant = NonNullable<RawService["configs"]>[number];
export type Network = Of<"networks"> & { name: string };
export type Volume = Of<"volumes"> & { name: string };
export type Config = Of<"configs"> & { name: string };
export type Secret = Of<"secrets"> & { name: string };
export type ExternalService = Of<"x-external-services">;
