import { openTestRuntime, type TestPlace, testRequest } from "./host.ts";

// An agent that begins many containers one after the other, says each step that it knows to be done, and waits to be killed.
const place = JSON.parse(process.argv[2] ?? "") as TestPlace;
const runtime = await openTestRuntime(place);
await runtime.adopt();
process.stdout.write("open\n");
const begun: Promise<void>[] = [];
for (const id of (process.argv[3] ?? "").split(",")) {
  const created = runtime.create(testRequest(place, id));
  begun.push(
    (async () => {
      const { pid } = await created;
      process.stdout.write(`created ${id} ${pid}\n`);
      await runtime.start(id);
      process.stdout.write(`started ${id} ${pid}\n`);
    })(),
  );
  // So that at any moment each is at another step.
  await new Promise((resolve) => setTimeout(resolve, 7));
}
await Promise.all(begun);
process.stdout.write("done\n");
setInterval(() => {}, 1000);
