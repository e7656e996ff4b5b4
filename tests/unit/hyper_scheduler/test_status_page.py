"""The status page's answers, before any service is asked."""

from __future__ import annotations

import json
import re
from importlib.resources import files

import pytest

from hyper_scheduler.web.pages import StatusPages, _is_local


@pytest.fixture
def pages() -> StatusPages:
    return StatusPages(lambda: "", loopback=True)


LOCAL = {"Host": "127.0.0.1:8080"}


def test_three_files_and_nothing_else(pages: StatusPages) -> None:
    for path, kind in (
        ("/", "text/html"),
        ("/status.js", "text/javascript"),
        ("/status.css", "text/css"),
    ):
        found = pages.answer(path, LOCAL)
        assert found is not None and found.status == 200
        assert found.content_type.startswith(kind)
        assert found.headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert found.headers["X-Content-Type-Options"] == "nosniff"
    for path in ("/pages.py", "/status.html", "/../__init__.py", "/api", "/api/", "/favicon.ico"):
        assert pages.answer(path, LOCAL) is None


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1:1", True), ("127.0.0.1", True), ("localhost:80", True), ("[::1]:5", True),
        ("127.0.0.1.evil.example:80", False), ("evil.example", False), ("", False),
        ("10.0.0.1:80", False),
    ],
)  # fmt: skip
def test_a_page_on_loopback_answers_to_loopback_names(
    pages: StatusPages, host: str, local: bool
) -> None:
    assert _is_local(host) is local
    found = pages.answer("/", {"Host": host})
    assert found is not None and found.status == (200 if local else 403)
    elsewhere = StatusPages(lambda: "", loopback=False).answer("/", {"Host": host})
    assert elsewhere is not None and elsewhere.status == 200


@pytest.mark.parametrize(
    ("path", "status"),
    [
        ("/api/overview", 503),  # the scheduler has no address yet
        ("/api/overview?tenant=../x", 400),
        ("/api/workflow", 400),
        ("/api/tasks?parent=x&state=sleeping", 400),
        ("/api/log", 503),
    ],
)
def test_errors_are_json_with_a_sentence(pages: StatusPages, path: str, status: int) -> None:
    found = pages.answer(path, LOCAL)
    assert found is not None and found.status == status, found
    assert json.loads(found.body)["error"]


def test_the_script_never_writes_markup() -> None:
    script = files("hyper_scheduler.web").joinpath("status.js").read_text()
    assert not re.search(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(", script)
    page = files("hyper_scheduler.web").joinpath("status.html").read_text()
    assert not re.search(r"\son\w+=|style=|<style|javascript:", page)
