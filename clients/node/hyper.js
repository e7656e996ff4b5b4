// A client for Hyper, made from protos/ alone: workflows, datasets, chunks of arrays.
// What the wire promises is in docs/wire.md.

import { randomUUID } from "node:crypto";
import { readFileSync } from "node:fs";
import path from "node:path";
import { fileURLToPath } from "node:url";

import grpc from "@grpc/grpc-js";
import protoLoader from "@grpc/proto-loader";
import { decompress } from "fzstd";

const PROTOS = path.resolve(path.dirname(fileURLToPath(import.meta.url)), "../../protos");
const TIMEOUT_MS = 30_000;
const LOOK_MS = 5_000;
const ATTEMPTS = 10; // some 20 s: a new leader takes over within them
const UNREACHED = [grpc.status.UNAVAILABLE, grpc.status.DEADLINE_EXCEEDED]; // of GetCluster
const MISSING = 0xffffffffffffffffn;
const CHANNEL_OPTIONS = {
  "grpc.enable_retries": 0,
  "grpc.keepalive_time_ms": 20_000, // a stream has no deadline
  "grpc.keepalive_timeout_ms": 10_000,
};
const SERVER_NAME = "hyper"; // in the certificate of every service, whatever address was dialled

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

/** Paths of PEM files that the environment names: the authority, and for mTLS our certificate and key. */
export function tlsOfEnvironment(env = process.env) {
  if (!env.HYPER_TLS_CA) return null;
  return { ca: env.HYPER_TLS_CA, cert: env.HYPER_TLS_CERT, key: env.HYPER_TLS_KEY };
}

/**
 * A cluster. It needs a scheduler's "host:port" and learns the rest from it. `tls` is null for none, or
 * {ca, cert, key}, as paths.
 */
export class Client {
  constructor(
    endpoint,
    { token = process.env.HYPER_TOKEN || "", tenant = "default", tls = tlsOfEnvironment() } = {},
  ) {
    this.open = opener(tls);
    this.tenant = tenant;
    this.endpoint = endpoint;
    this.schedulers = []; // as GetCluster told last
    this.stubs = new Map(); // by service
    this.lost = new Map(); // by service: the address that was UNAVAILABLE last
    this.metadata = new grpc.Metadata();
    if (token) this.metadata.set("authorization", `Bearer ${token}`);
  }

  /**
   * One unary call. UNAVAILABLE is tried again for a while, at whoever serves then; changes carry a
   * request_id.
   */
  async call(service, method, request) {
    for (let attempt = 1; ; attempt++) {
      let stub;
      try {
        stub = this.stubs.get(service) ?? (await this.#connect(service));
        return await this.#unary(stub, method, request, TIMEOUT_MS);
      } catch (error) {
        await this.#recover(error, service, stub, attempt);
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
      let stub;
      try {
        stub = this.stubs.get("WorkflowService") ?? (await this.#connect("WorkflowService"));
        for await (const { workflow } of stub.WatchWorkflow({ name }, this.metadata)) {
          failures = 0;
          yield workflow;
          if (ended(workflow.state)) return;
        }
        await pause(200);
      } catch (error) {
        await this.#recover(error, "WorkflowService", stub, ++failures);
      }
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

  #unary(stub, method, request, timeoutMs) {
    return new Promise((resolve, reject) => {
      const deadline = Date.now() + timeoutMs;
      stub[method](request, this.metadata, { deadline }, (error, answer) =>
        error ? reject(error) : resolve(answer));
    });
  }

  /** Forget a stub that was UNAVAILABLE, and wait; other errors, and the last one, are thrown. */
  async #recover(error, service, stub, attempt) {
    if (!(stub ? [grpc.status.UNAVAILABLE] : UNREACHED).includes(error.code)) throw error;
    if (stub && this.stubs.get(service) === stub) {
      this.stubs.delete(service);
      this.lost.set(service, stub.address);
      stub.close();
    }
    if (attempt >= ATTEMPTS) throw error;
    await pause(Math.min(100 * 2 ** attempt, 3_200));
  }

  /** A stub on the endpoint, then on the leader; or on any replica, rather not on the one just lost. */
  async #connect(service) {
    const [kind, Stub] = SERVICES[service];
    const [{ instances, leader }, answered] = await this.#cluster();
    const lost = this.lost.get(service);
    let address = lost && leader && leader !== lost ? leader : answered; // first who was named to us
    if (kind !== "scheduler") {
      const all = instances.filter((each) => each.service === kind).map((each) => each.address);
      if (!all.length) throw new Error(`no ${kind} runs in this cluster`);
      const others = all.filter((each) => each !== lost);
      const from = others.length ? others : all;
      address = from[Math.floor(Math.random() * from.length)];
    }
    if (!this.stubs.has(service)) this.stubs.set(service, this.open(Stub, address));
    return this.stubs.get(service);
  }

  /** What GetCluster answers, and who: the endpoint, else another scheduler known from before. */
  async #cluster() {
    let failure;
    for (const address of new Set([this.endpoint, ...this.schedulers])) {
      const stub = this.open(api.scheduler.v1.ClusterService, address);
      try {
        const found = await this.#unary(stub, "GetCluster", {}, LOOK_MS);
        const schedulers = found.instances.filter((each) => each.service === "scheduler");
        this.schedulers = schedulers.map((each) => each.address);
        return [found, address];
      } catch (error) {
        if (!UNREACHED.includes(error.code)) throw error;
        failure = error;
      } finally {
        stub.close();
      }
    }
    throw failure;
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

/** What makes stubs at addresses. */
function opener(tls) {
  let credentials = grpc.credentials.createInsecure();
  let options = CHANNEL_OPTIONS;
  if (tls) {
    const [ca, key, cert] = [tls.ca, tls.key, tls.cert].map((file) => (file ? readFileSync(file) : null));
    credentials = grpc.credentials.createSsl(ca, key, cert);
    options = {
      ...CHANNEL_OPTIONS,
      "grpc.ssl_target_name_override": SERVER_NAME,
      "grpc.default_authority": SERVER_NAME,
    };
  }
  return (Stub, address) => Object.assign(new Stub(address, credentials, options), { address });
}

function pause(ms) {
  return new Promise((resolve) => setTimeout(resolve, ms));
}

async function fetchRange(url, range) {
  const response = await fetch(url, { headers: { Range: range } });
  if (response.status === 404) return null;
  if (!response.ok) throw new Error(`S3 answers HTTP ${response.status}`);
  return new Uint8Array(await response.arrayBuffer());
}
