"""The built-in models: CIFAR-style residual networks (He et al., arXiv 1512.03385, section 4.2) with 1x1 shortcuts."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor, nn


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around a shortcut: (N, inputs, H, W) to (N, outputs, H/stride, W/stride)."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.relu1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.relu2 = nn.ReLU(inplace=True)
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu1(self.bn1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


class CifarResNet(nn.Module):
    """Three stages of 16, 32 and 64 channels with ``blocks`` residual blocks each; depth 6 * blocks + 2."""

    def __init__(self, blocks: int, num_classes: int = 10) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(inplace=True))
        widths = (16, 16, 32, 64)
        self.stages = nn.Sequential(
            *(
                nn.Sequential(
                    ResidualBlock(widths[i], widths[i + 1], 1 if i == 0 else 2),
                    *(ResidualBlock(widths[i + 1], widths[i + 1], 1) for _ in range(blocks - 1)),
                )
                for i in range(3)
            )
        )
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.head = nn.Linear(64, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.head(self.pool(self.stages(self.stem(x))).flatten(1))
        return y


def _resnet(blocks: int, *, num_classes: int = 10) -> nn.Module:
    return CifarResNet(blocks, num_classes)


MODELS: dict[str, Callable[..., nn.Module]] = {
    f"resnet{6 * blocks + 2}": partial(_resnet, blocks) for blocks in (3, 5, 7, 9)
}
