"""How many calls are taken in."""

from __future__ import annotations

import pytest

from hyper.errors import ResourceExhaustedError
from hyper_servicekit.admission import Admission, counted_as
from hyper_servicekit.audit import is_change
from hyper_servicekit.tokens import ANY_TENANT, TASK, Claims
from hyperapi.storage.v1.dataset_service_pb2 import METHOD_GET, METHOD_PUT, SignUrlsRequest


async def test_places_are_bounded_and_given_back() -> None:
    admission = Admission(places=2)
    async with admission.place(), admission.place():
        with pytest.raises(ResourceExhaustedError) as caught:
            async with admission.place():
                raise AssertionError("served")
        assert caught.value.retry_after_s and caught.value.reason == "QUEUE_FULL"
    assert admission.serving == 0
    with pytest.raises(ZeroDivisionError):
        async with admission.place():
            _ = 1 / 0
    assert admission.serving == 0


def test_a_caller_that_calls_too_often_is_told_when_to_come_back() -> None:
    now = [0.0]
    admission = Admission(calls_per_s=10, now=lambda: now[0])
    for _ in range(10):
        admission.take("a")
    with pytest.raises(ResourceExhaustedError) as caught:
        admission.take("a")
    admission.take("b")
    wait_s = caught.value.retry_after_s
    assert wait_s is not None and 0 < wait_s <= 0.11
    now[0] += wait_s
    admission.take("a")
    with pytest.raises(ResourceExhaustedError):
        admission.take("a")


def test_who_called_is_forgotten_in_time() -> None:
    admission = Admission(calls_per_s=1)
    for i in range(20_000):
        admission.take(str(i))
    assert len(admission._left) == 10_000


@pytest.mark.parametrize("method", ["CreateWorkflow", "CommitSession", "RevokeToken", "Connect"])
def test_changes_are_audited(method: str) -> None:
    assert is_change(method)


@pytest.mark.parametrize("method", ["GetCluster", "ListFiles", "ReadLog", "Predict", "AppendLog"])
def test_readings_are_not(method: str) -> None:
    assert not is_change(method)


def test_signing_what_to_write_is_a_change() -> None:
    assert is_change("SignUrls", SignUrlsRequest(method=METHOD_PUT))
    assert not is_change("SignUrls", SignUrlsRequest(method=METHOD_GET))


def test_a_tenants_tasks_are_counted_a_machine() -> None:
    def claims(tenant: str, subject: str) -> Claims:
        return Claims(tenant, subject, 0.0, "id")

    here, there = "ipv4:10.0.0.1:5000", "ipv4:10.0.0.2:5000"
    assert counted_as(claims(ANY_TENANT, "service"), here) is None
    assert counted_as(claims("lab", "ada"), here) == counted_as(claims("lab", "ada"), there)
    assert counted_as(claims("lab", TASK), here) != counted_as(claims("lab", TASK), there)
    assert counted_as(claims("lab", TASK), here) == counted_as(
        claims("lab", TASK), "ipv4:10.0.0.1:6000"
    )
