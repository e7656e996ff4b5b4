// A client for Hyper, made from protos/ alone: workflows, datasets, chunks of arrays.
// What the wire promises is in docs/wire.md.

import { randomUUID } from "node:crypto";
import path from "node:path";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { decompress } from "fzstd";

const PROTOS = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../protos");
const TIMEOUT_MS = 30_000;
const ATTEMPTS = 6;
const MISSING = 0xffffffffffffffffn;
const CHANNEL_OPTIONS = { "grpc.enable_retries": 0 };

const definition = protoLoader.loadSync(
  [
    "hyperapi/scheduler/v1/cluster_service.proto",
    "hyperapi/scheduler/v1/workflow_service.proto",
    "hyperapi/storage/v1/dataset_service.proto",
  ],
  { includeDirs: [PROTOS], keepCase: true, longs: Number, enums: String, defaults: true, oneofs: true },
);
const api = grpc.loadPackageDefinition(definition).hyperapi;

const SERVICES = {
  ClusterService: ["scheduler", api.scheduler.v1.ClusterService],
  WorkflowService: ["scheduler", api.scheduler.v1.WorkflowService],
  DatasetService: ["storage-gateway", api.storage.v1.DatasetService],
  LogService: ["storage-gateway", api.storage.v1.LogService],
};

/** A cluster. It needs a scheduler's "host:port" and learns the rest from it. */
export class Client {
  constructor(endpoint, { token = process.env.HYPER_TOKEN || "", tenant = "default" } = {}) {
    this.tenant = tenant;
    this.addresses = { scheduler: endpoint };
    this.stubs = new Map();
    this.metadata = new grpc.Metadata();
    if (token) this.metadata.set("authorization", `Bearer ${token}`);
  }

  /** One unary call. Where a request may be repeated, UNAVAILABLE is tried again for a while. */
  async call(service, method, request) {
    for (let attempt = 1; ; attempt++) {
      try {
        const stub = await this.#stub(service);
        return await new Promise((resolve, reject) => {
          const deadline = Date.now() + TIMEOUT_MS;
          stub[method](request, this.metadata, { deadline }, (error, answer) =>
            error ? reject(error) : resolve(answer));
        });
      } catch (error) {
        if (error.code !== grpc.status.UNAVAILABLE || attempt === ATTEMPTS) throw error;
        await new Promise((resolve) => setTimeout(resolve, 100 * 2 ** attempt));
      }
    }
  }

  /** Start a recipe (YAML text); durable on return. The same requestId never starts it twice. */
  async submit(recipe, requestId = randomUUID()) {
    const request = { parent: `tenants/${this.tenant}`, recipe_yaml: recipe, request_id: requestId };
    return (await this.call("WorkflowService", "CreateWorkflow", request)).workflow;
  }

  /** The workflow now and after each change, up to its end. A lost stream is asked for again. */
  async *watch(name) {
    for (let failures = 0; ; ) {
      try {
        const stub = await this.#stub("WorkflowService");
        for await (const { workflow } of stub.WatchWorkflow({ name }, this.metadata)) {
          failures = 0;
          yield workflow;
          if (ended(workflow.state)) return;
        }
      } catch (error) {
        if (error.code !== grpc.status.UNAVAILABLE || ++failures === ATTEMPTS) throw error;
      }
      await new Promise((resolve) => setTimeout(resolve, 200));
    }
  }

  /** What a task's function returned. */
  async result(workflow, experiment, index) {
    const name = `${workflow}/experiments/${experiment}/tasks/${index}`;
    const { task } = await this.call("WorkflowService", "GetTask", { name });
    return task.result_json ? JSON.parse(task.result_json) : null;
  }

  /** An array by its resource name, tenants/T/datasets/D/versions/V/arrays/A ("head": newest). */
  async array(name) {
    const { array } = await this.call("DatasetService", "GetArray", { name });
    return new HyperArray(this, array);
  }

  close() {
    for (const stub of this.stubs.values()) stub.close();
  }

  async #stub(service) {
    const [kind, Stub] = SERVICES[service];
    if (!this.addresses[kind]) {
      const { instances } = await this.call("ClusterService", "GetCluster", {});
      const found = instances.find((instance) => instance.service === kind);
      if (!found) throw new Error(`no ${kind} runs in this cluster`);
      this.addresses[kind] = found.address;
    }
    if (!this.stubs.has(service)) {
      const address = this.addresses[kind];
      this.stubs.set(service, new Stub(address, grpc.credentials.createInsecure(), CHANNEL_OPTIONS));
    }
    return this.stubs.get(service);
  }
}

/** A sharded Zarr v3 array: chunks come straight from S3, by signed URLs. */
export class HyperArray {
  constructor(client, message) {
    this.client = client;
    this.message = message;
    this.metadata = JSON.parse(message.zarr_json);
    this.shape = message.shape;
    this.shards = message.shard_shape;
    this.chunks = message.chunk_shape;
    this.dtype = message.dtype;
  }

  /** The bytes of one chunk, decoded; null where nothing was written (all fill value). */
  async chunk(index) {
    const [sharding] = this.metadata.codecs;
    if (sharding.name !== "sharding_indexed") throw new Error(`${this.message.name} is not sharded`);
    const counts = this.shards.map((edge, axis) => edge / this.chunks[axis]);
    const shard = index.map((at, axis) => Math.floor(at / counts[axis]));
    const place = index.reduce((sum, at, axis) => sum * counts[axis] + (at % counts[axis]), 0);
    const entries = counts.reduce((product, count) => product * count, 1);
    const url = await this.#url(`${this.message.prefix}/c/${shard.join("/")}`);
    const indexBytes = entries * 16 + 4; // pairs of (offset, size), and their crc32c
    const table = await fetchRange(url, `bytes=-${indexBytes}`);
    if (table === null) return null;
    const view = new DataView(table.buffer, table.byteOffset, table.byteLength);
    const offset = view.getBigUint64(place * 16, true);
    const size = view.getBigUint64(place * 16 + 8, true);
    if (offset === MISSING && size === MISSING) return null;
    let data = await fetchRange(url, `bytes=${offset}-${offset + size - 1n}`);
    for (const codec of sharding.configuration.codecs.slice().reverse()) {
      if (codec.name === "crc32c") data = data.subarray(0, data.length - 4);
      else if (codec.name === "zstd") data = decompress(data);
      else if (codec.name !== "bytes") throw new Error(`the codec ${codec.name} is not known here`);
    }
    return data;
  }

  async #url(key) {
    const parent = this.message.name.split("/arrays/")[0];
    const request = { parent, method: "METHOD_GET", objects: [key] };
    return (await this.client.call("DatasetService", "SignUrls", request)).urls[0];
  }
}

export function ended(state) {
  return ["RUN_STATE_SUCCEEDED", "RUN_STATE_FAILED", "RUN_STATE_CANCELLED"].includes(state);
}

async function fetchRange(url, range) {
  const response = await fetch(url, { headers: { Range: range } });
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`S3 answers HTTP ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}
