// A client for Hyper, made from protos/ alone: workflows, and chunks of arrays.
// What the wire promises is in docs/wire.md.

#pragma once

#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include <google/protobuf/struct.pb.h>
#include <grpcpp/grpcpp.h>

#include "hyperapi/scheduler/v1/workflow.pb.h"
#include "hyperapi/storage/v1/dataset.pb.h"

namespace hyper {

// What a service has refused, or that it cannot be reached; `what()` says what to do.
class Error : public std::runtime_error {
 public:
  Error(grpc::StatusCode code, const std::string& message)
      : std::runtime_error(message), code(code) {}
  const grpc::StatusCode code;
};

using Workflow = hyperapi::scheduler::v1::Workflow;

class Array;

// A cluster. It needs a scheduler's "host:port" and learns the rest from it. Use it from one thread.
class Client {
 public:
  explicit Client(std::string endpoint, std::string token = "", std::string tenant = "default");

  // Starts a recipe (YAML text); durable on return. The same request_id never starts it twice; empty,
  // one is made up.
  Workflow submit(const std::string& recipe, std::string request_id = "");

  // Tells of the workflow now and after each change, and returns it as it has ended. A lost stream
  // is asked for again.
  Workflow watch(const std::string& name, const std::function<void(const Workflow&)>& update);

  // An array by its resource name, tenants/T/datasets/D/versions/V/arrays/A ("head": the newest).
  Array array(const std::string& name);

 private:
  friend class Array;

  // Runs `call` on a channel to a replica of `service`, again and elsewhere while it is UNAVAILABLE.
  void attempt(const std::string& service,
               const std::function<grpc::Status(std::shared_ptr<grpc::Channel>,
                                                grpc::ClientContext&)>& call,
               bool deadline = true);
  std::shared_ptr<grpc::Channel> connect(const std::string& service);
  std::string locate(const std::string& service);
  void prepare(grpc::ClientContext& context, bool deadline) const;

  std::string endpoint_, token_, tenant_;
  std::vector<std::string> schedulers_;                            // as GetCluster told last
  std::map<std::string, std::shared_ptr<grpc::Channel>> channels_;  // by service
};

// A sharded Zarr v3 array: chunks come straight from S3, by signed URLs.
class Array {
 public:
  Array(Client& client, hyperapi::storage::v1::Array message);

  const hyperapi::storage::v1::Array& message() const { return message_; }

  // The bytes of one chunk, decoded; nothing where nothing was written (all fill value).
  std::optional<std::string> chunk(const std::vector<std::int64_t>& index);

 private:
  std::string url(const std::string& key);

  Client& client_;
  hyperapi::storage::v1::Array message_;
  std::vector<std::string> codecs_;  // of a chunk within its shard, in the order they were applied
};

bool ended(const Workflow& workflow);

}  // namespace hyper
