"""NodeService, ClusterService and AgentService: proto in, proto out."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from hyper.access import token_id
from hyper.errors import FailedPreconditionError, HyperError, InvalidArgumentError
from hyper_scheduler import convert, metrics
from hyper_scheduler.config import SchedulerSettings
from hyper_scheduler.core.events import DrainWorker, Heartbeat, Hello, Metrics, Reports
from hyper_scheduler.core.tasks import is_current
from hyper_scheduler.driver import Driver
from hyper_scheduler.issuing import WORKER_S, token_request, token_to_revoke, worker_token
from hyper_scheduler.links import Link
from hyper_scheduler.paging import make_token, page_size, read_token
from hyper_scheduler.relay import EXEC_TIMEOUT_MAX_S, EXEC_TIMEOUT_S, Relay
from hyper_scheduler.term import Term
from hyper_scheduler.vault import Vault
from hyper_servicekit.announce import announced
from hyper_servicekit.authorize import caller
from hyper_servicekit.clock import Clock
from hyper_servicekit.etcd import Etcd
from hyper_servicekit.logs import get_logger
from hyper_servicekit.owned import owned
from hyper_servicekit.revoked import revoke
from hyper_servicekit.tokens import ANY_TENANT, Signer
from hyperapi.scheduler.v1 import cluster_service_pb2 as cluster
from hyperapi.scheduler.v1 import workflow_service_pb2 as pb
from hyperapi.worker.v1 import agent_service_pb2 as agent

log = get_logger(__name__)

VERSION = "0.1.0"
_EXEC_BYTES_MAX = 65_536


class NodeServicer:
    """The machines."""

    def __init__(
        self, settings: SchedulerSettings, driver: Driver, clock: Clock, relay: Relay
    ) -> None:
        self._settings, self._driver, self._clock = settings, driver, clock
        self._relay = relay

    async def ListWorkers(  # noqa: N802  (gRPC's name)
        self, request: pb.ListWorkersRequest, context: Any
    ) -> pb.ListWorkersResponse:
        """Those that live by name, then those lost lately."""
        size = page_size(request.page_size, self._settings.max_page_size)
        after = read_token(request.page_token)
        term = await self._driver.leading()
        workers = convert.workers(term.state, self._clock.now())
        names = [each.name for each in workers]
        start = names.index(after) + 1 if after in names else 0
        response = pb.ListWorkersResponse(workers=workers[start : start + size])
        for each in response.workers:
            self._relay.show(each, tasks=request.tasks)
        if start + size < len(workers):
            response.next_page_token = make_token(names[start + size - 1])
        return response

    async def DrainWorker(  # noqa: N802
        self, request: pb.DrainWorkerRequest, context: Any
    ) -> pb.DrainWorkerResponse:
        """Give a worker nothing new."""
        name = convert.worker_name(request.name)
        request_id = convert.request_id(request.request_id, ANY_TENANT)
        term = await self._driver.leading()
        await term.ask(DrainWorker(self._clock.now(), request_id, name))
        response = pb.DrainWorkerResponse()
        state, now = term.state, self._clock.now()
        if name in state.workers:
            response.worker.CopyFrom(convert.worker(state.workers[name], now))
        elif name in state.lost:
            response.worker.CopyFrom(convert.worker(state.lost[name], now, lost=True))
        return response

    async def ExecTask(  # noqa: N802
        self, request: pb.ExecTaskRequest, context: Any
    ) -> pb.ExecTaskResponse:
        """Run a command beside a live task."""
        task = convert.task_id(request.name)
        if not request.arguments or sum(map(len, request.arguments)) > _EXEC_BYTES_MAX:
            raise InvalidArgumentError("a command of 1 to 65,536 characters is needed")
        timeout_s = EXEC_TIMEOUT_S
        if request.HasField("timeout"):
            timeout_s = request.timeout.ToNanoseconds() / 1e9
        if not 0 < timeout_s <= EXEC_TIMEOUT_MAX_S:
            raise InvalidArgumentError(f"timeout must be up to {EXEC_TIMEOUT_MAX_S:g} s")
        term = await self._driver.leading()
        result = await self._relay.exec_task(term, task, list(request.arguments), timeout_s)
        return pb.ExecTaskResponse(
            exit_code=result.exit_code, output=result.output, truncated=result.truncated
        )


class ClusterServicer:
    """Where the services are."""

    def __init__(
        self, driver: Driver, etcd: Etcd, etcd_prefix: str, signer: Signer | None, clock: Clock
    ) -> None:
        self._driver, self._etcd, self._prefix = driver, etcd, etcd_prefix
        self._signer, self._clock = signer, clock

    async def GetCluster(  # noqa: N802
        self, request: cluster.GetClusterRequest, context: Any
    ) -> cluster.GetClusterResponse:
        """Every replica that is announced."""
        instances = [
            cluster.ServiceInstance(
                service=each.service,
                instance=each.instance,
                address=each.address,
                metrics_address=each.metrics_address,
            )
            for each in await announced(self._etcd, self._prefix)
        ]
        leader = await self._driver.leader()
        return cluster.GetClusterResponse(instances=instances, leader=leader, version=VERSION)

    async def CreateToken(  # noqa: N802
        self, request: cluster.CreateTokenRequest, context: Any
    ) -> cluster.CreateTokenResponse:
        """Sign a token."""
        tenant, role, lifetime_s = token_request(request)
        expires_s = self._clock.now() + lifetime_s
        token = self._signed().sign(tenant, subject=request.subject, expires_s=expires_s, role=role)
        response = cluster.CreateTokenResponse(token=token, id=token_id(token))
        response.expire_time.FromNanoseconds(int(expires_s * 1e9))
        return response

    async def RevokeToken(  # noqa: N802
        self, request: cluster.RevokeTokenRequest, context: Any
    ) -> cluster.RevokeTokenResponse:
        """Have every service refuse a token."""
        self._signed()
        await revoke(self._etcd, self._prefix, token_to_revoke(request))
        return cluster.RevokeTokenResponse()

    def _signed(self) -> Signer:
        if self._signer is None:
            raise FailedPreconditionError(
                "this cluster asks for no tokens: set HYPER_SCHEDULER__AUTH_KEYS__<ID>"
            )
        return self._signer


class AgentServicer:
    """The workers' streams."""

    def __init__(
        self,
        settings: SchedulerSettings,
        driver: Driver,
        clock: Clock,
        relay: Relay,
        vault: Vault,
        signer: Signer | None,
    ) -> None:
        self._settings, self._driver, self._clock = settings, driver, clock
        self._relay, self._vault, self._signer = relay, vault, signer

    async def Connect(  # noqa: N802
        self, request_iterator: AsyncIterator[agent.ConnectRequest], context: Any
    ) -> AsyncIterator[agent.ConnectResponse]:
        """One worker's stream, until either side ends it."""
        term = await self._driver.leading()
        first = await anext(request_iterator, None)
        if first is None:
            return
        if first.WhichOneof("kind") != "hello":
            raise InvalidArgumentError("the first message of a stream must be Hello")
        name, capacity = convert.hello(first.hello, self._settings.max_slots)
        running = tuple(convert.attempt_of(key) for key in first.hello.running)
        link = term.links.open(name)
        metrics.WORKERS.set(len(term.links))
        log.info("worker connected", worker=name, session=link.session, running=len(running))
        try:
            await term.tell(Hello(self._clock.now(), name, link.session, capacity, running))
            async with owned(self._read(request_iterator, term, link), f"agent-{name}"):
                async for message in link.messages():
                    if message.WhichOneof("kind") == "welcome":
                        self._give_token(message.welcome)
                    yield message
        finally:
            link.close()
            term.links.forget(link)
            self._relay.forget(link.worker)
            metrics.WORKERS.set(len(term.links))
            term.tell_gone(name, link.session)
            log.info("worker disconnected", worker=name, session=link.session)

    def _give_token(self, welcome: agent.Welcome) -> None:
        if token := worker_token(self._signer, caller.get(), self._clock.now()):
            welcome.token = token
            welcome.token_lifetime.FromSeconds(int(WORKER_S))

    async def ReadSecrets(  # noqa: N802
        self, request: agent.ReadSecretsRequest, context: Any
    ) -> agent.ReadSecretsResponse:
        """What the recipe names for an attempt, for the worker that it was given to."""
        task, attempt = convert.attempt_of(request.key)
        term = await self._driver.leading()
        run = term.state.experiment(task)
        record = None if run is None else run.record(task.index)
        if (
            run is None
            or record is None
            or not is_current(term.state, task, attempt)
            or record.worker != request.worker
        ):
            raise FailedPreconditionError(
                f"{task.name} attempt {attempt.epoch}.{attempt.number} is not {request.worker}'s"
            )
        around = run.spec.around
        names = sorted({*around.secrets.values(), *filter(None, [around.registry])})
        tenant = term.state.workflows[task.workflow].tenant
        values = {name: await self._vault.get(tenant, name) for name in names}
        return agent.ReadSecretsResponse(values=values)

    async def _read(
        self, requests: AsyncIterator[agent.ConnectRequest], term: Term, link: Link
    ) -> None:
        """Turn what comes up the stream into events."""
        try:
            async for request in requests:
                await self._take(request, term, link)
            link.close()
        except HyperError as error:
            log.warning("worker cut off", worker=link.worker, error=str(error))
            link.close(error)

    async def _take(self, request: agent.ConnectRequest, term: Term, link: Link) -> None:
        now = self._clock.now()
        link.heard()
        match request.WhichOneof("kind"):
            case "heartbeat":
                if request.heartbeat.HasField("usage"):
                    self._relay.used(link.worker, request.heartbeat.usage)
                await term.tell(Heartbeat(now, link.worker, link.session))
            case "status":
                if metrics_told := convert.metric_reports(request.status):
                    await term.tell(Metrics(now, link.worker, link.session, metrics_told))
                reports = convert.reports(request.status)
                sequence = request.status.sequence
                await term.tell(Reports(now, link.worker, link.session, sequence, reports))
            case "exec":
                self._relay.answered(request.exec)
            case "hello":
                raise InvalidArgumentError("Hello comes once a stream, first")
            case None:
                raise InvalidArgumentError("a message of an unknown kind; update the scheduler")
