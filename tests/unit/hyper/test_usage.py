from __future__ import annotations

import subprocess
import sys

from hyper.usage import UsageSampler

_SPIN = "import time; end = time.process_time() + 0.3\nwhile time.process_time() < end: pass"
_WORK = f"""
import subprocess, sys
hold = bytearray(60_000_000)
exec({_SPIN!r})
subprocess.run([sys.executable, "-c", {_SPIN!r}])
print("worked", flush=True)
sys.stdin.read()
"""


def test_counts_children_that_ended_and_memory() -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _WORK], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None and process.stdin is not None
    with process, UsageSampler([process.pid]) as sampler:
        assert process.stdout.readline() == "worked\n"
        sampler._sample()
        process.stdin.close()
        process.wait()
    assert sampler.cpu_seconds >= 0.55, "own time and the child's"
    assert sampler.peak_rss_mb >= 55


def test_a_process_that_does_not_exist_is_left_out() -> None:
    with UsageSampler([2**22 - 3]) as sampler:
        pass
    assert sampler.cpu_seconds == 0 and sampler.peak_rss_bytes == 0
