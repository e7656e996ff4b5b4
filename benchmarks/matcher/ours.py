"""Our aligner as the peers are run: `VOLUME.npy OUT.npz`; the last line says what it used."""

from __future__ import annotations

import json
import resource
import sys
import time

import numpy as np

from hyper_matcher.align.pipeline import align_stack


def main() -> None:
    """Align and leave triangles."""
    start = time.perf_counter()
    volume = np.load(sys.argv[1])
    stack = align_stack(volume, measure=False)
    mesh = stack.relaxed.mesh
    arrays = {}
    for z, positions in enumerate(stack.relaxed.positions):
        arrays[f"source_{z}"], arrays[f"placed_{z}"] = mesh.vertices, positions
        arrays[f"triangles_{z}"] = mesh.triangles
    np.savez(sys.argv[2], **arrays)
    used = resource.getrusage(resource.RUSAGE_SELF)
    result = stack.result
    print(
        json.dumps(
            {
                "seconds": time.perf_counter() - start,
                "cpu_seconds": used.ru_utime + used.ru_stime,
                "peak_rss_mb": used.ru_maxrss / 1024,
                "matches": result["matches"],
                "rejected": result["rejected"],
                "flagged_sections": result["flagged_sections"],
                "flags": {str(z): why for z, why in sorted(stack.relaxed.flagged.items())},
            }
        )
    )


if __name__ == "__main__":
    main()
