// One photo over HTTP with fetch, in Node 18 or later (or, with a file input, in a browser).
//   node classify.mjs cat.jpg [http://localhost:8080]
import { readFile } from "node:fs/promises";

const [photo, server = "http://localhost:8080"] = process.argv.slice(2);
const answer = await fetch(`${server}/classify?top_k=3`, {
  method: "POST",
  body: await readFile(photo),
  signal: AbortSignal.timeout(10_000),
});
const body = await answer.json();
if (!answer.ok) {
  // RFC 9457: `code` is stable, `detail` is for people. 429 and 503 say in Retry-After when to come back.
  console.error(`${body.code}: ${body.detail}`, answer.headers.get("retry-after") ?? "");
  process.exit(1);
}
for (const { label, score } of body.predictions) console.log(`${(100 * score).toFixed(1)} %  ${label}`);
