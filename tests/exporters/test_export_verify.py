"""Parity, accuracy and the gate, against answers known beforehand."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from small_nets import Shelf, make_net

from exporters import Artifact, ExportError, verify
from exporters.verify import Parity, accuracy, check, open_runtime, parity, torch_logits


@pytest.fixture
def copied(shelf: Shelf, format_name: str, tmp_path: Path) -> Artifact:
    artifact = shelf.get("mobile", format_name)
    path = tmp_path / artifact.path.name
    shutil.copy(artifact.path, path)
    return replace(artifact, path=path)


def test_parity_measures_a_known_difference(copied: Artifact, images: np.ndarray) -> None:
    net = make_net("mobile")
    with torch.no_grad():
        net.classify.bias += torch.tensor([0.5, 0.0, 0.0, 0.0, 0.0])
    found = parity(copied.path, net, images)
    assert found.max_abs == pytest.approx(0.5, abs=1e-5)
    assert found.mean_abs == pytest.approx(0.1, abs=1e-5)
    assert not found.passes()
    with torch.no_grad():
        net.classify.bias += torch.tensor([0.0, 0.0, 0.0, 0.0, 100.0])
    assert set(torch_logits(net, images).argmax(1)) == {4}
    was = torch_logits(make_net("mobile"), images).argmax(1)
    assert parity(copied.path, net, images).top1_agreement == pytest.approx((was == 4).mean())


def test_gate_keeps_a_good_file_and_moves_a_bad_one(copied: Artifact, images: np.ndarray) -> None:
    assert check(copied, make_net("mobile"), images).passes()
    other = make_net("mobile")
    with torch.no_grad():
        other.classify.weight *= 2
    aside = copied.path.parent / "rejected" / copied.path.name
    with pytest.raises(ExportError, match=r"refused: its logits differ .* kept as .*/rejected/"):
        check(copied, other, images)
    assert not copied.path.exists() and aside.is_file()
    said = json.loads(aside.with_name(aside.name + ".json").read_text())
    assert said["reason"].startswith("its logits differ") and said["found"]["parity"]["samples"] == 7
    assert len(list(aside.parent.iterdir())) == 2


def test_gate_moves_a_damaged_file(copied: Artifact, images: np.ndarray) -> None:
    copied.path.write_bytes(copied.path.read_bytes()[:64])
    with pytest.raises(ExportError, match="refused: cannot load") as caught:
        check(copied, make_net("mobile"), images)
    assert "\n" not in str(caught.value) and not copied.path.exists()


def test_missing_file(copied: Artifact, images: np.ndarray) -> None:
    copied.path.unlink()
    with pytest.raises(ExportError, match=r"refused: cannot read .* no such file"):
        check(copied, make_net("mobile"), images)


def test_nan_never_passes() -> None:
    assert not Parity(float("nan"), 0.0, 1.0, 1, 1.0).passes()
    assert Parity(0.0, 0.0, 1.0, 1, 1.0).passes(0.0)
    assert Parity(9e-4, 0.0, 1.0, 1, 10.0).passes(1e-4) and not Parity(9e-4, 0.0, 1.0, 1, 0.1).passes(1e-4)


def test_accuracy_of_the_file(copied: Artifact, images: np.ndarray) -> None:
    best = torch_logits(make_net("mobile"), images).argmax(1)
    assert accuracy(copied.path, images, best) == 1.0
    wrong = (best + 1) % 5
    assert accuracy(copied.path, images, wrong) == 0.0
    assert accuracy(copied.path, images, np.where(np.arange(7) < 3, best, wrong)) == pytest.approx(3 / 7)
    with pytest.raises(ExportError, match="one label per image"):
        accuracy(copied.path, images, best[:3])


def test_accuracy_takes_no_more_images_at_once_than_it_needs(
    copied: Artifact, images: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Counted:
        """Images that are made when they are asked for."""

        def __init__(self) -> None:
            self.taken: list[int] = []

        def __len__(self) -> int:
            return len(images)

        def __getitem__(self, some: slice, /) -> np.ndarray:
            self.taken.append(len(images[some]))
            return images[some]

    labels = torch_logits(make_net("mobile"), images).argmax(1) * (np.arange(7) < 3)
    at_once = accuracy(copied.path, images, labels)
    monkeypatch.setattr(verify, "_AT_ONCE", 3)
    counted = Counted()
    assert accuracy(copied.path, counted, labels) == at_once
    assert counted.taken == [3, 3, 1]
    with pytest.raises(ExportError, match="takes images of 3x16x16"):
        accuracy(copied.path, images[:0], labels[:0])


def test_images_of_another_size(copied: Artifact, images: np.ndarray) -> None:
    runtime = open_runtime(copied.path)
    assert (
        runtime.image == (3, 16, 16)
        and runtime.batch == 1
        and runtime.name.split()[0] in ("onnxruntime", "litert", "executorch")
    )
    for bad in (images[:, :, :8], images[0], images[:0], images.transpose(0, 2, 3, 1)):
        with pytest.raises(ExportError, match="takes images of 3x16x16"):
            runtime(bad)


def test_other_files(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="must end in"):
        open_runtime(tmp_path / "x.bin")


def test_torch_logits_put_the_mode_back(images: np.ndarray) -> None:
    net = make_net("mobile").train()
    net.stem.eval()
    mean = net.depthwise[1].running_mean.clone()
    batched, single = torch_logits(net, images, batch=2), torch_logits(net, images, batch=64)
    assert np.allclose(batched, single, atol=1e-6)
    assert net.training and not net.stem[1].training and torch.equal(mean, net.depthwise[1].running_mean)
