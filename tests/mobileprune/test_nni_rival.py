"""What NNI left of a network, put into the network; NNI itself has an environment of its own."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
import nni_rival


class Uneven(nn.Conv2d):
    """Padded as TensorFlow's SAME pads at stride 2: one pixel more at the end."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(nn.functional.pad(input, (0, 1, 0, 1)))


def net(channels: int, plain: bool = False) -> nn.Sequential:
    first = nn.Conv2d(3, channels, 4, 2, 1) if plain else Uneven(3, channels, 3, 2)
    depthwise = nn.Conv2d(channels, channels, 3, groups=channels)
    tail = [nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, 5)]
    return nn.Sequential(first, nn.BatchNorm2d(channels), depthwise, *tail).eval()


def test_a_network_is_given_the_channels_that_nni_left_it(tmp_path: Path) -> None:
    """NNI's kernels are wider by zeros where the padding is uneven; the others are taken as they are."""
    cut = net(4, plain=True)
    torch.nn.init.normal_(cut[1].running_mean)
    with torch.no_grad():
        cut[0].weight[:, :, 0] = 0
        cut[0].weight[:, :, :, 0] = 0
    groups = {f"{i}.groups": np.array(cut[i].groups) for i in (0, 2)}
    state = {name: value.numpy() for name, value in cut.state_dict().items()}
    np.savez(nni_rival.state_at(tmp_path, 0.5), **state, **groups)
    base = net(8)
    found = nni_rival.rebuilt(base, tmp_path, 0.5).eval()
    images = torch.randn(2, 3, 8, 8)
    assert torch.allclose(found(images), cut(images), atol=1e-6)
    assert (found[0].kernel_size, found[0].out_channels, found[2].groups, found[6].in_features) == ((3, 3), 4, 4, 4)
    assert base[0].out_channels == 8


def test_a_grouped_convolution_keeps_the_groups_that_nni_left_it(tmp_path: Path) -> None:
    for left in (4, 2):  # of four groups of two channels: all, each with one; two, whole
        cut = nn.Conv2d(4, 4, 3, groups=left)
        state = {name: value.numpy() for name, value in cut.state_dict().items()}
        state["groups"] = np.array(left)
        np.savez(nni_rival.state_at(tmp_path, 0.5), **{f"0.{name}": value for name, value in state.items()})
        found = nni_rival.rebuilt(nn.Sequential(nn.Conv2d(8, 8, 3, groups=4)), tmp_path, 0.5)[0]
        images = torch.randn(2, 4, 8, 8)
        assert torch.equal(found(images), cut(images))
        assert (found.groups, found.in_channels, found.out_channels) == (left, 4, 4)


def test_a_network_that_nni_cannot_make_is_left_out_with_its_reason(tmp_path: Path) -> None:
    nni_rival.state_at(tmp_path, 0.5).with_suffix(".txt").write_text("KeyError: 'add_1'")
    with pytest.raises(ValueError, match="KeyError: 'add_1'"):
        nni_rival.rebuilt(net(8), tmp_path, 0.5)
    with pytest.raises(ValueError, match="NNI's environment has no built-in"):
        nni_rival.prune(net(8), {"library": "built-in", "name": "x", "arguments": {}}, 8, [0.25], tmp_path)
    nni_rival.prune(net(8), {"library": "x.py"}, 8, [0.5], tmp_path)  # tried already
    assert not (tmp_path / "request.json").exists()
