#include "hyper.h"

#include <algorithm>
#include <chrono>
#include <cstring>
#include <random>
#include <thread>

#include <curl/curl.h>
#include <google/protobuf/util/json_util.h>
#include <zstd.h>

#include "hyperapi/scheduler/v1/cluster_service.grpc.pb.h"
#include "hyperapi/scheduler/v1/workflow_service.grpc.pb.h"
#include "hyperapi/storage/v1/dataset_service.grpc.pb.h"

namespace hyper {
namespace {

namespace scheduler = hyperapi::scheduler::v1;
namespace storage = hyperapi::storage::v1;

constexpr int kAttempts = 10;  // some 20 s: a new leader takes over within them
constexpr std::chrono::seconds kTimeout{30}, kLook{5};
constexpr std::uint64_t kMissing = ~std::uint64_t{0};
constexpr std::size_t kChunkBytesMax = std::size_t{1} << 31;

std::string uuid() {
  static std::random_device source;
  std::uniform_int_distribution<int> digit(0, 15);
  std::string text = "xxxxxxxx-xxxx-4xxx-yxxx-xxxxxxxxxxxx";
  for (char& c : text) {
    if (c == 'x') c = "0123456789abcdef"[digit(source)];
    if (c == 'y') c = "89ab"[digit(source) % 4];
  }
  return text;
}

std::shared_ptr<grpc::Channel> open(const std::string& address) {
  grpc::ChannelArguments arguments;
  arguments.SetInt(GRPC_ARG_ENABLE_RETRIES, 0);
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIME_MS, 20'000);  // a stream has no deadline
  arguments.SetInt(GRPC_ARG_KEEPALIVE_TIMEOUT_MS, 10'000);
  return grpc::CreateCustomChannel(address, grpc::InsecureChannelCredentials(), arguments);
}

std::size_t append(char* data, std::size_t size, std::size_t count, void* target) {
  static_cast<std::string*>(target)->append(data, size * count);
  return size * count;
}

// A range of an object; nothing where there is no such object.
std::optional<std::string> fetch(const std::string& url, const std::string& range) {
  std::unique_ptr<CURL, decltype(&curl_easy_cleanup)> curl(curl_easy_init(), curl_easy_cleanup);
  std::string body;
  curl_easy_setopt(curl.get(), CURLOPT_URL, url.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_RANGE, range.c_str());
  curl_easy_setopt(curl.get(), CURLOPT_TIMEOUT, 60L);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEFUNCTION, append);
  curl_easy_setopt(curl.get(), CURLOPT_WRITEDATA, &body);
  const CURLcode result = curl_easy_perform(curl.get());
  if (result != CURLE_OK) {
    throw Error(grpc::UNAVAILABLE, std::string("S3: ") + curl_easy_strerror(result));
  }
  long status = 0;
  curl_easy_getinfo(curl.get(), CURLINFO_RESPONSE_CODE, &status);
  if (status == 404) return std::nullopt;
  if (status != 206) throw Error(grpc::UNAVAILABLE, "S3 answers HTTP " + std::to_string(status));
  return body;
}

std::uint64_t little_endian(const std::string& bytes, std::size_t at) {
  std::uint64_t value = 0;
  for (int i = 7; i >= 0; --i) value = value << 8 | static_cast<unsigned char>(bytes.at(at + i));
  return value;
}

std::string decompress(const std::string& data) {
  const auto size = ZSTD_getFrameContentSize(data.data(), data.size());
  if (size == ZSTD_CONTENTSIZE_ERROR || size == ZSTD_CONTENTSIZE_UNKNOWN || size > kChunkBytesMax) {
    throw Error(grpc::DATA_LOSS, "a chunk is no zstd frame of known size");
  }
  std::string out(size, '\0');
  const auto got = ZSTD_decompress(out.data(), out.size(), data.data(), data.size());
  if (ZSTD_isError(got) || got != size) throw Error(grpc::DATA_LOSS, "a chunk is damaged");
  return out;
}

}  // namespace

bool ended(const Workflow& workflow) {
  return workflow.state() == scheduler::RUN_STATE_SUCCEEDED ||
         workflow.state() == scheduler::RUN_STATE_FAILED ||
         workflow.state() == scheduler::RUN_STATE_CANCELLED;
}

Client::Client(std::string endpoint, std::string token, std::string tenant)
    : endpoint_(std::move(endpoint)), token_(std::move(token)), tenant_(std::move(tenant)) {}

void Client::prepare(grpc::ClientContext& context, bool deadline) const {
  if (!token_.empty()) context.AddMetadata("authorization", "Bearer " + token_);
  if (deadline) context.set_deadline(std::chrono::system_clock::now() + kTimeout);
}

std::shared_ptr<grpc::Channel> Client::connect(const std::string& service) {
  auto& channel = channels_[service];
  if (!channel) channel = open(locate(service));
  return channel;
}

// The scheduler that leads, or any replica of another service.
std::string Client::locate(const std::string& service) {
  std::vector<std::string> asked{endpoint_};
  asked.insert(asked.end(), schedulers_.begin(), schedulers_.end());
  grpc::Status failure;
  for (const auto& address : asked) {
    grpc::ClientContext context;
    prepare(context, false);
    context.set_deadline(std::chrono::system_clock::now() + kLook);
    scheduler::GetClusterResponse found;
    failure = scheduler::ClusterService::NewStub(open(address))->GetCluster(&context, {}, &found);
    if (!failure.ok()) continue;
    schedulers_.clear();
    std::vector<std::string> replicas;
    for (const auto& each : found.instances()) {
      if (each.service() == "scheduler") schedulers_.push_back(each.address());
      if (each.service() == service) replicas.push_back(each.address());
    }
    if (service == "scheduler") return found.leader().empty() ? address : found.leader();
    if (replicas.empty()) throw Error(grpc::UNAVAILABLE, "no " + service + " runs in this cluster");
    std::random_device source;
    return replicas[source() % replicas.size()];
  }
  throw Error(failure.error_code(), endpoint_ + ": " + failure.error_message());
}

void Client::attempt(const std::string& service,
                     const std::function<grpc::Status(std::shared_ptr<grpc::Channel>,
                                                      grpc::ClientContext&)>& call,
                     bool deadline) {
  for (int tried = 1;; ++tried) {
    grpc::StatusCode code;
    std::string message;
    try {
      grpc::ClientContext context;
      prepare(context, deadline);
      const grpc::Status status = call(connect(service), context);
      if (status.ok()) return;
      code = status.error_code();
      message = status.error_message();
    } catch (const Error& error) {  // nobody told where the service is
      code = error.code;
      message = error.what();
    }
    if (code != grpc::UNAVAILABLE || tried >= kAttempts) throw Error(code, message);
    channels_.erase(service);
    std::this_thread::sleep_for(std::chrono::milliseconds(std::min(100 << tried, 3200)));
  }
}

Workflow Client::submit(const std::string& recipe, std::string request_id) {
  scheduler::CreateWorkflowRequest request;
  request.set_parent("tenants/" + tenant_);
  request.set_recipe_yaml(recipe);
  request.set_request_id(request_id.empty() ? uuid() : request_id);
  scheduler::CreateWorkflowResponse response;
  attempt("scheduler", [&](auto channel, auto& context) {
    return scheduler::WorkflowService::NewStub(channel)->CreateWorkflow(&context, request,
                                                                        &response);
  });
  return response.workflow();
}

Workflow Client::watch(const std::string& name,
                       const std::function<void(const Workflow&)>& update) {
  scheduler::WatchWorkflowRequest request;
  request.set_name(name);
  Workflow last;
  while (!ended(last)) {
    attempt(
        "scheduler",
        [&](auto channel, auto& context) {
          auto stub = scheduler::WorkflowService::NewStub(channel);
          auto stream = stub->WatchWorkflow(&context, request);
          scheduler::WatchWorkflowResponse response;
          while (!ended(last) && stream->Read(&response)) {
            last = response.workflow();
            update(last);
          }
          if (ended(last)) context.TryCancel();
          const grpc::Status status = stream->Finish();
          return ended(last) ? grpc::Status::OK : status;
        },
        false);
  }
  return last;
}

Array Client::array(const std::string& name) {
  storage::GetArrayRequest request;
  request.set_name(name);
  storage::GetArrayResponse response;
  attempt("storage-gateway", [&](auto channel, auto& context) {
    return storage::DatasetService::NewStub(channel)->GetArray(&context, request, &response);
  });
  return Array(*this, response.array());
}

Array::Array(Client& client, storage::Array message)
    : client_(client), message_(std::move(message)) {
  google::protobuf::Struct metadata;
  if (!google::protobuf::util::JsonStringToMessage(message_.zarr_json(), &metadata).ok()) {
    throw Error(grpc::DATA_LOSS, message_.name() + ": its zarr.json is no JSON");
  }
  const auto& codecs = metadata.fields().at("codecs").list_value().values();
  const auto& sharding = codecs.at(0).struct_value().fields();
  if (sharding.at("name").string_value() != "sharding_indexed") {
    throw Error(grpc::UNIMPLEMENTED, message_.name() + " is not sharded");
  }
  const auto& inner = sharding.at("configuration").struct_value().fields().at("codecs");
  for (const auto& codec : inner.list_value().values()) {
    codecs_.push_back(codec.struct_value().fields().at("name").string_value());
  }
}

std::optional<std::string> Array::chunk(const std::vector<std::int64_t>& index) {
  if (static_cast<int>(index.size()) != message_.shape_size()) {
    throw Error(grpc::INVALID_ARGUMENT, "a chunk has as many numbers as the array has axes");
  }
  std::string key = message_.prefix() + "/c";
  std::uint64_t place = 0, entries = 1;
  for (int axis = 0; axis < message_.shape_size(); ++axis) {
    const std::int64_t chunk = message_.chunk_shape(axis), shard = message_.shard_shape(axis);
    const std::int64_t count = shard / chunk, at = index[axis];
    if (at < 0 || at * chunk >= message_.shape(axis)) {
      throw Error(grpc::OUT_OF_RANGE, "the array has no such chunk");
    }
    key += "/" + std::to_string(at / count);
    place = place * count + at % count;
    entries *= count;
  }
  const std::string address = url(key);
  const auto table = fetch(address, "-" + std::to_string(entries * 16 + 4));
  if (!table) return std::nullopt;
  const auto offset = little_endian(*table, place * 16);
  const auto size = little_endian(*table, place * 16 + 8);
  if (offset == kMissing && size == kMissing) return std::nullopt;
  const auto range = std::to_string(offset) + "-" + std::to_string(offset + size - 1);
  auto data = fetch(address, range);
  if (!data) throw Error(grpc::DATA_LOSS, key + " has gone");
  for (auto codec = codecs_.rbegin(); codec != codecs_.rend(); ++codec) {
    if (*codec == "crc32c") {
      data->resize(data->size() - std::min<std::size_t>(4, data->size()));
    } else if (*codec == "zstd") {
      data = decompress(*data);
    } else if (*codec != "bytes") {
      throw Error(grpc::UNIMPLEMENTED, "the codec " + *codec + " is not known here");
    }
  }
  return data;
}

std::string Array::url(const std::string& key) {
  storage::SignUrlsRequest request;
  request.set_parent(message_.name().substr(0, message_.name().find("/arrays/")));
  request.set_method(storage::METHOD_GET);
  request.add_objects(key);
  storage::SignUrlsResponse response;
  client_.attempt("storage-gateway", [&](auto channel, auto& context) {
    return storage::DatasetService::NewStub(channel)->SignUrls(&context, request, &response);
  });
  return response.urls(0);
}

}  // namespace hyper
