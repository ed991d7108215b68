/**
 * Key paths of the Compose specification's JSON schema (compose-spec/compose-spec, schema/compose-spec.json at 00655e2) and
 * of its text, where that is ahead of the schema (pre_start, entitlements, provenance, sbom, model_var). `*` is a name that
 * the author chooses. Extension keys are left out: every mapping may have them.
 */

const under = (prefix: string, names: string): string[] =>
  names.split(/\s+/).map((name) => `${prefix}${name.startsWith("[") ? "" : "."}${name}`);

const HOOK = "command user privileged working_dir environment";
const GRANT = "[].source [].target [].uid [].gid [].mode";
const DEVICE = "[].capabilities [].count [].device_ids [].driver [].options";
const UPDATE = "parallelism delay failure_action monitor max_failure_ratio order";

const SERVICE = `
  annotations attach blkio_config build cap_add cap_drop cgroup cgroup_parent command configs container_name cpu_count cpu_percent
  cpu_period cpu_quota cpu_rt_period cpu_rt_runtime cpu_shares cpus cpuset credential_spec depends_on deploy develop
  device_cgroup_rules devices dns dns_opt dns_search domainname entrypoint env_file environment expose extends external_links
  extra_hosts gpus group_add healthcheck hostname image init ipc isolation label_file labels links logging mac_address mem_limit
  mem_reservation mem_swappiness memswap_limit models network_mode networks oom_kill_disable oom_score_adj pid pids_limit platform
  ports post_start pre_start pre_stop privileged profiles provider pull_policy pull_refresh_after read_only restart runtime scale
  secrets security_opt shm_size stdin_open stop_grace_period stop_signal storage_opt sysctls tmpfs tty ulimits use_api_socket user
  userns_mode uts volumes volumes_from working_dir`.trim();

/** In the order of the schema. */
export const COMPOSE_KEY_PATHS: readonly string[] = [
  ..."version name include services models networks volumes secrets configs".split(" "),
  ...under("include", "[].path [].env_file [].project_directory"),
  ...under("services.*", SERVICE),
  ...under(
    "services.*.build",
    `context dockerfile dockerfile_inline entitlements args ssh labels cache_from cache_to no_cache additional_contexts network
     provenance sbom pull target shm_size extra_hosts isolation privileged secrets tags ulimits platforms`,
  ),
  ...under("services.*.build.secrets", GRANT),
  ...under(
    "services.*.blkio_config",
    "weight weight_device device_read_bps device_read_iops device_write_bps device_write_iops",
  ),
  ...under("services.*.blkio_config.weight_device", "[].path [].weight"),
  ...["device_read_bps", "device_read_iops", "device_write_bps", "device_write_iops"].flatMap((name) =>
    under(`services.*.blkio_config.${name}`, "[].path [].rate"),
  ),
  ...under("services.*.configs", GRANT),
  ...under("services.*.secrets", GRANT),
  ...under("services.*.credential_spec", "config file registry"),
  ...under("services.*.depends_on.*", "condition required restart"),
  ...under(
    "services.*.deploy",
    "mode endpoint_mode replicas labels rollback_config update_config resources restart_policy placement",
  ),
  ...under("services.*.deploy.rollback_config", UPDATE),
  ...under("services.*.deploy.update_config", UPDATE),
  ...under("services.*.deploy.resources", "limits reservations"),
  ...under("services.*.deploy.resources.limits", "cpus memory pids"),
  ...under("services.*.deploy.resources.reservations", "cpus memory generic_resources devices"),
  ...under("services.*.deploy.resources.reservations.generic_resources[]", "discrete_resource_spec"),
  ...under("services.*.deploy.resources.reservations.generic_resources[].discrete_resource_spec", "kind value"),
  ...under("services.*.deploy.resources.reservations.devices", DEVICE),
  ...under("services.*.deploy.restart_policy", "condition delay max_attempts window"),
  ...under("services.*.deploy.placement", "constraints preferences max_replicas_per_node"),
  ...under("services.*.deploy.placement.preferences[]", "spread"),
  ...under("services.*.develop", "watch"),
  ...under("services.*.develop.watch[]", "path action target ignore include exec"),
  ...under("services.*.develop.watch[].exec", HOOK),
  ...under("services.*.devices[]", "source target permissions"),
  ...under("services.*.env_file[]", "path required format"),
  ...under("services.*.extends", "service file"),
  ...under("services.*.gpus", DEVICE),
  ...under("services.*.healthcheck", "disable interval retries test timeout start_period start_interval"),
  ...under("services.*.logging", "driver options"),
  ...under("services.*.models.*", "endpoint_var model_var"),
  ...under(
    "services.*.networks.*",
    "aliases interface_name ipv4_address ipv6_address link_local_ips mac_address driver_opts priority gw_priority",
  ),
  ...under("services.*.ports[]", "name mode host_ip target published protocol app_protocol"),
  ...under("services.*.post_start[]", HOOK),
  ...under("services.*.pre_stop[]", HOOK),
  ...under("services.*.pre_start[]", `${HOOK} per_replica`),
  ...under("services.*.provider", "type options"),
  ...under("services.*.storage_opt", "size"),
  ...under("services.*.ulimits.*", "soft hard"),
  ...under("services.*.volumes[]", "type source target read_only consistency bind volume tmpfs image"),
  ...under("services.*.volumes[].bind", "propagation create_host_path recursive selinux"),
  ...under("services.*.volumes[].volume", "labels nocopy subpath"),
  ...under("services.*.volumes[].tmpfs", "size mode"),
  ...under("services.*.volumes[].image", "subpath"),
  ...under("networks.*", "name driver driver_opts ipam external internal enable_ipv4 enable_ipv6 attachable labels"),
  ...under("networks.*.ipam", "driver config options"),
  ...under("networks.*.ipam.config[]", "subnet ip_range gateway aux_addresses"),
  ...under("volumes.*", "name driver driver_opts external labels x-cluster-spec"),
  ...under("secrets.*", "name environment file external labels driver driver_opts template_driver"),
  ...under("configs.*", "name content environment file external labels template_driver"),
  ...["networks", "volumes", "secrets", "configs"].map((section) => `${section}.*.external.name`),
  ...under("models.*", "name model context_size runtime_flags"),
];
