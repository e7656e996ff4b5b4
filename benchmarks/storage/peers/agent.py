"""Answers requests, a JSON object a line, with what the peers take for the same work.

Runs in .venv-bench; imports nothing of ours. Every answer has `s` and `cpu_s`.
"""

from __future__ import annotations

import json
import os
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

S3 = json.loads(os.environ["BENCH_S3"])
_POOL = ThreadPoolExecutor(16)
_kept: dict[str, Any] = {}


def _bucket() -> Any:
    if "bucket" not in _kept:
        from obstore.store import S3Store

        _kept["bucket"] = S3Store(
            S3["bucket"], endpoint=S3["endpoint"], access_key_id=S3["access_key"],
            secret_access_key=S3["secret_key"], region="us-east-1",
            virtual_hosted_style_request=False, client_options={"allow_http": True},
        )  # fmt: skip
    return _kept["bucket"]


def obstore_read(ranges: list[list[Any]]) -> None:
    import obstore

    def one(item: list[Any]) -> int:
        key, start, stop = item
        if stop is None:
            return len(obstore.get(_bucket(), key).bytes())
        return len(obstore.get_range(_bucket(), key, start=start, end=stop))

    _kept["bytes"] = sum(_POOL.map(one, ranges))


def obstore_write(keys: list[str], size: int) -> None:
    import obstore

    data = _noise(size)
    list(_POOL.map(lambda key: obstore.put(_bucket(), key, data, use_multipart=False), keys))


def _noise(size: int) -> bytes:
    if ("noise", size) not in _kept:
        _kept["noise", size] = os.urandom(size)  # type: ignore[index]
    return _kept["noise", size]  # type: ignore[index]


def _kvstore(prefix: str) -> dict[str, Any]:
    os.environ["AWS_ACCESS_KEY_ID"] = S3["access_key"]
    os.environ["AWS_SECRET_ACCESS_KEY"] = S3["secret_key"]
    return {
        "driver": "s3", "bucket": S3["bucket"], "path": prefix.rstrip("/") + "/",
        "endpoint": S3["endpoint"], "aws_region": "us-east-1",
        "aws_credentials": {"type": "environment"},
    }  # fmt: skip


def _tensorstore(prefix: str, cache_bytes: int = 0) -> Any:
    import tensorstore as ts

    context = ts.Context({"cache_pool": {"total_bytes_limit": cache_bytes}})
    spec = {"driver": "zarr3", "kvstore": _kvstore(prefix), "recheck_cached_data": "open"}
    return ts.open(spec, read=True, context=context).result()


def tensorstore_read(prefix: str) -> None:
    import numpy as np

    _kept["sum"] = int(np.asarray(_tensorstore(prefix).read().result())[::64, ::64, ::64].sum())


def tensorstore_write(prefix: str, shape: list[int], chunk: list[int]) -> None:
    import numpy as np
    import tensorstore as ts

    size = int(np.prod(shape))
    data = np.frombuffer(_noise(size), np.uint8).reshape(shape)
    metadata = {
        "shape": shape, "data_type": "uint8", "codecs": [{"name": "bytes"}],
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": chunk}},
    }  # fmt: skip
    spec = {"driver": "zarr3", "kvstore": _kvstore(prefix), "metadata": metadata}
    array = ts.open(spec, create=True, delete_existing=True).result()
    array.write(data).result()


def tensorstore_patches(prefix: str, corners: list[list[int]], edge: int) -> None:
    import numpy as np

    if ("cached", prefix) not in _kept:
        array = _tensorstore(prefix, 2 << 30)
        array.read().result()
        _kept["cached", prefix] = array  # type: ignore[index]
    array = _kept["cached", prefix]  # type: ignore[index]
    for z, y, x in corners:
        np.asarray(array[z : z + edge, y : y + edge, x : x + edge].read().result())


def zarr_read(prefix: str) -> None:
    import zarr
    from zarr.storage import ObjectStore

    array = zarr.open_array(store=ObjectStore(_bucket()), path=prefix, mode="r")
    _kept["sum"] = int(array[...][::64, ::64, ::64].sum())


DOES = {
    each.__name__: each
    for each in (
        obstore_read, obstore_write, tensorstore_read, tensorstore_write, tensorstore_patches,
        zarr_read,
    )
}  # fmt: skip


def main() -> None:
    for line in sys.stdin:
        request = json.loads(line)
        work = DOES[request.pop("do")]
        try:
            begin, used = time.perf_counter(), time.process_time()
            work(**request)
            answer = {"s": time.perf_counter() - begin, "cpu_s": time.process_time() - used}
        except Exception as error:  # noqa: BLE001  (the asker reports it as this peer's result)
            answer = {"error": f"{type(error).__name__}: {error}"[:500]}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
