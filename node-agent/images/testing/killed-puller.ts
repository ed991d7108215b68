import { silentLog } from "../../../lib/log/log.ts";
import { Spawner } from "../../../lib/process/spawner.ts";
import { openImageStore } from "../store.ts";

// Pulls an image, says each layer that is done and each container that is mounted, and waits to be killed.
const [, , stateDir = "", registry = "", reference = ""] = process.argv;
const spawner = new Spawner("test: spawner");
const store = await openImageStore({ stateDir, log: silentLog, spawner, insecureRegistries: [registry], proxyEnv: {} });
let done = 0;
const say = (line: string) => process.stdout.write(`${line}\n`);
say("open");
const image = await store.pull(reference, {
  onProgress: ({ layersDone }) => {
    for (; done < layersDone; done += 1) say(`layer ${done + 1}`);
  },
});
say("pulled");
await store.mount(image, "one");
say("mounted");
const unmounting = store.unmount("one");
say("unmounting");
await unmounting;
say("unmounted");
setInterval(() => {}, 1000);
