"""GPUs of this machine: found by NVML, given to one attempt each."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

from hyper_servicekit.logs import get_logger

log = get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Gpu:
    """One GPU at a moment.

    Args:
        index: as CUDA counts them in the order of their buses.
        model: its name.
        utilization: 0 to 1.
        memory_bytes: in use.
        memory_total_bytes: that it has.
    """

    index: int
    model: str
    utilization: float = 0.0
    memory_bytes: int = 0
    memory_total_bytes: int = 0


class Devices(Protocol):
    """What knows of GPUs."""

    def look(self) -> list[Gpu]:
        """All of them now."""


class Nvml:
    """NVIDIA's management library; a machine without it has no GPUs."""

    def look(self) -> list[Gpu]:
        """See `Devices`."""
        try:
            import pynvml
        except ImportError:
            return []
        try:
            pynvml.nvmlInit()
        except pynvml.NVMLError as error:
            log.debug("no GPUs", detail=str(error))
            return []
        try:
            return [self._look_at(index) for index in range(pynvml.nvmlDeviceGetCount())]
        except pynvml.NVMLError as error:
            log.warning("GPUs cannot be looked at", detail=str(error))
            return []
        finally:
            with contextlib.suppress(pynvml.NVMLError):
                pynvml.nvmlShutdown()

    @staticmethod
    def _look_at(index: int) -> Gpu:
        import pynvml

        handle = pynvml.nvmlDeviceGetHandleByIndex(index)
        name = pynvml.nvmlDeviceGetName(handle)
        memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
        utilization = 0.0
        with contextlib.suppress(pynvml.NVMLError):  # not of every model
            utilization = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        text = name.decode() if isinstance(name, bytes) else str(name)
        return Gpu(index, text, utilization, int(memory.used), int(memory.total))


class GpuPool:
    """Who has which GPU. A GPU is one attempt's alone.

    Args:
        devices: that are there; looked at once.
    """

    def __init__(self, devices: Devices) -> None:
        self.devices = devices
        found = devices.look()
        self.model = found[0].model if found else ""
        self.count = len(found)
        self._free = sorted(gpu.index for gpu in found)
        self._holders: dict[int, str] = {}

    @property
    def holders(self) -> dict[int, str]:
        """Tasks by the GPUs that are theirs."""
        return dict(self._holders)

    def take(self, count: int, task: str) -> tuple[int, ...]:
        """So many GPUs.

        Raises:
            ValueError: there are not so many free: the scheduler has counted wrongly.
        """
        if count > len(self._free):
            raise ValueError(
                f"{task} asks for {count} GPUs, and {len(self._free)} of {self.count} are free here"
            )
        taken, self._free = tuple(self._free[:count]), self._free[count:]
        for index in taken:
            assert index not in self._holders, f"GPU {index} is given out twice"
            self._holders[index] = task
        return taken

    def give_back(self, indices: tuple[int, ...]) -> None:
        """The attempt and all its processes have ended."""
        for index in indices:
            del self._holders[index]
        self._free = sorted((*self._free, *indices))

    @contextlib.contextmanager
    def holding(self, count: int, task: str) -> Iterator[tuple[int, ...]]:
        """`take` and `give_back` around an attempt."""
        indices = self.take(count, task) if count else ()
        try:
            yield indices
        finally:
            self.give_back(indices)
