// One photo over gRPC: npm install @grpc/grpc-js @grpc/proto-loader
//   node classify_grpc.mjs cat.jpg [localhost:8081] [classifier.proto]
import { readFile } from "node:fs/promises";
import { fileURLToPath } from "node:url";
import grpc from "@grpc/grpc-js";
import loader from "@grpc/proto-loader";

const here = fileURLToPath(new URL("../alexnet_client/pb/classifier.proto", import.meta.url));
const [photo, server = "localhost:8081", proto = here] = process.argv.slice(2);
const { alexnet } = grpc.loadPackageDefinition(loader.loadSync(proto));
const client = new alexnet.v1.Classifier(server, grpc.credentials.createInsecure());
const request = { image: { encoded: await readFile(photo) }, topK: 3 };
client.classify(request, { deadline: Date.now() + 10_000 }, (error, answer) => {
  client.close();
  if (error) {
    // The trailer has the stable code of the error table; the status alone is coarser.
    console.error(`${error.metadata.get("x-error-code")[0] ?? grpc.status[error.code]}: ${error.details}`);
    process.exitCode = 1;
    return;
  }
  for (const { label, score } of answer.predictions) console.log(`${(100 * score).toFixed(1)} %  ${label}`);
});
