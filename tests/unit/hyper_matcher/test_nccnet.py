"""NCCNet: what it starts as and learns, that a run is a function of its seed, what it refuses."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from numpy.typing import NDArray

import hyper_inference
from hyper_matcher.nccnet.choose import Candidate, Trial, compare
from hyper_matcher.nccnet.export import to_onnx
from hyper_matcher.nccnet.loss import pair_loss, peaks, place_loss
from hyper_matcher.nccnet.model import NCCNet, NetConfig
from hyper_matcher.nccnet.sampling import SampleConfig, batch, check_stack
from hyper_matcher.nccnet.train import (
    TrainConfig,
    Trained,
    batch_loss,
    features,
    grey_statistics,
    schedule,
    train,
)
from tests.support.sections import texture

SMALL = TrainConfig(
    net=NetConfig(widths=(4, 6), factor=2, sigma_high_px=8),
    samples=SampleConfig(templates_px=(24, 32), search_px=16, margin_px=8, damaged=False),
    steps=6, batch_size=4, weak_share=0.5, checkpoint_steps=2,
)  # fmt: skip


def changed(config: TrainConfig, **changes: Any) -> TrainConfig:
    return TrainConfig(
        **{name: changes.get(name, getattr(config, name)) for name in config.__slots__}
    )


def stack(depth: int = 4, edge: int = 120, noise: float = 25.0) -> NDArray[np.uint8]:
    """The same texture in every section under noise of its own."""
    base = texture((edge, edge), seed=3).astype(np.float64)
    rng = np.random.default_rng(5)
    noisy = base + rng.normal(0, noise, (depth, edge, edge))
    return np.clip(noisy, 1, 255).astype(np.uint8)


@pytest.fixture(autouse=True)
def one_thread() -> Any:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def test_it_starts_as_a_band_pass() -> None:
    torch.manual_seed(0)
    net = NCCNet(NetConfig(widths=(4, 6), factor=2, sigma_low_px=2, sigma_high_px=8), mean=100)
    section = torch.from_numpy(texture((64, 64)).astype(np.float32))[None, None]
    found = net(section)
    assert found.shape == (1, 1, 32, 32)
    small = torch.nn.functional.avg_pool2d((section - 100) / 32, 2)[0, 0].numpy()
    import scipy.ndimage

    def blur(sigma: float) -> Any:
        return scipy.ndimage.gaussian_filter(small, sigma, mode="constant", truncate=3.0)

    expected = np.tanh(1.5 * (blur(1.0) - blur(4.0)))
    np.testing.assert_allclose(found[0, 0].detach().numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("config", [NetConfig(), NetConfig(widths=(3,), factor=1, sigma_low_px=0)])
def test_the_engine_computes_what_torch_does(config: NetConfig) -> None:
    torch.manual_seed(1)
    net = NCCNet(config, mean=120.0, spread=40.0).eval()
    for head in net.heads:
        torch.nn.init.normal_(head.weight)
    section = texture((96, 112)).astype(np.float32)
    compiled = hyper_inference.compile(to_onnx(net), (1, 1, 96, 112))
    np.testing.assert_allclose(
        np.asarray(compiled(section[None, None]))[0, 0], features(net, section), atol=1e-5
    )


def test_features_of_any_size() -> None:
    net = NCCNet(NetConfig())
    assert features(net, texture((101, 95))).shape == (25, 23)


def test_peaks() -> None:
    scores = torch.zeros(1, 1, 9, 9)
    scores[0, 0, 2, 3], scores[0, 0, 3, 4], scores[0, 0, 7, 3] = 0.9, 0.8, 0.5
    p1, p2 = peaks(scores, 2)
    assert (p1.item(), p2.item()) == (pytest.approx(0.9), pytest.approx(0.5))
    assert peaks(scores, 9)[1].item() == -1


def test_the_weak_loss_wants_one_peak_where_related_and_none_elsewhere() -> None:
    torch.manual_seed(0)
    search = torch.randn(1, 1, 20, 20)
    template = search[:, :, 5:13, 6:14]
    related, unrelated = torch.tensor([True]), torch.tensor([False])
    same = pair_loss([search], [template], related, exclusion=2)
    other = pair_loss([search], [torch.randn(1, 1, 8, 8)], related, exclusion=2)
    assert same < -0.3 < other
    assert pair_loss([search], [template], unrelated, exclusion=2) == pytest.approx(1, abs=1e-5)


def test_the_place_loss_wants_the_peak_in_its_place() -> None:
    torch.manual_seed(0)
    search = torch.randn(1, 1, 20, 20)
    template = search[:, :, 5:13, 6:14]

    def loss(y: float, x: float) -> float:
        place = torch.tensor([[y, x]])
        return float(place_loss(search, template, place, tolerance=2, temperature=0.04))

    assert loss(5, 6) < 0.01
    assert loss(6, 7) < 0.01
    assert loss(1, 1) > 5


def test_a_pair_shows_the_template_at_its_place() -> None:
    clean = np.repeat(texture((120, 120), seed=3)[None], 4, axis=0)
    config = SampleConfig(templates_px=(24,), search_px=16, margin_px=8, damaged=False)
    places = []
    for step in range(20):
        pairs = batch(
            clean, config, seed=1, step=step, size=2, members=[0, 1], mean=128, spread=40,
            related=True,
        )  # fmt: skip
        for search, template, place in zip(
            pairs.search[:, 0], pairs.template[:, 0], pairs.place.astype(int), strict=True
        ):
            there = search[place[0] :, place[1] :][: template.shape[0], : template.shape[1]]
            assert np.corrcoef(there.ravel(), template.ravel())[0, 1] > 0.8
            places.append(place)
    spread = np.array(places)
    assert spread.min() < 8
    assert spread.max() > 24


def test_unrelated_pairs_show_other_places() -> None:
    clean = np.repeat(texture((300, 300), seed=3)[None], 4, axis=0)
    config = SampleConfig(templates_px=(24,), search_px=16, margin_px=8, damaged=False)
    for step in range(10):
        pairs = batch(
            clean, config, seed=1, step=step, size=1, members=[0], mean=128, spread=40,
            related=False,
        )  # fmt: skip
        search = torch.from_numpy(pairs.search)
        template = torch.from_numpy(pairs.template)[:, :, 8:-8, 8:-8]
        assert pair_loss([search], [template], torch.tensor([False]), exclusion=2) < 0.9


def striped(depth: int = 6, edge: int = 120) -> NDArray[np.uint8]:
    """Faint tissue under stripes of the band that a band-pass lets through, shifted in each."""
    base = 0.4 * (texture((edge, edge), seed=3) - 128.0)
    rng = np.random.default_rng(5)
    phase = rng.uniform(0, 2 * np.pi, (depth, 1, 1))
    stripes = 90 * np.sin(2 * np.pi * np.arange(edge) / 9 + phase)
    noise = rng.normal(0, 10, (depth, edge, edge))
    return np.clip(128 + base + stripes + noise, 1, 255).astype(np.uint8)


def test_it_learns_to_look_past_what_does_not_go_on_from_section_to_section() -> None:
    config = changed(SMALL, steps=100, weak_share=0.0, learning_rate=8e-3)
    trained = train(striped(), config)
    assert np.mean(trained.losses[-10:]) < 0.5 * np.mean(trained.losses[:10])
    assert not trained.net.training


@pytest.mark.parametrize(("weak", "enough"), [(True, -0.1), (False, 2.0)])
@pytest.mark.parametrize("response", [9.0, -9.0])
def test_a_net_whose_features_have_no_contrast_left_learns_again(
    weak: bool, enough: float, response: float
) -> None:
    """Without contrast the losses are 0 and 5.05, and have no gradient."""
    torch.manual_seed(0)
    sections = stack()
    net = NCCNet(SMALL.net, mean=128, spread=40)
    torch.nn.init.constant_(net.heads[0].bias, response)
    assert features(net, sections[0]).std() < 1e-3
    optimizer = torch.optim.Adam(net.parameters(), lr=0.05)
    losses = []
    for step in range(150):
        pairs = batch(
            sections, SMALL.samples, seed=0, step=step, size=2, members=[0, 1], mean=128,
            spread=40, related=True,
        )  # fmt: skip
        optimizer.zero_grad()
        loss = batch_loss(net, pairs, SMALL, weak=weak)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert np.mean(losses[-20:]) < enough


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_gpu_learns_the_same_and_a_cpu_goes_on_from_it(tmp_path: Path) -> None:
    whole = train(stack(), SMALL)
    steps: list[int] = []
    part = train(
        stack(), SMALL, folder=tmp_path, device="cuda",
        on_step=lambda step, loss: steps.append(step), stop=lambda: len(steps) == 4,
    )  # fmt: skip
    np.testing.assert_allclose(part.losses, whole.losses[:4], atol=5e-3)
    rest = train(stack(), SMALL, folder=tmp_path)
    np.testing.assert_allclose(rest.losses, whole.losses, atol=5e-3)
    section = stack()[0]
    there = features(rest.net.to("cuda"), section)
    np.testing.assert_allclose(there, features(rest.net.cpu(), section), atol=5e-3)


def test_a_run_is_a_function_of_its_seed() -> None:
    once, again = train(stack(), SMALL), train(stack(), SMALL)
    assert once.losses == again.losses
    assert once.losses != train(stack(), changed(SMALL, seed=1)).losses
    for one, other in zip(once.net.parameters(), again.net.parameters(), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("after", [1, 2, 4])
def test_a_stopped_run_goes_on_as_if_it_had_not_been(tmp_path: Path, after: int) -> None:
    whole = train(stack(), SMALL)
    steps: list[int] = []
    part = train(
        stack(), SMALL, folder=tmp_path,
        on_step=lambda step, loss: steps.append(step), stop=lambda: len(steps) == after,
    )  # fmt: skip
    assert len(part.losses) == after
    rest = train(stack(), SMALL, folder=tmp_path, on_step=lambda step, loss: steps.append(step))
    assert steps == list(range(6))
    assert rest.losses == whole.losses
    for one, other in zip(rest.net.parameters(), whole.net.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    train(stack(), SMALL, folder=tmp_path)
    with pytest.raises(ValueError, match="other settings"):
        train(stack(), changed(SMALL, learning_rate=1e-3), folder=tmp_path)


def rank(number: int, port: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group(
        "gloo", init_method=f"tcp://127.0.0.1:{port}", rank=number, world_size=2
    )
    trained = train(stack(), SMALL)
    if number == 0:
        torch.save({"net": trained.net.state_dict(), "losses": trained.losses}, f"{folder}/two.pt")
    dist.destroy_process_group()


def test_two_ranks_are_one_process_at_equal_batch(tmp_path: Path) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(rank, args=(port, str(tmp_path)), nprocs=2)
    two = torch.load(tmp_path / "two.pt", weights_only=True)
    one: Trained = train(stack(), SMALL)
    np.testing.assert_allclose(two["losses"], one.losses, atol=2e-4)
    for name, values in one.net.state_dict().items():
        torch.testing.assert_close(two["net"][name], values, atol=2e-3, rtol=0)


def test_the_schedule_rises_and_falls() -> None:
    rates = [schedule(step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(0.2)
    assert max(rates) == 1.0
    assert rates[-1] < 0.01


@pytest.mark.parametrize(
    ("shape", "message"),
    [
        ((4, 60, 200), "too small for templates"),
        ((1, 400, 400), "at least two"),
        ((400, 400), r"axes \(z, y, x\)"),
    ],
)
def test_a_stack_without_room_is_refused(shape: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_stack(shape, SMALL.samples)


def test_sections_without_contrast_are_refused() -> None:
    for blank in (np.zeros((3, 120, 120), np.uint8), np.full((3, 120, 120), 7, np.uint8)):
        with pytest.raises(ValueError, match="no contrast"):
            train(blank, SMALL)
    with pytest.raises(ValueError, match="not finite"):
        grey_statistics(np.where(np.eye(120, dtype=bool), np.nan, stack()[:1].astype(np.float32)))


def test_the_choice_prefers_what_finds_its_neighbours() -> None:
    sections = stack(depth=3, edge=300, noise=20)
    rng = np.random.default_rng(0)
    candidates = [
        Candidate("noise", lambda s: rng.normal(size=s.shape).astype(np.float32), order=0),
        Candidate("raw", lambda s: s.astype(np.float32), order=1),
        Candidate("raw again", lambda s: s.astype(np.float32), order=2),
    ]
    trial = Trial(template_px=32, search_px=20, tolerance_px=4)
    best, second, worst = compare(list(sections), candidates, trial)
    assert (best.name, second.name, worst.name) == ("raw", "raw again", "noise")
    assert best.rate > 0.95 > 0.5 > worst.rate
    assert best.low <= best.rate <= best.high
    with pytest.raises(ValueError, match="at least two"):
        compare(list(sections[:1]), candidates, trial)
    with pytest.raises(ValueError, match="no room"):
        compare(list(sections), candidates, Trial(template_px=280))
