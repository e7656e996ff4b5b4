"""Between the wire's messages and the core's values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from google.protobuf import duration_pb2

from hyper.errors import InternalError
from hyper_worker.core.model import Job, Key, Outcome, Status
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


def jobs_from_proto(
    starts: Iterable[wire.TaskStart], specs: Mapping[str, wire.TaskSpec]
) -> Iterator[Job]:
    """The jobs of a batch; `specs` are those of this connection.

    Raises:
        InternalError: a start names a spec that never came.
    """
    for start in starts:
        spec = specs.get(start.experiment)
        if spec is None:
            raise InternalError(f"the scheduler sent no spec of {start.experiment!r}")
        yield Job(
            key=key_from_proto(start.key),
            command=spec.command,
            function=spec.function,
            image=spec.image,
            parameters_json=start.parameters_json or "{}",
            env=tuple(sorted(spec.env.items())),
            workdir=spec.workdir,
            timeout_s=seconds(spec.timeout) if spec.HasField("timeout") else None,
            grace_s=seconds(spec.grace) if spec.HasField("grace") else GRACE_S,
        )


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
    )


_OUTCOMES = {outcome: wire.Outcome.Value(f"OUTCOME_{outcome.name}") for outcome in Outcome}


def seconds(message: duration_pb2.Duration) -> float:
    """A duration in seconds."""
    return message.ToNanoseconds() / 1e9


def duration(value_s: float) -> duration_pb2.Duration:
    """Seconds as a duration."""
    message = duration_pb2.Duration()
    message.FromNanoseconds(int(value_s * 1e9))
    return message
