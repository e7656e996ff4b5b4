"""Between the wire's messages and the core's values."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace

from google.protobuf import duration_pb2

from hyper.errors import InternalError
from hyper_worker.core.model import Around, Job, Key, Needs, Outcome, Status
from hyper_worker.voice import Metrics
from hyperapi.scheduler.v1 import workflow_pb2
from hyperapi.worker.v1 import agent_service_pb2 as wire

GRACE_S = 10.0
MESSAGE_BYTES_MAX = 1024


def key_from_proto(message: wire.TaskKey) -> Key:
    """Read an attempt's key."""
    return Key(message.task, message.attempt.epoch, message.attempt.number)


def key_to_proto(key: Key) -> wire.TaskKey:
    """Write an attempt's key."""
    attempt = workflow_pb2.Attempt(epoch=key.epoch, number=key.number)
    return wire.TaskKey(task=key.task, attempt=attempt)


def jobs_from_proto(batch: wire.TaskBatch, specs: Mapping[str, wire.TaskSpec]) -> Iterator[Job]:
    """The jobs of a batch; `specs` are those of this connection.

    Raises:
        InternalError: a start names a spec that never came.
    """
    for start in batch.starts:
        make = _maker(start.experiment, specs)
        yield make(key_from_proto(start.key), start.parameters_json or "{}")
    for group in batch.groups:
        make = _maker(group.experiment, specs)
        columns = zip(group.indices, group.numbers, group.parameters_json, strict=True)
        for place, (index, number, parameters) in enumerate(columns):
            job = make(Key(f"{group.experiment}/tasks/{index}", group.epoch, number), parameters)
            yield _ranked(job, group.ranks[place]) if group.ranks else job


def _ranked(job: Job, rank: wire.Rank) -> Job:
    """The job of a gang's task: its place is in the environment, under torchrun's names."""
    names = {
        "RANK": rank.rank, "WORLD_SIZE": rank.world_size,
        "LOCAL_RANK": rank.local_rank, "LOCAL_WORLD_SIZE": rank.local_world_size,
        "NODE_RANK": rank.node_rank, "GROUP_RANK": rank.node_rank,
        "MASTER_ADDR": rank.master_addr, "MASTER_PORT": rank.master_port,
    }  # fmt: skip
    env = dict(job.env) | {name: str(value) for name, value in names.items()}
    port = rank.master_port if rank.rank == 0 else 0
    return replace(job, env=tuple(sorted(env.items())), rank=rank.rank, port=port)


def alone(job: Job, port: int) -> Job:
    """The one rank of a gang of one. Nobody else has to find it: it listens on `port` of the
    loopback, which is there in a container without a network too."""
    env = dict(job.env) | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    return replace(job, env=tuple(sorted(env.items())), port=port)


def _maker(experiment: str, specs: Mapping[str, wire.TaskSpec]) -> Callable[[Key, str], Job]:
    """What the jobs of an experiment share is read once."""
    spec = specs.get(experiment)
    if spec is None:
        raise InternalError(f"the scheduler sent no spec of {experiment!r}")
    command, function, image = spec.command, spec.function, spec.image
    env, workdir = tuple(sorted(spec.env.items())), spec.workdir
    timeout_s = seconds(spec.timeout) if spec.HasField("timeout") else None
    grace_s = seconds(spec.grace) if spec.HasField("grace") else GRACE_S
    around = _around(spec)

    def make(key: Key, parameters: str) -> Job:
        return Job(
            key, command, function, image, parameters, env, workdir, timeout_s, grace_s,
            around=around, token=spec.token,
        )  # fmt: skip

    return make


def _around(spec: wire.TaskSpec) -> Around:
    return Around(
        needs=Needs(spec.hardware.cpus, spec.hardware.memory_bytes, spec.hardware.gpus),
        setup=spec.setup,
        inputs=tuple((each.path, each.address) for each in spec.inputs),
        outputs=tuple((each.path, each.address) for each in spec.outputs),
        checkpoint_path=spec.checkpoint.path,
        checkpoint_every_s=seconds(spec.checkpoint.every),
        secrets=tuple(sorted(spec.secrets.items())),
        registry=spec.registry,
        network=spec.network,
    )


def batch_to_proto(sequence: int, statuses: Iterable[Status]) -> wire.StatusBatch:
    """Write reports: successes column by column, the others one by one."""
    message = wire.StatusBatch(sequence=sequence)
    groups: dict[tuple[str, int], list[tuple[str, Status]]] = {}
    for status in statuses:
        experiment, slash, index = status.key.task.rpartition("/tasks/")
        if slash and status.outcome is Outcome.SUCCEEDED and not status.exit.message:
            groups.setdefault((experiment, status.key.epoch), []).append((index, status))
        else:
            message.statuses.append(status_to_proto(status))
    for (experiment, epoch), items in groups.items():
        exits = [status.exit for _, status in items]
        message.successes.add(
            experiment=experiment,
            epoch=epoch,
            indices=[int(index) for index, _ in items],
            numbers=[status.key.number for _, status in items],
            results_json=[each.result_json for each in exits],
            wall_s=[each.wall_s for each in exits],
            cpu_s=[each.cpu_s for each in exits],
            peak_rss_bytes=[each.peak_rss_bytes for each in exits],
        )
    return message


def status_to_proto(status: Status) -> wire.TaskStatus:
    """Write a report."""
    exit_ = status.exit
    return wire.TaskStatus(
        key=key_to_proto(status.key),
        outcome=_OUTCOMES[status.outcome],
        exit_code=exit_.exit_code,
        message=exit_.message.encode(errors="replace")[:MESSAGE_BYTES_MAX].decode(errors="ignore"),
        result_json=exit_.result_json,
        wall=duration(exit_.wall_s),
        cpu=duration(exit_.cpu_s),
        peak_rss_bytes=exit_.peak_rss_bytes,
        permanent=exit_.permanent,
    )


def metrics_to_proto(key: Key, metrics: Metrics) -> wire.MetricReport:
    """Write what an attempt says of itself."""
    return wire.MetricReport(
        key=key_to_proto(key), step=metrics.step, metrics=dict(metrics.values)
    )  # fmt: skip


_OUTCOMES = {outcome: wire.Outcome.Value(f"OUTCOME_{outcome.name}") for outcome in Outcome}


def seconds(message: duration_pb2.Duration) -> float:
    """A duration in seconds."""
    return message.ToNanoseconds() / 1e9


def duration(value_s: float) -> duration_pb2.Duration:
    """Seconds as a duration."""
    message = duration_pb2.Duration()
    message.FromNanoseconds(int(value_s * 1e9))
    return message
