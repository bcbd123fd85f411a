"""Networks as users write them: what tracers and pruners trip over, for the zoo."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Conv(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int = 1) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu_(self.norm(self.conv(x)))


class Odd(nn.Module):
    """ModuleList loop, lambda, in-place addition, functional pooling, dictionary with two heads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Conv(3, 32, 2)
        self.loop = nn.ModuleList([nn.Sequential(Conv(32, 48), nn.Conv2d(48, 32, 1)) for _ in range(4)])
        self.pool: Callable[[Tensor], Tensor] = lambda x: F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1)
        self.fine, self.coarse = nn.Linear(32, 20), nn.Linear(32, 5)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = F.max_pool2d(self.stem(x), 2)
        for layer in self.loop:
            y = layer(x)
            y += x
            x = y
        z = self.pool(x)
        return {"fine": self.fine(z), "coarse": self.coarse(z)}


class OddBlocks(nn.Module):
    """Residual modules, the same one called twice, and two convolutions that share a weight."""

    class Block(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = Conv(32, 64), nn.Conv2d(64, 32, 1)

        def forward(self, x: Tensor) -> Tensor:
            return x + self.down(self.up(x))

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.again = Conv(3, 32, 4), OddBlocks.Block()
        self.body = nn.ModuleList([OddBlocks.Block() for _ in range(5)])
        self.body.get_submodule("1.down").weight = self.body.get_submodule("2.down").weight
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.again(self.again(self.stem(x)))
        for block in self.body:
            x = block(x)
        return cast(Tensor, self.head(x.mean([2, 3])))


class TwoInputs(nn.Module):
    """Two images in, two heads out; concatenation, functional pooling, a dictionary of layers, sums in place."""

    def __init__(self) -> None:
        super().__init__()
        self.large, self.small = Conv(3, 32, 2), Conv(3, 32)
        self.body = nn.ModuleDict({f"block{i}": nn.Sequential(Conv(64, 48), nn.Conv2d(48, 64, 1)) for i in range(3)})
        self.fine, self.coarse = nn.Linear(64, 20), nn.Linear(64, 5)

    def forward(self, x: Tensor, thumbnail: Tensor) -> tuple[Tensor, Tensor]:
        y = torch.cat([F.avg_pool2d(self.large(x), 2), self.small(F.interpolate(thumbnail, scale_factor=0.25))], 1)
        for block in self.body.values():
            z = block(y)
            z += y
            y = z.relu_()
        z = F.adaptive_max_pool2d(y, 1).flatten(1)
        return self.fine(z), self.coarse(z)


ODD: dict[str, Callable[[], nn.Module]] = {"loop_dict": Odd, "shared_twice": OddBlocks, "two_inputs": TwoInputs}
