"""A process with one engine: loads it, tells its error, then computes once for every line read.

Answers are JSON objects, one a line. Runs in the project's environment or in `.venv-bench`.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
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

    if arguments.engine == "prepare":
        _prepare(arguments.net, arguments.folder, arguments.threads)
        answer(ready=True)
        return 0
    from benchmarks.inference.engines import LOADERS, CannotRunError, Request

    folder = arguments.folder
    request = Request(
        arguments.net, np.load(folder / "input.npy"), folder / "net.onnx", arguments.threads,
        arguments.isa, folder / "code",
    )  # fmt: skip
    start = time.perf_counter()
    try:
        run = LOADERS[arguments.engine](request)
        actual = np.asarray(run(), dtype=np.float64)
    except (CannotRunError, ImportError, RuntimeError, ValueError) as error:
        answer(reason=" ".join(str(error).split())[:300])
        return 0
    compile_s = time.perf_counter() - start
    expected = np.load(folder / "reference.npy")
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    answer(compile_s=compile_s, max_rel_error=float(error))
    for _ in sys.stdin:
        wall, cpu = time.perf_counter(), time.process_time()
        run()
        seconds, busy = time.perf_counter() - wall, time.process_time() - cpu
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
        answer(seconds=seconds, cpu_s=busy, peak_rss_mb=peak)
    return 0


def _prepare(net: str, folder: Path, threads: int) -> None:
    """The ONNX file, and the output in float64."""
    import torch

    from benchmarks.inference.engines import make_net

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    x = torch.from_numpy(np.load(folder / "input.npy"))
    module = make_net(net)
    torch.onnx.export(
        module, (x,), folder / "net.onnx", dynamo=False, opset_version=17, input_names=["x"],
        output_names=["y"],
    )  # fmt: skip
    np.save(folder / "reference.npy", module.double()(x.double()).numpy())


if __name__ == "__main__":
    sys.exit(main())
