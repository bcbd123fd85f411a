"""Small nets with the operators that CNNs for phones are made of, exported once per format."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from exporters import Artifact, InputSpec, export, exporter, suffix

torch.set_num_threads(1)


class Mobile(nn.Module):
    """Strided conv + BN + relu6, depthwise, residual add, sigmoid gating, adaptive average pool."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1, bias=False), nn.BatchNorm2d(8), nn.ReLU6())
        self.depthwise = nn.Sequential(
            nn.Conv2d(8, 8, 3, 1, 1, groups=8, bias=False), nn.BatchNorm2d(8), nn.Hardswish()
        )
        self.squeeze, self.expand = nn.Conv2d(8, 4, 1), nn.Conv2d(4, 8, 1)
        self.pool, self.classify = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = x + self.depthwise(x)
        x = x * torch.sigmoid(self.expand(F.relu(self.squeeze(self.pool(x)))))
        return self.classify(self.pool(x).flatten(1))


class Cifar(nn.Module):
    """A zero-padded, sliced shortcut (a closure, not a module), asymmetrical padding, pooling sized by the input."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 6, 3, 1, 1), nn.Conv2d(6, 12, 3, 2, 0)
        self.norm, self.classify = nn.BatchNorm2d(12), nn.Linear(12, 5)
        self.shortcut = lambda x: F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.first(x))
        x = F.relu(self.norm(self.second(F.pad(x, (0, 1, 0, 1)))) + self.shortcut(x))
        return self.classify(F.avg_pool2d(x, x.shape[3]).flatten(1))


class SamePadded(nn.Module):
    """Halves three times, padded as TensorFlow's SAME pads: as the size that it is given asks for."""

    def __init__(self) -> None:
        super().__init__()
        self.convs = nn.ModuleList(nn.Conv2d(i, o, 3, 2) for i, o in ((3, 8), (8, 8), (8, 8)))
        self.classify = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        for conv in self.convs:
            total = (-(-x.shape[3] // 2) - 1) * 2 + 3 - x.shape[3]
            x = conv(F.pad(x, (total // 2, total - total // 2) * 2))
        return self.classify(x.mean((2, 3)))


class OddPool(nn.Module):
    """Pools 16 x 16 to 5 x 5, which the TorchScript exporter cannot write."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.classify = nn.Conv2d(3, 4, 3), nn.Linear(100, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(F.adaptive_avg_pool2d(self.conv(x), 5).flatten(1))


class Wide(nn.Sequential):
    """A net of 0.3 MB."""

    def __init__(self) -> None:
        super().__init__(nn.Flatten(), nn.Linear(768, 100), nn.ReLU(), nn.Linear(100, 5))


NETS = {"mobile": Mobile, "cifar": Cifar, "oddpool": OddPool, "same": SamePadded, "wide": Wide}
SPEC = InputSpec(3, 16, 16, mean=(0.5, 0.4, 0.3), std=(0.2, 0.2, 0.3))


def make_net(name: str) -> nn.Module:
    """A net with fixed weights; the BN statistics are not the trivial ones."""
    torch.manual_seed(7)
    net = NETS[name]()
    with torch.no_grad():
        for norm in (part for part in net.modules() if isinstance(part, nn.BatchNorm2d)):
            norm.running_mean.uniform_(-0.2, 0.2)
            norm.running_var.uniform_(0.5, 1.5)
    return net.eval()


def calibration(count: int = 32) -> np.ndarray:
    """Images to calibrate on: other ones than those that the tests run."""
    return np.random.default_rng(5).standard_normal((count, 3, 16, 16)).astype(np.float32)


def export_net(net: str, path: Path, kind: str, precision: str = "float32") -> Artifact:
    needed = precision in exporter(kind).calibrated
    pictures = calibration() if needed else None
    return export(make_net(net), SPEC, path, format=kind, precision=precision, calibration=pictures)


class Shelf:
    """Exports each net once per format and precision for the whole session; tests copy the file that they change."""

    def __init__(self, folder: Path) -> None:
        self.folder, self._made = folder, dict[tuple[str, str, str], Artifact]()

    def get(self, net: str, kind: str, precision: str = "float32") -> Artifact:
        key = (net, kind, precision)
        if key not in self._made:
            self._made[key] = export_net(net, self.folder / f"{net}-{precision}{suffix(kind)}", kind, precision)
        return self._made[key]
