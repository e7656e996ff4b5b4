"""A process with one engine: loads it, computes once, then once more for every line read.

Answers are JSON objects, one a line. Runs in `.venv-bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np


def main() -> int:
    """Parse, load, serve."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("engine")
    parser.add_argument("net")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--isa", default="")
    arguments = parser.parse_args()
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what engines print is no answer

    def answer(**facts: Any) -> None:
        answers.write(json.dumps(facts) + "\n")

    if arguments.engine in ("prepare", "export"):
        reference = arguments.engine == "prepare"
        prepare(arguments.net, arguments.folder, arguments.threads, reference)
        answer(ready=True)
        return 0
    from benchmarks.inference.engines import LOADERS, Request

    folder: Path = arguments.folder
    request = Request(
        arguments.net, np.load(folder / "input.npy"), folder / "net.onnx", arguments.threads,
        arguments.isa, folder / f"code-{arguments.engine}{arguments.isa}",
    )  # fmt: skip
    start = time.perf_counter()
    try:
        run = LOADERS[arguments.engine](request)
        load_s = time.perf_counter() - start
        output = np.asarray(run(), dtype=np.float32)
    except Exception as error:  # noqa: BLE001  (whatever an engine cannot do is its row's reason)
        answer(reason=f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")
        return 0
    first_s = time.perf_counter() - start - load_s
    np.save(folder / f"{arguments.engine}.npy", output)
    del output
    answer(load_s=load_s, first_s=first_s)
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        seconds, busy = time.perf_counter() - wall, time.process_time() - cpu
        answer(seconds=seconds, cpu_s=busy, peak_rss_mb=peak_rss_mb())
    return 0


def peak_rss_mb() -> float:
    """Of this program alone; getrusage would begin with the memory of the one that started it."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 1024
    raise OSError("the kernel tells no VmHWM")


def prepare(net: str, folder: Path, threads: int, reference: bool) -> None:
    """The ONNX file, for any size along z, y and x; and the output in float64."""
    import torch

    from benchmarks.inference.engines import make_net

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    x = torch.from_numpy(np.load(folder / "input.npy"))
    module = make_net(net)
    torch.onnx.export(
        module, (x,), folder / "net.onnx", dynamo=False, opset_version=17, input_names=["x"],
        output_names=["y"],
        dynamic_axes=None if reference else {"x": {n: f"n{n}" for n in range(2, x.ndim)}},
    )  # fmt: skip
    if not reference:
        return
    np.save(folder / "reference.npy", module.double()(x.double()).numpy())


if __name__ == "__main__":
    sys.exit(main())
