const bucketsMs = [1, 2.5, 5, 10, 25, 50, 100, 250, 500, 1_000, 5_000];

/** Counters of /metrics. Kept by hand: a client library takes a good part of this program's memory. */
export class Metrics {
  readonly #apply = bucketsMs.map(() => 0);
  #applyCount = 0;
  #applySumMs = 0;
  #actions = 0;
  #drifts = 0;
  readonly #dns = new Map<string, number>();

  /** A pass over the kernel that succeeded. */
  pass(actions: number, durationMs: number, drifts: number): void {
    for (const [n, most] of bucketsMs.entries()) if (durationMs <= most) this.#apply[n] = (this.#apply[n] ?? 0) + 1;
    this.#applyCount++;
    this.#applySumMs += durationMs;
    this.#actions += actions;
    this.#drifts += drifts;
  }

  dns(result: string): void {
    this.#dns.set(result, (this.#dns.get(result) ?? 0) + 1);
  }

  get driftsRepaired(): number {
    return this.#drifts;
  }

  /** In Prometheus' text format. */
  format(gauges: Readonly<Record<string, { readonly help: string; readonly value: number }>>): string {
    const lines: string[] = [];
    const head = (name: string, type: string, help: string) =>
      lines.push(`# HELP ${name} ${help}`, `# TYPE ${name} ${type}`);
    for (const [name, { help, value }] of Object.entries(gauges)) {
      head(name, "gauge", help);
      lines.push(`${name} ${value}`);
    }
    head("embassy_netd_apply_seconds", "histogram", "Time of a pass over the kernel.");
    for (const [n, most] of bucketsMs.entries()) {
      lines.push(`embassy_netd_apply_seconds_bucket{le="${most / 1_000}"} ${this.#apply[n] ?? 0}`);
    }
    lines.push(`embassy_netd_apply_seconds_bucket{le="+Inf"} ${this.#applyCount}`);
    lines.push(`embassy_netd_apply_seconds_sum ${this.#applySumMs / 1_000}`);
    lines.push(`embassy_netd_apply_seconds_count ${this.#applyCount}`);
    head("embassy_netd_kernel_changes_total", "counter", "Things set or removed in the kernel.");
    lines.push(`embassy_netd_kernel_changes_total ${this.#actions}`);
    head("embassy_netd_drift_repaired_total", "counter", "Things found changed by others, and mended.");
    lines.push(`embassy_netd_drift_repaired_total ${this.#drifts}`);
    head("embassy_netd_dns_queries_total", "counter", "Questions answered, by where the answer came from.");
    for (const [result, count] of [...this.#dns].sort(([a], [b]) => (a < b ? -1 : 1))) {
      lines.push(`embassy_netd_dns_queries_total{result="${result}"} ${count}`);
    }
    head("process_cpu_seconds_total", "counter", "CPU time.");
    const { user, system } = process.cpuUsage();
    lines.push(`process_cpu_seconds_total ${(user + system) / 1e6}`);
    head("process_resident_memory_bytes", "gauge", "Memory.");
    lines.push(`process_resident_memory_bytes ${process.memoryUsage.rss()}`);
    return `${lines.join("\n")}\n`;
  }
}
