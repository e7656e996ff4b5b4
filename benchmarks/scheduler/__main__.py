"""`python -m benchmarks.scheduler [--quick] [--json]`."""

import json
import sys

from benchmarks.scheduler.cluster import cluster, recipe, run
from hyper.client import Client

n = int(sys.argv[1])
ms = int(sys.argv[2])
with cluster() as c, Client(c.endpoint) as client:
    run(c, client, recipe(50))
    for _ in range(int(sys.argv[3])):
        r = run(c, client, recipe(n, ms))
        print(n / r["cpu_s"], n / r["wall_s"], json.dumps(r))
