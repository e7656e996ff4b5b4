"""What placed workers run in tests."""

import os
import time
from pathlib import Path
from typing import Any


def work(context: Any, seconds: float, slow: str, index: int) -> dict[str, object]:
    """Sleep; three times as long where the file `slow` names this machine's offer."""
    offer = os.environ.get("TEST_OFFER", "")
    throttled = Path(slow).exists() and Path(slow).read_text() == offer
    start = time.time()
    with Path(f"{slow}.log").open("a") as file:
        file.write(f"{offer} {start}\n")
    time.sleep(seconds * (3 if throttled else 1))
    return {"offer": offer}
