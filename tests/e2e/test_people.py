"""What people meet: tasks without YAML, asyncio, fsspec and zarr, the status page, the viewer."""

from __future__ import annotations

import asyncio
import json
import linecache
import os
import subprocess
import sys
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import hyper
from hyper.cli import complete
from hyper.client import Client
from hyper.datasets import delete_dataset
from hyper.errors import InvalidArgumentError, WorkFailedError
from hyper.filesystem import HyperFileSystem
from hyper.zarr_store import open_store
from tests.support.browser import Page, find_chromium, open_page
from tests.support.local_cluster import LocalCluster

pytestmark = pytest.mark.timeout(300)
BROWSER_S = 90.0  # for pages to show what they are to show
SCRIPT = """
import math
import hyper

FACTOR = 10

def scaled(value):
    return FACTOR * math.sqrt(value)

@hyper.task(retries=0)
def work(value, *, shift):
    if value < 0:
        print("negative values have no root")
        raise ValueError("a negative value")
    return {"value": scaled(value) + shift}

def large(number):
    return "x" * 50_000 + str(number)

if __name__ == "__main__":
    import sys
    with hyper.connect() as client:
        run = client.map(work, [0, 1, 4], shift=0.5)
        print([found["value"] for found in run])
"""


@pytest.fixture(scope="module")
def values() -> np.ndarray:
    return np.random.default_rng(2).integers(0, 60_000, (5, 37, 41)).astype(np.uint16)


@pytest.fixture(scope="module")
def client(local_cluster: LocalCluster, values: np.ndarray) -> Any:
    with Client(local_cluster.endpoint) as made:
        with made.session("default/people") as session:
            array = session.create_array(
                "deep/raw", values.shape, "uint16", chunks=(2, 16, 16), shards=(2, 32, 32),
                voxel_size_nm=(40, 4, 4),
            )  # fmt: skip
            array[...] = values
            session.write("tables/cells.csv", "name,size\nAda,3\nEmmy,5\n")
        yield made


def test_a_script_maps_its_function(local_cluster: LocalCluster, tmp_path: Path) -> None:
    script = tmp_path / "roots.py"
    script.write_text(SCRIPT)
    done = subprocess.run(
        [sys.executable, str(script)], env=local_cluster.environment, capture_output=True,
        text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[0.5, 10.5, 20.5]"


def test_a_notebooks_function_maps(client: Client) -> None:
    scope: dict[str, Any] = {"__name__": "__main__"}
    source = SCRIPT.partition("if __name__")[0]
    linecache.cache["<cell 1>"] = (len(source), None, source.splitlines(True), "<cell 1>")
    module = sys.modules["__main__"]
    file = getattr(module, "__file__", None)
    exec(compile(source, "<cell 1>", "exec"), scope)
    try:
        module.__file__ = None
        run = client.map(scope["work"], [9], shift=1)
        assert run.results() == [{"value": 31}]
        many = client.map(scope["large"], range(100)).results()  # more than a message may have
        assert [found.lstrip("x") for found in many] == [str(number) for number in range(100)]
        failing = client.map(scope["work"], [-1], shift=1)
        with pytest.raises(WorkFailedError, match="negative values have no root"):
            failing.results()
    finally:
        module.__file__ = file
        del linecache.cache["<cell 1>"]


async def test_asyncio(local_cluster: LocalCluster, client: Client, values: np.ndarray) -> None:
    async with hyper.connect_async(local_cluster.endpoint) as cluster:
        workflow = await cluster.submit(
            {"version": 1, "name": "a", "experiments": {"x": {"command": "true"}}}
        )
        states = [status.state async for status in workflow.watch()]
        assert states[-1] == "SUCCEEDED"
        array = await cluster.open_array("default/people/deep/raw")
        assert np.array_equal(await array.read[1:3, 5], values[1:3, 5])
        tasks = [task async for task in workflow.tasks("x")]
        assert [task.index for task in tasks] == [0]


def test_fsspec_and_what_reads_through_it(client: Client, values: np.ndarray) -> None:
    import dask.array
    import pandas
    import xarray
    import zarr

    fs = HyperFileSystem(client=client, skip_instance_cache=True)
    frame = pandas.read_csv(fs.open("hyper://default/people/tables/cells.csv"))
    assert frame["size"].tolist() == [3, 5]
    assert fs.ls("hyper://default/people", detail=False) == [
        "default/people/deep", "default/people/tables"
    ]  # fmt: skip
    assert sorted(fs.find("default/people/tables")) == ["default/people/tables/cells.csv"]
    with fs.open("default/people/tables/cells.csv") as file:
        file.seek(10)
        assert file.read(3) == b"Ada"
    with pytest.raises(FileNotFoundError):
        fs.open("default/people/nothing")
    with pytest.raises(FileNotFoundError):
        fs.ls("default/nobody")

    store = open_store("default/people", client)
    group = zarr.open_group(store, mode="r")
    assert np.array_equal(group["deep/raw"][1:4, ::7, -5:], values[1:4, ::7, -5:])
    lazy = dask.array.from_zarr(zarr.open_array(open_store("default/people/deep/raw", client)))
    assert int(lazy.astype("u8").sum().compute()) == int(values.sum())
    found = xarray.open_zarr(open_store("default/people", client), group="deep", consolidated=False)
    assert found["raw"].dims == ("z", "y", "x")
    assert np.array_equal(found["raw"].values, values)


def test_what_fsspec_writes_is_versions(client: Client) -> None:
    fs = HyperFileSystem(client=client, skip_instance_cache=True)
    with fs.open("default/written/one.txt", "wb") as file:
        file.write(b"first")
    with fs.transaction:
        fs.pipe_file("default/written/two.txt", b"second")
        fs.pipe_file("default/written/three.txt", b"third")
    head = client.open_dataset("default/written")
    assert head.version == 2  # one for the file, one for the transaction
    assert fs.cat("default/written/three.txt") == b"third"
    with pytest.raises(RuntimeError), fs.transaction:
        fs.pipe_file("default/written/four.txt", b"fourth")
        raise RuntimeError
    assert not fs.exists("default/written/four.txt")
    with pytest.raises(InvalidArgumentError, match="without @"):
        fs.pipe_file("default/written@1/one.txt", b"")
    fs.rm("default/written/one.txt")
    assert not fs.exists("default/written/one.txt")
    assert fs.cat("default/written@1/one.txt") == b"first"


def test_fsspec_sees_what_others_commit(client: Client) -> None:
    name = "default/shared"

    def commit(text: str, value: int) -> None:  # as another process would
        with client.session(name) as session:
            session.write("t/x.csv", text)
            if value > 1:
                session.delete_array("a")
            shape = (value, 2)
            array = session.create_array("a", shape, "uint8", chunks=(1, 2), shards=(1, 2))
            array[...] = np.full(shape, value, np.uint8)

    fs = HyperFileSystem(client=client, skip_instance_cache=True)
    with pytest.raises(FileNotFoundError):
        fs.cat_file(f"{name}/t/x.csv")
    commit("old", 1)
    assert fs.cat_file(f"{name}/t/x.csv") == b"old"
    opened = fs.open(f"{name}/t/x.csv", block_size=1, cache_type="none")
    assert (fs.cat_file(f"{name}/a/c/0/0"), fs.info(f"{name}/t/x.csv")["size"]) == (b"\1\1", 3)
    commit("newer", 2)
    assert opened.read() == b"old"  # a file that is read stays what it was when it was opened
    assert fs.cat_file(f"{name}/t/x.csv") == b"newer"
    assert fs.info(f"{name}/t/x.csv")["size"] == 5
    assert fs.open(f"{name}/t/x.csv").read() == b"newer"
    assert json.loads(fs.cat_file(f"{name}/a/zarr.json"))["shape"] == [2, 2]
    assert fs.cat_file(f"{name}/a/c/1/0") == b"\2\2"
    commit("third", 3)
    assert [each["name"] for each in fs.ls(f"{name}/a/c")][-1] == f"{name}/a/c/2"
    assert fs.cat_file(f"{name}@1/t/x.csv") == b"old"
    delete_dataset(client, name, request_id=str(uuid.uuid4()))
    with pytest.raises(FileNotFoundError):
        fs.info(f"{name}/t/x.csv")


def test_addresses_alone_suffice(local_cluster: LocalCluster, client: Client) -> None:
    code = (
        "import pandas, zarr\n"
        "print(pandas.read_csv('hyper://default/people/tables/cells.csv')['size'].sum())\n"
        "print(zarr.open_array('hyper://default/people/deep/raw', mode='r')[0, 0, 0])\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], env=local_cluster.environment, capture_output=True, text=True,
        timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "8"


def test_the_shell_completes_names(
    local_cluster: LocalCluster, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HYPER_ENDPOINT", local_cluster.endpoint)
    assert "default/people" in complete.datasets("")
    assert complete.datasets("default/peo") == ["default/people"]
    assert complete.datasets("nobody/") == []
    recipe = {"version": 1, "name": "c", "experiments": {"first": {"command": "true"}}}
    name = client.submit(recipe).status.id
    assert name in complete.workflows("") and complete.workflows(name[:-1] + "?") == []
    assert complete.workflows(f"{name}/f") == [f"{name}/first"]
    monkeypatch.setenv("HYPER_ENDPOINT", "127.0.0.1:1")
    assert complete.workflows("") == complete.datasets("x/") == []


def test_logs_by_source_and_time(local_cluster: LocalCluster, client: Client) -> None:
    work = {"command": "printf 'one\\n'; exit 3", "retries": 0}  # a failure is told of as an event
    workflow = client.submit({"version": 1, "name": "l", "experiments": {"e": work}})
    assert workflow.wait(timeout_s=60).state == "FAILED"
    name = workflow.name.rpartition("/")[2]
    end = time.monotonic() + 30
    while b"ended" not in b"".join(workflow.logs("e/0", source="os")):
        assert time.monotonic() < end
        time.sleep(0.1)
    for target in (f"{name}/e/0", name):
        (program,) = local_cluster.json("logs", target)
        assert (program["source"], program["log"]) == ("program", "one\n")
        (events,) = local_cluster.json("logs", target, "--source", "os")
        assert json.loads(events["log"].splitlines()[-1])["event"] == "ended"
        (nothing,) = local_cluster.json("logs", target, "--since", "0s")
        assert nothing["log"] == ""
        assert "one" not in local_cluster.run("logs", target, "--since", "0s").stdout
        assert "one" in local_cluster.run("logs", target, "--since", "1h").stdout
        wrong = local_cluster.run("logs", target, "--source", "nonsense")
        assert wrong.returncode == 2 and "program, os, usage" in wrong.stderr


# The status page


def page_of(cluster: LocalCluster) -> str:
    (scheduler,) = cluster.processes("scheduler")[:1]
    return f"http://{scheduler['metrics_address']}"


def get(url: str, headers: dict[str, str] | None = None) -> tuple[int, Any, bytes]:
    try:
        request = urllib.request.Request(url, headers=headers or {})
        with urllib.request.urlopen(request, timeout=20) as response:
            return response.status, response.headers, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.headers, error.read()


@pytest.fixture(scope="module")
def hostile(client: Client) -> str:
    """A workflow whose every free text is markup."""
    recipe = {
        "version": 1,
        "name": "hostile",
        "experiments": {
            "shout": {
                "command": "printf '%s' '<img src=x onerror=document.title=1>'; exit {{code}}",
                "parameters": {"code": [3], "note": ["<script>document.title='broken'</script>"]},
                "retries": 0,
            },
            "after": {"command": "true", "depends_on": ["shout"]},
        },
    }
    workflow = client.submit(recipe)
    assert workflow.wait().state == "FAILED"
    return workflow.name


def test_the_pages_answers(local_cluster: LocalCluster, hostile: str) -> None:
    base = page_of(local_cluster)
    status, headers, body = get(base + "/")
    assert status == 200 and b"<main" in body
    assert "default-src 'none'" in headers["Content-Security-Policy"]
    assert "unsafe" not in headers["Content-Security-Policy"]
    overview = json.loads(get(base + "/api/overview?tenant=default")[2])
    assert hostile in [each["name"] for each in overview["workflows"]]
    assert overview["workers"] and overview["services"]
    assert get(base + "/api/workflow?name=nonsense")[0] == 400
    assert get(base + "/api/workflow?name=tenants/default/workflows/none")[0] == 404
    assert get(base + "/status.html")[0] == 404  # three names, no folder
    assert get(base + "/../pages.py")[0] == 404
    assert get(base + "/", {"Host": "evil.example"})[0] == 403
    assert get(base + "/metrics")[0] == 200
    log = json.loads(get(f"{base}/api/log?task={hostile}/experiments/shout/tasks/0")[2])
    assert "onerror" in log["text"]


async def settled(page: Page, expression: str) -> str:
    """The page's document once some JavaScript is true in it."""
    end = time.monotonic() + BROWSER_S
    while not await page.evaluate(expression):
        assert time.monotonic() < end, await page.evaluate("document.documentElement.outerHTML")
        await asyncio.sleep(0.1)
    return str(await page.evaluate("document.documentElement.outerHTML"))


async def test_the_page_in_a_browser(
    local_cluster: LocalCluster, hostile: str, tmp_path: Path
) -> None:
    base = page_of(local_cluster)
    async with open_page(f"{base}/", tmp_path) as page:
        text = "document.body.innerText"
        overview = await settled(page, f"{text}.includes('storage-gateway')")
        assert hostile.rpartition("/")[2] in overview
        await page.evaluate(f"location.hash = 'workflow={hostile}'")
        one = await settled(page, "document.querySelector('svg g') !== null")
        assert "shout" in one and "after" in one
        shout = f"{hostile}/experiments/shout"
        await page.evaluate(
            f"location.hash = 'workflow={hostile}&experiment={shout}&task={shout}/tasks/0'"
        )
        task = await settled(page, f"{text}.includes('onerror=')")
        assert "&lt;img src=x onerror" in task and "<img" not in task
        assert "&lt;script&gt;document" in task
        assert await page.evaluate("document.title") == "Hyper"
        unnamed = (
            "[...document.querySelectorAll('input, select, button, a')]"
            ".filter(e => !(e.labels?.length || e.ariaLabel || e.innerText.trim())).length"
        )
        assert await page.evaluate(unnamed) == 0
        assert await page.evaluate("document.documentElement.lang") == "en"


@pytest.mark.skipif(
    "HYPER_TEST_VIEWER" not in os.environ,
    reason="set HYPER_TEST_VIEWER=1 where Chromium has WebGL: in software it may draw nothing",
)
async def test_an_array_in_the_viewer(
    local_cluster: LocalCluster, client: Client, tmp_path: Path
) -> None:
    pytest.importorskip("neuroglancer", reason="pip install -e '.[view]'")
    grey = np.zeros((4, 64, 64), np.uint8)
    grey[:, :, 32:] = 255
    with client.session("default/seen") as session:
        session.create_array("aligned", grey.shape, "uint8", voxel_size_nm=(40, 4, 4))[...] = grey
    find_chromium()
    viewer = local_cluster.popen("view", "default/seen", "--no-browser", "--json")
    try:
        assert viewer.stdout is not None
        line = viewer.stdout.readline()
        assert line, viewer.communicate()[1]
        async with open_page(json.loads(line)["url"], tmp_path) as page:
            end = time.monotonic() + BROWSER_S
            while True:  # until both halves of the array are to be seen
                picture = await page.picture()
                white, black = (picture > 230).mean(), (picture < 25).mean()
                if white > 0.02 and black > 0.02:
                    break
                assert time.monotonic() < end, f"white {white:.3f}, black {black:.3f}"
                await asyncio.sleep(0.5)
    finally:
        viewer.terminate()
        viewer.communicate(timeout=20)


def test_a_report(local_cluster: LocalCluster, hostile: str, tmp_path: Path) -> None:
    out = tmp_path / "report.html"
    told = local_cluster.json("report", hostile, "--out", str(out), "--price", "0.03")
    assert told["report"] == str(out) and told["workflows"][0]["wall_s"] > 0
    page = out.read_text()
    assert "Time line" in page and "USD at 0.03" in page and "<script" not in page


def test_the_readme_shows_where_the_page_is(local_cluster: LocalCluster) -> None:
    done = local_cluster.run("status")
    assert done.returncode == 0
    assert page_of(local_cluster).removeprefix("http://") in done.stdout
    assert f"page {page_of(local_cluster)}" in done.stdout


def test_status_of_a_cluster_elsewhere(local_cluster: LocalCluster, tmp_path: Path) -> None:
    """Its scheduler says what there is; nothing of it is on this machine."""
    environment = {**local_cluster.environment, "HYPER_HOME": str(tmp_path)}
    here = local_cluster.endpoint

    def status(*arguments: str) -> str:
        command = [sys.executable, "-m", "hyper.cli.main", "--endpoint", here, "status"]
        done = subprocess.run(
            [*command, *arguments], env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    facts = json.loads(status("--json"))
    assert (facts["state"], facts["endpoint"], facts["leader"]) == ("running", here, here)
    services = sorted(each["service"] for each in facts["instances"])
    assert services == ["inference", "matcher", "scheduler", "storage-gateway"]
    there = [each for each in facts["workers"] if each["state"] != "LOST"]  # others restart some
    assert len(there) == len(local_cluster.processes("worker")) == 2
    shown = status()
    assert f"cluster running at {here}" in shown
    assert "leads" in shown and "2 workers, " in shown
    assert status("--quiet") == ""
    own = subprocess.run(
        [sys.executable, "-m", "hyper.cli.main", "--endpoint", here, "status"],
        env=local_cluster.environment, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert "worker-1" in own.stdout  # this machine's own is shown process by process
