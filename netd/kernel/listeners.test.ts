import { expect, it } from "vitest";
import { parseListeners } from "./listeners.ts";

it("what ss prints is read: what IPv4 reaches, with its program", () => {
  const text = `udp UNCONN 0      0      127.0.0.53%lo:53   0.0.0.0:*    users:(("systemd-resolve",pid=501,fd=13))
udp UNCONN 0      0                  *:5353       *:*
tcp LISTEN 0      128        0.0.0.0:22   0.0.0.0:*    users:(("sshd",pid=7,fd=3),("sshd",pid=8,fd=3))
tcp LISTEN 0      511              *:80         *:*    users:(("nginx: master",pid=9,fd=6))
tcp LISTEN 0      511           [::]:81      [::]:*    users:(("v6only",pid=9,fd=7))
tcp LISTEN 0      511 [::ffff:10.0.0.5]:82      *:*    users:(("java",pid=10,fd=6))
tcp LISTEN 0      511          [::1]:83      [::]:*
garbage
`;
  expect(parseListeners(text)).toEqual([
    { protocol: "udp", address: "127.0.0.53", port: 53, program: "systemd-resolve (pid 501)" },
    { protocol: "udp", address: "0.0.0.0", port: 5353, program: "" },
    { protocol: "tcp", address: "0.0.0.0", port: 22, program: "sshd (pid 7)" },
    { protocol: "tcp", address: "0.0.0.0", port: 80, program: "nginx: master (pid 9)" },
    { protocol: "tcp", address: "10.0.0.5", port: 82, program: "java (pid 10)" },
  ]);
});
