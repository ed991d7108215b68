import type { ExampleImage } from "../images.ts";

/** The web program on Debian's Python, and Debian's redis-server with the libraries it needs. */
export const images: readonly ExampleImage[] = [
  {
    repository: "counter/web",
    tag: "1",
    packages: ["python3.11-minimal", "libpython3.11-minimal", "libpython3.11-stdlib", "libexpat1"],
    files: { "/srv/server.py": "examples/counter/web/server.py" },
    config: {
      Entrypoint: ["/usr/bin/python3.11", "-u", "/srv/server.py"],
      User: "65534:65534",
      ExposedPorts: { "8080/tcp": {} },
    },
  },
  {
    repository: "counter/redis",
    tag: "7",
    packages: [
      "redis-tools",
      "redis-server",
      "libatomic1",
      "libcap2",
      "libgcrypt20",
      "libgpg-error0",
      "libhiredis0.14",
      "libjemalloc2",
      "liblz4-1",
      "liblzf1",
      "liblzma5",
      "libssl3",
      "libsystemd0",
      "libzstd1",
    ],
    files: {},
    config: { Cmd: ["redis-server"], User: "65534:65534", ExposedPorts: { "6379/tcp": {} } },
  },
];
