/** A port that a program of the cluster listens on. */
export interface OwnPort {
  readonly port: number;
  readonly protocol: "tcp" | "udp";
  /** The program and the flag that says another one: "clusterd (--listen)". */
  readonly by: string;
}

const tcp = (port: number, by: string): OwnPort => ({ port, protocol: "tcp", by });

/**
 * What the programs listen on unless a flag says otherwise, and the overlay's port. Services cannot publish them, also where a flag
 * says otherwise: netd keeps its hands off them without being told of the other programs' flags.
 */
export const defaultPorts = {
  main: tcp(7400, "clusterd (--listen)"),
  join: tcp(7401, "clusterd (--join-listen)"),
  clusterdStatus: tcp(7402, "clusterd (--http-listen)"),
  etcd: tcp(7404, "clusterd's etcd (--etcd-listen)"),
  etcdPeer: tcp(7405, "clusterd's etcd (--etcd-peer-listen)"),
  agent: tcp(7410, "noded (--agent-listen)"),
  nodedStatus: tcp(7411, "noded (--http-listen)"),
  netdStatus: tcp(7412, "netd (--http-listen)"),
  overlay: { port: 4789, protocol: "udp", by: "the overlay (VXLAN)" },
} as const satisfies Readonly<Record<string, OwnPort>>;
