"""Images larger than a network's window: blending against MONAI, choice by memory, the classifier's part."""

from __future__ import annotations

import logging
import re

import numpy as np
import pytest
import torch
from monai.inferers import sliding_window_inference
from numpy.testing import assert_allclose
from torch import Tensor, nn

from threefold.core.outputs import Head, Outputs
from threefold.errors import RunError
from threefold.experiment import AttentionUnetSpec, CascadeSpec, DenseNetSpec
from threefold.inference import sliding
from threefold.inference.memory import TensorMemory
from threefold.inference.sliding import blending_weights, in_windows, predict_large, window_starts
from threefold.networks.cascade import Cascade

CPU = torch.device("cpu")


class Blob(nn.Module):
    """Segments what is bright; the first class's logit is what a window holds on the whole."""

    def __init__(self, *, segments: bool = True, classifies: bool = True) -> None:
        super().__init__()
        self.segments, self.classifies = segments, classifies
        self.seen: list[tuple[int, ...]] = []

    def forward(self, image: Tensor) -> Outputs:
        self.seen.append(tuple(image.shape[2:]))
        total = image.flatten(1).sum(dim=1)
        heads = {}
        if self.classifies:
            heads["classification"] = torch.stack([total, -total], dim=1)
        if self.segments:
            heads["segmentation"] = torch.cat([0.5 - image, image - 0.5], dim=1)
        return Outputs(heads, total[:, None] if self.classifies else None)


class Mixed(nn.Module):
    """A network whose answer for a voxel depends on where in its input it is."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.convolution = nn.Conv3d(1, 3, 5, padding=2)

    def forward(self, image: Tensor) -> Outputs:
        ramp = torch.linspace(0, 1, image.shape[-1])
        return Outputs({"segmentation": self.convolution(image) + ramp, "reconstruction": image.flip(-1)})


def little_memory(monkeypatch: pytest.MonkeyPatch, free: int = 10**7) -> None:
    monkeypatch.setattr(sliding, "free_bytes", lambda device: free)
    monkeypatch.setattr(sliding, "MEMORY_SHARE", 0.0)


@pytest.mark.parametrize(
    ("shape", "window"),
    [((20, 13, 17), (8, 8, 8)), ((9, 24, 8), (8, 6, 8)), ((16, 16, 16), (16, 8, 4)), ((31, 7, 7), (7, 7, 7))],
)
@pytest.mark.parametrize("overlap", [0.25, 0.5])
def test_windows_are_blended_as_monai_does(
    shape: tuple[int, ...], window: tuple[int, ...], overlap: float
) -> None:
    image = torch.from_numpy(np.random.default_rng(0).random((1, 1, *shape), np.float32))
    network = Mixed().eval()
    with torch.inference_mode():
        starts = window_starts(shape, window, overlap)
        ours = in_windows(network, image, window, starts, device=CPU)
        for head in ("segmentation", "reconstruction"):
            theirs = sliding_window_inference(
                image,
                window,
                2,
                lambda part, head=head: network(part).heads[head],
                overlap=overlap,
                mode="gaussian",
            )
            assert_allclose(ours.heads[head], theirs, atol=1e-5)
    assert {*ours.heads} == {"segmentation", "reconstruction"}


def test_windows_cover_every_voxel_and_stay_inside() -> None:
    for shape, window in (((40, 9), (9, 9)), ((10, 11), (10, 4)), ((7, 7), (7, 7))):
        covered = np.zeros(shape, int)
        for start in window_starts(shape, window):
            part = tuple(slice(first, first + side) for first, side in zip(start, window, strict=True))
            assert covered[part].shape == window
            covered[part] += 1
        assert covered.min() >= 1
    weights = blending_weights((8, 5))
    assert weights.shape == (8, 5)
    assert torch.equal(weights, weights.flip(0))
    assert float(weights.min()) >= 1e-3


def bright_at(start: tuple[int, ...], shape: tuple[int, ...] = (24, 20, 22)) -> Tensor:
    image = torch.zeros(1, 1, *shape)
    image[(..., *(slice(first, first + 4) for first in start))] = 1
    return image


@pytest.mark.parametrize("windows", [False, True])
@pytest.mark.parametrize("start", [(18, 1, 9), (0, 0, 0), (10, 8, 9)])
def test_the_class_is_read_about_the_foreground_whatever_the_memory(
    monkeypatch: pytest.MonkeyPatch, windows: bool, start: tuple[int, ...]
) -> None:
    if windows:
        little_memory(monkeypatch)
    network, image = Blob(), bright_at(start)
    outputs, note = predict_large(network, image, (8, 8, 8), device=CPU, name="x")
    assert_allclose(outputs.heads["segmentation"][:, 1:], image - 0.5, atol=1e-6)
    assert float(outputs.heads["classification"][0, 0]) == 64  # the window holds all of what is bright
    assert float(outputs.features) == 64
    assert ("windows of 8 x 8 x 8" in note) == windows
    assert ((24, 20, 22) in network.seen) == (not windows)


def test_without_foreground_or_segmentation_the_middle_is_read() -> None:
    image = bright_at((0, 0, 0)) * 0.4
    image[..., 12, 10, 11] = 0.3
    outputs, _ = predict_large(Blob(), image, (8, 8, 8), device=CPU, name="x")
    assert float(outputs.heads["classification"][0, 0]) == pytest.approx(0.3)
    classifier = Blob(segments=False)
    outputs, note = predict_large(classifier, image, (8, 8, 8), device=CPU, name="x")
    assert float(outputs.heads["classification"][0, 0]) == pytest.approx(0.3)
    assert classifier.seen == [(8, 8, 8)]
    assert note == "the middle 8 x 8 x 8 of 24 x 20 x 22 voxels"
    only_labels, _ = predict_large(Blob(classifies=False), image, (8, 8, 8), device=CPU, name="x")
    assert {*only_labels.heads} == {"segmentation"}
    assert only_labels.heads["segmentation"].shape == (1, 2, 24, 20, 22)


def test_a_cascades_classifier_reads_its_segmenters_answer_about_the_foreground() -> None:
    torch.manual_seed(0)
    spec = CascadeSpec(
        segmenter=AttentionUnetSpec(channels=(4, 8)), classifier=DenseNetSpec(blocks=(1, 1), growth=4, stem=4)
    )
    heads = {"classification": Head("pooled", 2), "segmentation": Head("dense", 3)}
    network = Cascade(spec, in_channels=1, heads=heads).eval()
    image = torch.rand(1, 1, 24, 20, 18)
    with torch.inference_mode():
        outputs, _ = predict_large(network, image, (16, 16, 16), device=CPU, name="x")
        whole = network(image)
        assert_allclose(outputs.heads["segmentation"], whole.heads["segmentation"], atol=1e-5)
        found = whole.heads["segmentation"][0].argmax(dim=0) != 0
        centre = found.nonzero().double().mean(dim=0) if found.any() else (torch.tensor(found.shape) - 1) / 2
        start = [
            min(max(round(float(c) + 0.5 - 8), 0), n - 16) for c, n in zip(centre, found.shape, strict=True)
        ]
        part = image[(..., *(slice(first, first + 16) for first in start))]
        of_part = network(part).heads["classification"]
        assert_allclose(outputs.heads["classification"], of_part, atol=1e-5)


def test_memory_is_stated_before_and_decides(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    image = bright_at((1, 1, 1))
    caplog.set_level(logging.INFO)
    _, note = predict_large(Blob(), image, (8, 8, 8), device=CPU, name="c7")
    assert re.fullmatch(r"24 x 20 x 22 voxels in one pass, about [\d.]+ GB", note)
    assert re.fullmatch(rf"case c7: {note} \([\d.]+ GB free on cpu\)", caplog.messages[-1])
    assert caplog.records[-1].levelno == logging.INFO
    window = image[..., :8, :8, :8]
    with TensorMemory() as memory:
        Blob()(window)
    peak = memory.peak * image.numel() / window.numel()
    for free, windows in ((1.05, False), (0.95, True)):
        enough = int(free * sliding.WORKSPACE * peak / sliding.MEMORY_SHARE)
        monkeypatch.setattr(sliding, "free_bytes", lambda device, enough=enough: enough)
        _, note = predict_large(Blob(), image, (8, 8, 8), device=CPU, name="c7")
        assert (f"24 x 20 x 22 voxels in {5 * 4 * 5} windows of 8 x 8 x 8" in note) == windows
    assert caplog.records[-1].levelno == logging.WARNING
    assert caplog.messages[-1].startswith(f"case c7: {note} (")
    little_memory(monkeypatch, free=1000)
    with pytest.raises(RunError, match=r"case c7: 24 x 20 x 22 voxels of 2 channels need .* are free\. Cut"):
        predict_large(Blob(), image, (8, 8, 8), device=CPU, name="c7")


def test_tensors_are_counted_as_long_as_they_live() -> None:
    image = torch.rand(1, 1, 10, 10, 10)  # 4000 bytes
    with TensorMemory() as memory:
        a = image * 2
        b = a + a
        del a
        c = b.relu_()  # in place: nothing new
        d = c.view(-1)
        del b, c
        e = torch.cat([d, d])
        del d, e
    assert memory.peak == 4000 + 8000
    with torch.inference_mode(), TensorMemory() as again:
        nn.Sequential(nn.Conv3d(1, 4, 1), nn.ReLU())(image)
    assert again.peak == pytest.approx(2 * 16000, abs=100)
