// node example.js HOST:PORT RECIPE.yaml [ARRAY i,j,k]: run a recipe; print a chunk's size and sum.
import { readFile } from "node:fs/promises";

import { Client } from "./hyper.js";

const [endpoint, recipe, array, index] = process.argv.slice(2);
if (!recipe) {
  console.error("usage: node example.js HOST:PORT RECIPE.yaml [ARRAY i,j,k]");
  process.exit(2);
}
let client;
try {
  client = new Client(endpoint);
  const workflow = await client.submit(await readFile(recipe, "utf8"));
  let last = workflow;
  for await (const update of client.watch(workflow.name)) last = update;
  const found = { workflow: last.name, state: last.state, succeeded: last.tasks.succeeded };
  if (array) {
    const opened = await client.array(array);
    const data = await opened.chunk(index.split(",").map(Number));
    found.shape = opened.shape;
    found.bytes = data === null ? 0 : data.length;
    found.sum = data === null ? 0 : data.reduce((sum, value) => sum + value, 0);
  }
  console.log(JSON.stringify(found));
  process.exitCode = last.state === "RUN_STATE_SUCCEEDED" ? 0 : 1;
} catch (error) {
  console.error(`error: ${error.details || error.message}`);
  process.exitCode = 1;
} finally {
  client?.close();
}
