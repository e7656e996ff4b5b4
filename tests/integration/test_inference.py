"""The inference service against a real gateway, etcd and S3."""

from __future__ import annotations

import secrets
import threading
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np
import pytest

import hyper_inference
from hyper.client import Client
from hyper.compute_inference import VolumeProgress
from hyper.config import INFERENCE
from hyper.errors import (
    DataLossError,
    HyperError,
    InvalidArgumentError,
    NotFoundError,
    ResourceExhaustedError,
)
from hyper.sessions import Session
from hyperapi.common.v1.tensor_pb2 import ArrayRef, TensorSpec
from hyperapi.inference.v1 import inference_service_pb2 as api
from hyperapi.inference.v1.inference_service_pb2_grpc import InferenceServiceStub
from tests.compiler.nets import bandpass_model, onnx_model, small_unet_model
from tests.support.gateway import run_gateway
from tests.support.inference import inference_client, run_inference
from tests.support.servers import EtcdServer, S3Server

pytestmark = pytest.mark.timeout(120)
MODELS = "tests/models"


@pytest.fixture(scope="module")
def services(
    etcd_server: EtcdServer, s3_server: S3Server, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[dict[str, str]]:
    folder = tmp_path_factory.mktemp("inference")
    bucket = s3_server.settings(f"inference-{secrets.token_hex(8)}")
    prefix = f"/test-{secrets.token_hex(8)}"
    with (
        run_gateway(folder / "gateway", etcd_server.endpoint, bucket, prefix) as gateway,
        run_inference(
            folder / "inference", gateway.address, INPUT_BYTES=str(2**26), BLOCK_BYTES="65536"
        ) as facts,
    ):
        yield {**facts, "gateway": gateway.address}


@pytest.fixture(scope="module")
def client(services: dict[str, str]) -> Iterator[Client]:
    with inference_client(services["gateway"], services["address"]) as client:
        with client.session(MODELS) as session:
            session.write("bandpass.onnx", bandpass_model(9, 1.0, 2.0))
            session.write("nets/unet.onnx", small_unet_model())
            session.write("broken.onnx", bandpass_model()[:500])
            session.write("text.onnx", b"no model at all")
            weights = {"w": np.ones((1, 1), np.float32)}
            node = hyper_node("CumSum", ["x"], ["y"], name="head")
            session.write("cumsum.onnx", onnx_model([node], weights, [1, 1, "h", "w"]))
        yield client


def hyper_node(*arguments: Any, **named: Any) -> Any:
    from onnx import helper

    return helper.make_node(*arguments, **named)


@pytest.fixture
def session(client: Client) -> Iterator[Session]:
    session = client.session(f"tests/out-{secrets.token_hex(4)}")
    yield session
    session.abort()


def random_volume(*shape: int, dtype: str = "uint8") -> np.ndarray:
    return np.random.default_rng(1).integers(0, 255, shape).astype(dtype)


def test_predict_gives_what_the_library_gives(client: Client) -> None:
    batch = np.random.default_rng(0).standard_normal((3, 1, 200, 333)).astype(np.float32)
    expected = hyper_inference.compile(bandpass_model(9, 1.0, 2.0), batch.shape)(batch)
    assert np.array_equal(client.predict(f"{MODELS}/bandpass.onnx", batch), expected)
    assert np.array_equal(client.predict(f"{MODELS}@1/bandpass.onnx", batch[:1]), expected[:1])


def test_predict_takes_other_dtypes_and_3d_nets(client: Client) -> None:
    patch = random_volume(1, 1, 6, 20, 34)
    net = hyper_inference.compile(small_unet_model(), patch.shape)
    output = client.predict(f"{MODELS}/nets/unet.onnx", patch)
    assert output.shape == (1, 2, 6, 20, 34)
    assert np.array_equal(output, net(patch))
    exact = client.predict(f"{MODELS}/nets/unet.onnx", patch, mode="exact")
    assert np.abs(exact - output).max() < 1e-4


def test_get_model_shows_inputs_outputs_and_graph(client: Client) -> None:
    name = "tenants/tests/datasets/models/versions/head/files/bandpass.onnx"
    model = client.call(INFERENCE, InferenceServiceStub, "GetModel", api.GetModelRequest(name=name))
    assert list(model.inputs[0].shape) == [1, 1, -1, -1]
    assert "conv" in model.graph


@pytest.mark.parametrize(
    ("model", "words", "reason"),
    [
        ("broken.onnx", "cut off|nothing makes|impossible", "INVALID_MODEL"),
        ("text.onnx", "ONNX", "INVALID_MODEL"),
        ("cumsum.onnx", "CumSum", "INVALID_MODEL"),
        ("net.pt2", "ONNX", "INVALID_MODEL"),
        ("nets/unet.onnx", "does not fit", "SHAPE_MISMATCH"),
    ],
)
def test_models_that_cannot_run_are_refused(
    client: Client, model: str, words: str, reason: str
) -> None:
    with pytest.raises(InvalidArgumentError, match=words) as caught:
        client.predict(f"{MODELS}/{model}", np.zeros((1, 1, 8, 9), np.float32))
    assert caught.value.reason == reason
    assert "\n" not in str(caught.value)


def test_a_missing_model_is_not_found(client: Client) -> None:
    with pytest.raises(NotFoundError):
        client.predict(f"{MODELS}/nothing.onnx", np.zeros((1, 1, 8, 8), np.float32))
    for bad in ("tenants/a/datasets/b/versions/1/files/../../x", "tenants/a/b"):
        with pytest.raises(InvalidArgumentError) as caught:
            client.predict(bad, np.zeros((1, 1, 8, 8), np.float32))
        assert caught.value.reason == "INVALID_NAME"


def predict_by_hand(client: Client, *requests: api.PredictRequest) -> list[api.PredictResponse]:
    return list(client.stream(INFERENCE, InferenceServiceStub, "Predict", lambda: iter(requests)))


def header(shape: list[int], dtype: str = "float32", **more: Any) -> api.PredictRequest:
    name = "tenants/tests/datasets/models/versions/head/files/bandpass.onnx"
    return api.PredictRequest(
        header=api.PredictHeader(model=name, input=TensorSpec(shape=shape, dtype=dtype), **more)
    )


def part(data: bytes, offset: int = 0, **more: Any) -> api.PredictRequest:
    facts = {"crc32c": google_crc32c.value(data), "last": True, **more}
    return api.PredictRequest(part=api.PredictPart(offset=offset, data=data, **facts))


def test_malformed_streams_are_refused(client: Client) -> None:
    data = bytes(4 * 64)
    good = header([1, 1, 8, 8])
    assert len(predict_by_hand(client, good, part(data))) == 2
    with pytest.raises(DataLossError):
        predict_by_hand(client, good, part(data, crc32c=1))
    for bad in (
        [part(data)],
        [],
        [good],
        [good, part(data[:-4])],
        [good, part(data + b"1234")],
        [good, part(data, offset=4)],
        [good, good],
        [header([1, 1, 2**31, 2**31]), part(data)],
        [header([1, 1, -8, -8]), part(data)],
        [header([64]), part(data)],
        [header([1, 1, 8, 8], "object"), part(data)],
        [header([1, 1, 8, 8], mode="magic"), part(data)],
        [header([1, 1, 8192, 8192]), part(data)],
    ):
        with pytest.raises(InvalidArgumentError):
            predict_by_hand(client, *bad)
    assert len(predict_by_hand(client, good, part(data))) == 2  # still alive


def test_predict_reads_its_input_from_storage(client: Client, session: Session) -> None:
    volume = random_volume(3, 40, 50)
    session.create_array("raw", volume.shape, "uint8")[...] = volume
    source = ArrayRef(name=f"{session.name}/arrays/raw")
    answer = predict_by_hand(client, header([], source=source))
    shape = list(answer[0].header.output.shape)
    assert shape == [3, 1, 40, 50]
    expected = client.predict(f"{MODELS}/bandpass.onnx", volume[:, None])
    data = b"".join(response.part.data for response in answer[1:])
    assert np.array_equal(np.frombuffer(data, np.float32).reshape(shape), expected)


def test_infer_volume_over_sections(client: Client, session: Session) -> None:
    volume = random_volume(4, 300, 280)
    source = session.create_array("raw", volume.shape, "uint8")
    source[...] = volume
    session.write("align/bandpass.onnx", bandpass_model(9, 1.0, 2.0))
    features = session.create_array("features", volume.shape, "uint8")
    told: list[VolumeProgress] = []
    for z in range(4):  # as the tasks of a recipe do
        client.infer_volume(
            f"{session.name}/files/align/bandpass.onnx", source, features,
            box=((z, 0, 0), (z + 1, 300, 280)), output_scale=2.0, output_shift=128.0,
            on_progress=told.append,
        )  # fmt: skip
    floats = client.predict(f"{MODELS}/bandpass.onnx", volume[:, None])[:, 0]
    expected = np.clip(np.rint(floats * np.float32(2) + np.float32(128)), 0, 255)
    assert np.array_equal(features[...], expected.astype(np.uint8))
    assert told[-1].done_patches == told[-1].total_patches == 1
    # The model in the session is read anew once it has changed.
    session.write("align/bandpass.onnx", bandpass_model(9, 1.5, 2.0))
    client.infer_volume(f"{session.name}/files/align/bandpass.onnx", source, features,
                        output_scale=2.0, output_shift=128.0)  # fmt: skip
    assert not np.array_equal(features[...], expected.astype(np.uint8))


def test_infer_volume_in_patches_with_channels(client: Client, session: Session) -> None:
    volume = random_volume(12, 70, 66)
    source = session.create_array("raw", volume.shape, "uint8")
    source[...] = volume
    whole = session.create_array("whole", (2, *volume.shape), "float32")
    patched = session.create_array(
        "patched", (2, *volume.shape), "float32", chunks=(2, 4, 16, 16), shards=(2, 4, 32, 32)
    )
    name = f"{MODELS}/nets/unet.onnx"
    options = {"scale": 1 / 255, "mode": "exact"}
    client.infer_volume(name, source, whole, **options)
    # Even starts keep the phase of the pooling, 14 voxels hold what one voxel sees: the same bits.
    client.infer_volume(name, source, patched, patch=(12, 40, 40), overlap=(0, 14, 14), **options)
    assert np.array_equal(whole[...], patched[...])
    net = hyper_inference.compile(small_unet_model(), (1, 1, 12, 70, 66), mode="exact")
    expected = net(volume[None, None].astype(np.float32) * np.float32(1 / 255))[0]
    assert np.array_equal(whole[...], expected)


def test_predictions_at_the_same_time_are_what_they_are_alone(client: Client) -> None:
    batches = [
        np.random.default_rng(n).random((n % 3 + 1, 1, 40, 50), np.float32) for n in range(12)
    ]
    net = hyper_inference.compile(bandpass_model(9, 1.0, 2.0), batches[0].shape)
    name = f"{MODELS}/bandpass.onnx"
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda batch: client.predict(name, batch), batches))
    for batch, output in zip(batches, found, strict=True):
        assert np.array_equal(output, net(batch))


def test_a_deadline_ends_a_call_that_waits(
    services: dict[str, str], client: Client, tmp_path: Path
) -> None:
    with (
        run_inference(tmp_path, services["gateway"], WORKERS="1") as facts,
        inference_client(services["gateway"], facts["address"]) as small,
    ):
        begun, done = threading.Event(), threading.Event()

        def slow() -> Iterator[api.PredictRequest]:
            yield header([1, 1, 8, 8])
            begun.set()
            done.wait(30)
            yield part(bytes(256))

        holder = threading.Thread(
            target=lambda: list(small.stream(INFERENCE, InferenceServiceStub, "Predict", slow))
        )
        holder.start()
        assert begun.wait(30)
        try:
            with pytest.raises(HyperError) as caught:
                list(small.stream(
                    INFERENCE, InferenceServiceStub, "Predict",
                    lambda: iter([header([1, 1, 8, 8]), part(bytes(256))]), timeout_s=0.5,
                ))  # fmt: skip
            assert "deadline" in str(caught.value).lower() or "time" in str(caught.value).lower()
        finally:
            done.set()
            holder.join(30)
        assert len(predict_by_hand(small, header([1, 1, 8, 8]), part(bytes(256)))) == 2


def test_masks_and_augmentation(client: Client, session: Session) -> None:
    volume = random_volume(4, 64, 64)
    source = session.create_array("raw", volume.shape, "uint8")
    source[...] = volume
    mask = session.create_array("mask", (4, 2, 2), "uint8")
    mask[...] = np.array([[[1, 0], [0, 0]]] * 2 + [[[0, 0], [0, 0]]] * 2, np.uint8)
    made = {
        name: session.create_array(name, volume.shape, "float32", chunks=(1, 32, 32),
                                   shards=(1, 32, 32))
        for name in ("plain", "masked", "turned")
    }  # fmt: skip
    name, sizes = f"{MODELS}/bandpass.onnx", {"patch": (1, 32, 32), "overlap": (0, 8, 8)}
    client.infer_volume(name, source, made["plain"], **sizes)
    client.infer_volume(name, source, made["masked"], mask=mask, **sizes)
    client.infer_volume(name, source, made["turned"], augmentation="rotations", **sizes)
    plain, masked = made["plain"][...], made["masked"][...]
    assert np.array_equal(masked[:2, :28, :28], plain[:2, :28, :28])
    assert not masked[2:].any()
    assert not masked[:, 44:, 44:].any()
    assert np.allclose(made["turned"][...], plain, atol=1e-2)  # the net is symmetric
    for bad in ({"augmentation": "magic"}, {"augmentation": "rotations", "patch": (1, 32, 40)}):
        with pytest.raises(InvalidArgumentError):
            client.infer_volume(name, source, made["turned"], **bad)


def test_volumes_that_do_not_fit_are_refused(client: Client, session: Session) -> None:
    source = session.create_array("raw", (2, 32, 32), "uint8")
    wrong = session.create_array("wrong", (2, 32, 31), "uint8")
    right = session.create_array("right", (2, 32, 32), "uint8")
    name = f"{MODELS}/bandpass.onnx"
    for arguments, more in (
        ((source, wrong), {}),
        ((source, right), {"box": ((0, 0, 0), (3, 32, 32))}),
        ((source, right), {"box": ((1, 0, 0), (1, 32, 32))}),
        ((source, right), {"patch": (2, 16, 16)}),
        ((source, right), {"patch": (1, 16, 16), "overlap": (0, 16, 16)}),
        ((source, right), {"patch": (1, 0, 16)}),
        ((source, right), {"blending": "magic"}),
        ((source, right), {"scale": float("nan")}),
    ):
        with pytest.raises(InvalidArgumentError):
            client.infer_volume(name, *arguments, **more)
    with pytest.raises(InvalidArgumentError, match="2 channels"):
        client.infer_volume(f"{MODELS}/nets/unet.onnx", source, right)


def test_a_full_queue_is_told(services: dict[str, str], client: Client, tmp_path: Path) -> None:
    gateway = services["gateway"]
    with (
        run_inference(tmp_path, gateway, WORKERS="1", QUEUE="0") as facts,
        inference_client(gateway, facts["address"]) as small,
    ):
        begun, done = threading.Event(), threading.Event()

        def slow() -> Iterator[api.PredictRequest]:
            yield header([1, 1, 8, 8])
            begun.set()
            done.wait(30)
            yield part(bytes(256))

        answers: list[Any] = []
        holder = threading.Thread(
            target=lambda: answers.extend(
                small.stream(INFERENCE, InferenceServiceStub, "Predict", slow)
            )
        )
        holder.start()
        assert begun.wait(30)
        try:
            while True:  # until the first call is inside
                with pytest.raises(ResourceExhaustedError) as caught:
                    while True:
                        predict_by_hand(small, header([1, 1, 8, 8]), part(bytes(256)))
                break
        finally:
            done.set()
            holder.join(30)
        assert caught.value.reason == "QUEUE_FULL"
        assert caught.value.retry_after_s == 1.0
        assert len(answers) == 2


def test_metrics_count_the_work(services: dict[str, str], client: Client) -> None:
    client.predict(f"{MODELS}/bandpass.onnx", np.zeros((2, 1, 16, 16), np.float32))
    url = f"http://{services['metrics_address']}/metrics"
    with urllib.request.urlopen(url, timeout=10) as response:
        text = response.read().decode()
    assert 'hyper_inference_patches_total{call="predict"}' in text
    assert "hyper_inference_cache_bytes" in text
