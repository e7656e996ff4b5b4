"""The client: one object that reaches every service of a cluster.

It needs a scheduler's address and learns the rest from it. It connects when first used, may be
shared by threads, and notices a fork. What it offers is written in the modules it delegates to:
`hyper.datasets`, `hyper.sessions`, `hyper.workflows`, `hyper.compute_inference`,
`hyper.compute_matching`.
"""

from __future__ import annotations

import logging
import os
import random
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.protobuf.message import Message

from hyper import _transport, config
from hyper._wire_errors import from_rpc_error
from hyper.errors import HyperError, InvalidArgumentError, NoClusterError, UnavailableError
from hyper.names import check_part
from hyperapi.scheduler.v1.cluster_service_pb2 import GetClusterRequest, GetClusterResponse
from hyperapi.scheduler.v1.cluster_service_pb2_grpc import ClusterServiceStub

if TYPE_CHECKING:
    import numpy as np

    from hyper.arrays import Array
    from hyper.compute_matching import PairMatches
    from hyper.datasets import Dataset
    from hyper.placement import Cost, Plan
    from hyper.sessions import Session
    from hyper.tasks import MapRun
    from hyper.workflows import ClusterInfo, WorkerInfo, Workflow, WorkflowStatus

log = logging.getLogger("hyper")

R = TypeVar("R")
Notice = Callable[[str], None]
StubKind = Callable[[grpc.Channel], Any]
Requests = Message | Iterator[Message] | Callable[[], Iterator[Message]]

DEFAULT_TENANT = "default"
_BACKOFF_FIRST_S = 0.1
_BACKOFF_MAX_S = 2.0
_LOOK_AGAIN_S = 5.0
_SCHEDULERS_AGAIN_S = 30.0
_QUIET_S = 0.5  # a shorter interruption is not worth a line
_REDIRECTS_MAX = 2  # followed at once; more of them, and two schedulers disagree for a while


class Client:
    """A cluster, as seen from a program. Close it, or use it in a `with`.

    Args:
        endpoint: "host:port[,host:port]" of schedulers; by default `HYPER_ENDPOINT`, else the
            cluster of `hyper up`.
        tenant: whose workflows `submit` and `workflows` mean; by default `HYPER_TENANT`, else
            "default".
        timeout_s: for each attempt of a call.
        patience_s: how long calls go on trying while a service is unreachable; by default
            `HYPER_PATIENCE_S`, else 30.
        notice: is told in one line when a service is waited for and when it is back.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        tenant: str | None = None,
        timeout_s: float = _transport.UNARY_TIMEOUT_S,
        patience_s: float | None = None,
        notice: Notice | None = None,
    ) -> None:
        self.tenant = check_part(
            tenant or os.environ.get("HYPER_TENANT") or DEFAULT_TENANT, "tenant"
        )
        self.timeout_s = timeout_s
        self.patience_s = config.patience_s() if patience_s is None else patience_s
        self._endpoint = endpoint
        self._notice: Notice = notice or log.warning
        self._lock = threading.RLock()
        self._channels: dict[tuple[str, ...], grpc.Channel] = {}
        self._addresses: dict[str, tuple[str, ...]] = {}
        self._schedulers: tuple[str, ...] = ()  # that have told of themselves
        self._learned_at = 0.0
        self._pid = os.getpid()
        self._closed = False
        _clients.add(self)

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce__(self) -> tuple[Any, ...]:
        """Pickled for a spawned process: the settings travel, the connections do not."""
        return _rebuild, (self._endpoint, self.tenant, self.timeout_s, self.patience_s)

    def close(self) -> None:
        """Close every channel; the client cannot be used afterwards."""
        with self._lock:
            self._closed = True
            self._addresses.clear()
            channels, self._channels = list(self._channels.values()), {}
        if self._pid == os.getpid():
            for channel in channels:
                channel.close()

    # Calls

    def call(
        self,
        service: str,
        stub: StubKind,
        method: str,
        request: Message,
        *,
        timeout_s: float | None = None,
        patience_s: float | None = None,
    ) -> Any:
        """One unary call, e.g. `call("scheduler", WorkflowServiceStub, "GetWorkflow", request)`.

        While the service is unreachable a request that may be repeated is tried again, on
        freshly resolved addresses, until `patience_s` has passed.

        Raises:
            HyperError: the class that stands for the status (`hyper.errors`).
        """
        waiting = _Waiting(self, service, patience_s, may_repeat(request))
        while True:
            try:
                handle = getattr(self.stub(service, stub), method)
                response = handle(request, timeout=timeout_s or self.timeout_s)
            except grpc.RpcError as error:
                waiting.after(from_rpc_error(error, peer=service))
            except UnavailableError as error:
                waiting.after(error)
            else:
                waiting.over()
                if service == config.SCHEDULER and method != "GetCluster":
                    self._look_again(_SCHEDULERS_AGAIN_S)
                return response

    def stream(
        self,
        service: str,
        stub: StubKind,
        method: str,
        request: Requests,
        *,
        timeout_s: float | None = None,
        patience_s: float | None = None,
    ) -> Iterator[Any]:
        """A call with a stream of responses; it starts with the first `next`.

        `request` is a message, an iterator of messages, or a function that makes one. Until the
        first response has come, a message or function is tried again like `call` does; later
        failures are the caller's, who knows where to resume. Without `timeout_s` there is no
        deadline; a dead peer is noticed by keepalive. Closing the iterator cancels the call.

        Raises:
            HyperError: the class that stands for the status.
        """
        repeatable = may_repeat(request) if isinstance(request, Message) else callable(request)
        waiting = _Waiting(self, service, patience_s, repeatable)
        while True:
            started = False
            responses: Any = None
            try:
                handle = getattr(self.stub(service, stub), method)
                responses = handle(request() if callable(request) else request, timeout=timeout_s)
                for response in responses:
                    if not started:
                        started = True
                        waiting.over()
                    yield response
                return
            except grpc.RpcError as error:
                translated = from_rpc_error(error, peer=service)
                if started:
                    self.forget(service)
                    raise translated from None
                waiting.after(translated)
            except UnavailableError as error:
                if started:
                    raise
                waiting.after(error)
            finally:
                if responses is not None:
                    responses.cancel()

    def stub(self, service: str, stub: StubKind) -> Any:
        """A stub on the current channel to `service`, e.g. `stub("matcher", MatcherServiceStub)`.

        Calls on it raise plain `grpc.RpcError`; `call` and `stream` are kinder.
        """
        return stub(self._channel(self.addresses(service)))

    def addresses(self, service: str) -> tuple[str, ...]:
        """Where the replicas of `service` are ("host:port"), cached until they cannot be reached.

        Replicas that come and go are noticed within seconds, without holding up any call.

        Raises:
            UnavailableError: no replica is announced, or no scheduler answers.
        """
        with self._lock:
            self._check_process()
            known = self._addresses.get(service)
        if known is not None:
            if service != config.SCHEDULER:
                self._look_again(_LOOK_AGAIN_S)
            return known
        if service == config.SCHEDULER:
            found = config.scheduler_addresses(self._endpoint)
            with self._lock:  # the one that was configured may be the one that is gone
                found = tuple(dict.fromkeys((*found, *self._schedulers)))
        else:
            found = config.service_override(service) or self._discover(service)
        with self._lock:
            self._addresses[service] = found
        return found

    def forget(self, service: str) -> None:
        """Look `service` up anew at the next call."""
        with self._lock:
            self._addresses.pop(service, None)

    def use_leader(self, address: str) -> None:
        """Send calls to the scheduler that leads, until it cannot be reached."""
        with self._lock:
            self._addresses[config.SCHEDULER] = (address,)

    def notify(self, line: str) -> None:
        """Tell the user in one line what the client is waiting for."""
        self._notice(line)

    def _discover(self, service: str) -> tuple[str, ...]:
        response: GetClusterResponse = self.call(
            config.SCHEDULER, ClusterServiceStub, "GetCluster", GetClusterRequest()
        )
        found = self._learn(response).get(service)
        if not found:
            raise UnavailableError(
                f"no {service} runs in this cluster; see `hyper status`, or start one",
                reason="SERVICE_UNREACHABLE",
            )
        return found

    def _learn(self, response: GetClusterResponse) -> dict[str, tuple[str, ...]]:
        """The addresses of each service, as a scheduler tells them."""
        found: dict[str, tuple[str, ...]] = {}
        for each in sorted(response.instances, key=lambda instance: instance.address):
            found[each.service] = (*found.get(each.service, ()), each.address)
        with self._lock:
            self._schedulers = found.get(config.SCHEDULER, self._schedulers)
            self._learned_at = time.monotonic()
        return found

    def _look_again(self, after_s: float) -> None:
        """Ask a scheduler, now and then and beside the calls, which replicas there are.

        Other schedulers are known then before the one that was asked for is gone.
        """
        with self._lock:
            now = time.monotonic()
            if self._closed or (self._learned_at and now - self._learned_at < after_s):
                return
            scheduler = self._addresses.get(config.SCHEDULER)
            if scheduler is None or _transport.is_relayed():
                return
            self._learned_at = now
            stub = ClusterServiceStub(self._channel(scheduler))
        asked = stub.GetCluster.future(GetClusterRequest(), timeout=_LOOK_AGAIN_S)
        asked.add_done_callback(self._looked)

    def _looked(self, asked: Any) -> None:
        """Take over what `_look_again` has found; where nobody answered, what was known stays."""
        if asked.cancelled() or asked.exception() is not None:
            return
        found = self._learn(asked.result())
        with self._lock:
            for service, known in self._addresses.items():
                if service != config.SCHEDULER and config.service_override(service) is None:
                    self._addresses[service] = found.get(service, known)

    def _channel(self, addresses: tuple[str, ...]) -> grpc.Channel:
        with self._lock:
            self._check_process()
            channel = self._channels.get(addresses)
            if channel is None:
                channel = self._channels[addresses] = _transport.channel(addresses)
            return channel

    def _check_process(self) -> None:
        """After a fork the parent's channels are of no use here: leave them alone."""
        if self._closed:
            raise ValueError("this client is closed; make a new one with hyper.connect()")
        if self._pid != os.getpid():
            self._pid = os.getpid()
            self._channels = {}
            self._addresses = {}

    # Data (hyper.datasets, hyper.sessions)

    def open(self, address: str) -> Dataset | Array:
        """A dataset, `tenant/name[@version]`, or an array in one, `tenant/name[@version]/array`."""
        from hyper import datasets

        return datasets.open_address(self, address)

    def open_dataset(self, address: str) -> Dataset:
        """The dataset at `tenant/name[@version]`.

        Raises:
            InvalidArgumentError: the address names an array.
        """
        from hyper.datasets import Dataset

        opened = self.open(address)
        if not isinstance(opened, Dataset):
            raise InvalidArgumentError(f"{address!r} names an array; write tenant/name[@version]")
        return opened

    def open_array(self, address: str) -> Array:
        """The array at `tenant/name[@version]/array`.

        Raises:
            InvalidArgumentError: the address names no array.
        """
        from hyper.datasets import Dataset

        opened = self.open(address)
        if isinstance(opened, Dataset):
            raise InvalidArgumentError(
                f"{address!r} names a dataset; write tenant/name[@version]/array"
            )
        return opened

    def session(self, dataset: str) -> Session:
        """A new session that writes the next version of `tenant/name`."""
        from hyper import sessions

        return sessions.begin(self, dataset)

    def attach(self, name: str) -> Session:
        """An open session of someone else, by its resource name; it is left open at the end."""
        from hyper import sessions

        return sessions.attach(self, name)

    # Computing (hyper.compute_inference, hyper.compute_matching)

    def predict(self, model: str, array: np.ndarray, *, mode: str = "fast") -> np.ndarray:
        """The output of `model` on `array`, (n, c, y, x) or (n, c, z, y, x)."""
        from hyper import compute_inference

        return compute_inference.predict(self, model, array, mode=mode)

    def infer_volume(self, model: str, source: Array, destination: Array, **options: Any) -> None:
        """Run `model` over a whole array; see `hyper.compute_inference.infer_volume`."""
        from hyper import compute_inference

        compute_inference.infer_volume(self, model, source, destination, **options)

    def match_sections(
        self, array: Array, pairs: Sequence[tuple[int, int]], **options: Any
    ) -> Iterator[PairMatches]:
        """Match pairs of sections; see `hyper.compute_matching.match_sections`."""
        from hyper import compute_matching

        return compute_matching.match_sections(self, array, pairs, **options)

    # Workflows (hyper.workflows)

    def submit(
        self, recipe: str | Path | Mapping[str, Any], *, request_id: str | None = None
    ) -> Workflow:
        """Start a recipe: a path, YAML text or a mapping."""
        from hyper import workflows

        return workflows.submit(self, recipe, request_id=request_id)

    def check(self, recipe: str | Path | Mapping[str, Any]) -> WorkflowStatus:
        """What a recipe would become; starts nothing."""
        from hyper import workflows

        return workflows.check(self, recipe)

    def plan(
        self,
        recipe: str | Path | Mapping[str, Any],
        *,
        task_s: float | None = None,
        tasks: Mapping[str, int] | None = None,
        samples: int = 0,
    ) -> Plan:
        """What a recipe would run on and cost, nothing is launched; see `hyper.placement.plan`."""
        from hyper import placement

        return placement.plan(self, recipe, task_s=task_s, tasks=tasks, samples=samples)

    def cost(self) -> Cost:
        """What the tenant's workflows have spent on machines, and what is paid for now."""
        from hyper import placement

        return placement.cost(self)

    def map(
        self,
        function: Callable[..., R],
        *iterables: Iterable[Any],
        workers: int | None = None,
        name: str | None = None,
        **constants: Any,
    ) -> MapRun[R]:
        """Run `function` once for each item, on the cluster's workers; returns at once.

        Args:
            function: made with `def`, at best marked with `@hyper.task`, which says what it needs.
                Its source travels; its arguments and result are JSON, at most 64 KiB the result.
            iterables: of positional arguments, as for the built-in `map`.
            workers: the most calls at once.
            name: of the workflow; by default the function's.
            constants: keyword arguments of every call.

        Raises:
            InvalidArgumentError: the function or an item cannot travel; the message says why.
        """
        from hyper import tasks

        return tasks.map_function(self, function, iterables, constants, workers=workers, name=name)

    def workflow(self, name: str) -> Workflow:
        """A workflow by its resource name, or by its last part alone."""
        from hyper import workflows

        return workflows.get(self, name)

    def workflows(self, *, every_tenant: bool = False) -> Iterator[WorkflowStatus]:
        """The tenant's workflows, newest first; or those of all, with a token of all tenants."""
        from hyper import workflows

        return workflows.list_workflows(self, every_tenant=every_tenant)

    def workers(self) -> list[WorkerInfo]:
        """The machines that run tasks."""
        from hyper import workflows

        return workflows.list_workers(self)

    def drain(self, worker: str) -> WorkerInfo:
        """Let a worker finish what it runs and give it nothing new."""
        from hyper import workflows

        return workflows.drain(self, worker)

    def cluster(self) -> ClusterInfo:
        """Every replica of every service, and which scheduler leads."""
        from hyper import workflows

        return workflows.cluster(self)


class _Waiting:
    """The retries of one call: decides after each failure whether to try again, and waits."""

    def __init__(
        self, client: Client, service: str, patience_s: float | None, repeatable: bool
    ) -> None:
        patience_s = client.patience_s if patience_s is None else patience_s
        self._client, self._service, self._repeatable = client, service, repeatable
        self._patience_s = patience_s
        self._end = time.monotonic() + patience_s
        self._backoff_s = _BACKOFF_FIRST_S
        self._redirects = 0
        self._told = False

    def after(self, error: HyperError) -> None:
        """Return when it is time to try again; raise `error` if it is not worth it."""
        if not isinstance(error, UnavailableError) or isinstance(error, NoClusterError):
            raise error from None  # gRPC's own error says nothing that it does not
        leader = error.metadata.get("leader") if error.reason == "NOT_LEADER" else None
        if leader:
            self._client.use_leader(leader)
        else:
            self._client.forget(self._service)
        # a scheduler that does not lead has changed nothing
        repeatable = self._repeatable or error.reason in ("NOT_LEADER", "DRAINING")
        left_s = self._end - time.monotonic()
        if not repeatable or left_s <= 0:
            raise error from None
        if leader and self._redirects < _REDIRECTS_MAX:
            self._redirects += 1
            return
        if not self._told and self._patience_s - left_s >= _QUIET_S:
            self._told = True
            self._client.notify(
                f"waiting for {self._service}, for at most {self._patience_s:.0f} s: {error}"
            )
        pause_s = self._backoff_s * random.uniform(0.5, 1.0)
        self._backoff_s = min(self._backoff_s * 2, _BACKOFF_MAX_S)
        time.sleep(min(pause_s, left_s))

    def over(self) -> None:
        """The call got through."""
        if self._told:
            self._client.notify(f"{self._service} is back")


def may_repeat(request: Message) -> bool:
    """Whether sending `request` twice does no harm: it changes nothing, or bears a request_id."""
    if "request_id" not in request.DESCRIPTOR.fields_by_name:
        return True
    return bool(getattr(request, "request_id"))  # noqa: B009  (not every message has one)


def connect(
    endpoint: str | None = None,
    *,
    tenant: str | None = None,
    timeout_s: float = _transport.UNARY_TIMEOUT_S,
    patience_s: float | None = None,
    notice: Notice | None = None,
) -> Client:
    """A client of the cluster at `endpoint`; see `Client`. Nothing is sent yet.

    Raises:
        UnavailableError: there is no cluster to be found (run `hyper up`).
        InvalidArgumentError: the endpoint is not host:port.
    """
    config.scheduler_addresses(endpoint)
    return Client(
        endpoint, tenant=tenant, timeout_s=timeout_s, patience_s=patience_s, notice=notice
    )


def _rebuild(endpoint: str | None, tenant: str, timeout_s: float, patience_s: float) -> Client:
    return Client(endpoint, tenant=tenant, timeout_s=timeout_s, patience_s=patience_s)


_default: Client | None = None
_default_lock = threading.Lock()
_clients: weakref.WeakSet[Client] = weakref.WeakSet()


def _after_fork() -> None:
    """A lock that another thread held when we were forked would never be free again."""
    global _default_lock
    _default_lock = threading.Lock()
    for client in _clients:
        client._lock = threading.RLock()


os.register_at_fork(after_in_child=_after_fork)


def default_client() -> Client:
    """The client behind `hyper.open`; made at the first use, one a process."""
    global _default
    with _default_lock:
        if _default is None:
            _default = connect()
        return _default


def open_default(address: str) -> Dataset | Array:
    """`Client.open` on the default client."""
    return default_client().open(address)
