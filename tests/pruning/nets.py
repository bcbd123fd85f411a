"""Small networks with every trait that matters to pruning, and a way to make their weights far from trivial."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """relu(x + conv-bn-relu-conv-bn(x)); the attribute names are unlike anybody's."""

    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.a, self.an = nn.Conv2d(channels, inner, 3, padding=1, bias=False), nn.BatchNorm2d(inner)
        self.b, self.bn = nn.Conv2d(inner, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn(self.b(F.relu(self.an(self.a(x)))))
        y += x
        return F.relu(y)


class Tiny(nn.Module):
    """stem (3 -> 32), blocks of 32 channels with an inner width of 48, global mean, linear to 5 classes."""

    def __init__(self, blocks: int = 4, channels: int = 32, inner: int = 48) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, channels, 3, 2, 1), nn.BatchNorm2d(channels)
        self.body = nn.Sequential(*[Residual(channels, inner) for _ in range(blocks)])
        self.head = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.body(F.relu(self.norm(self.stem(x))))
        return self.head(x.mean((2, 3)))


class Squeeze(nn.Module):
    def __init__(self, channels: int, inner: int) -> None:
        super().__init__()
        self.down, self.up = nn.Conv2d(channels, inner, 1), nn.Conv2d(inner, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        return x * F.hardsigmoid(self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1)))))


class Mixed(nn.Module):
    """Depthwise with squeeze, a grouped convolution, concatenation, PReLU, layer scale, GroupNorm, flatten."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.act = nn.Conv2d(3, 24, 3, 2, 1), nn.PReLU(24)
        self.expand, self.expand_norm = nn.Conv2d(24, 40, 1, bias=False), nn.BatchNorm2d(40)
        self.depth, self.squeeze = nn.Conv2d(40, 40, 3, 1, 1, groups=40), Squeeze(40, 16)
        self.project, self.gamma = nn.Conv2d(40, 24, 1), nn.Parameter(torch.full((1, 24, 1, 1), 1e-6))
        self.grouped, self.group_norm = nn.Conv2d(48, 64, 3, 2, 1, groups=2), nn.GroupNorm(4, 64)
        self.wide = nn.Linear(64 * 4, 32)
        self.head = nn.Linear(32, 7)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        x = self.act(self.stem(x))
        y = F.relu6(self.expand_norm(self.expand(x)))
        y = self.project(self.squeeze(self.depth(y))) * self.gamma + x
        z = self.group_norm(self.grouped(torch.cat([x, y], 1)))
        z = F.adaptive_avg_pool2d(z, 2).flatten(1)
        return {"logits": self.head(F.relu(self.wide(z)))}


class Cardinal(nn.Module):
    """Grouped convolutions that can lose whole groups: in a residual block with a squeeze, alone, and transposed."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.down, self.norm = nn.Conv2d(3, 32, 3, 2, 1), nn.Conv2d(32, 48, 1), nn.BatchNorm2d(48)
        self.grouped, self.squeeze = nn.Conv2d(48, 96, 3, 1, 1, groups=12, bias=False), Squeeze(96, 16)
        self.up = nn.Conv2d(96, 32, 1)
        self.alone = nn.Conv2d(32, 64, 3, 2, 1, groups=8)
        self.larger = nn.ConvTranspose2d(64, 32, 2, 2, groups=16)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = x + self.up(self.squeeze(F.relu(self.grouped(F.relu(self.norm(self.down(x)))))))
        return self.head(F.relu(self.larger(F.relu(self.alone(x)))).mean((2, 3)))


class Rolled(nn.Module):
    """A grouped convolution beside a shortcut, two channels off: all of its groups are tied to each other."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.grouped = nn.Conv2d(3, 64, 3, 2, 1), nn.Conv2d(64, 64, 3, 1, 1, groups=16)
        self.head = nn.Linear(64, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        return self.head(F.relu(x + self.grouped(torch.cat([x[:, 2:], x[:, :2]], 1))).mean((2, 3)))


class _Padded(nn.Module):
    """Parameter-free shortcut: every second pixel, zeros for the channels that are missing."""

    def __init__(self, extra: int) -> None:
        super().__init__()
        self.pad = (0, 0, 0, 0, extra // 2, extra - extra // 2)

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], self.pad)


class OptionA(nn.Module):
    """Two stages joined by a zero-padded shortcut, which torch-pruning couples channel i to i instead of i + 8."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3, 1, 1)
        self.first = Residual(16, 32)
        self.down, self.mid, self.up = nn.Conv2d(16, 32, 3, 2, 1), nn.BatchNorm2d(32), nn.Conv2d(32, 32, 3, 1, 1)
        self.shortcut = _Padded(16)
        self.second = Residual(32, 32)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(F.relu(self.stem(x)))
        x = F.relu(self.up(F.relu(self.mid(self.down(x)))) + self.shortcut(x))
        return self.head(self.second(x).mean((2, 3)))


class Shifted(nn.Module):
    """A channel roll that a tracer takes for an element-wise step: shapes always fit, the coupling is wrong."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 32, 3)
        self.head = nn.Linear(32, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.a(x))
        x = x[..., 1:-1, 1:-1] + self.b(x).roll(3, 1)
        return self.head(F.relu(self.c(x)).mean((2, 3)))


def shaken(model: nn.Module, seed: int = 0) -> nn.Module:
    """``model`` in eval mode with norms, biases and statistics that are far from their initial 1 and 0."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if not tensor.is_floating_point():
                continue
            noise = torch.rand(tensor.shape, generator=generator)
            if tensor.dim() < 2 or min(tensor.shape[1:]) == max(tensor.shape[2:], default=0) == 1 == tensor.shape[0]:
                tensor.copy_(0.5 + noise if "var" in name or name.endswith(("weight", "gamma")) else noise - 0.5)
            else:
                tensor.copy_((noise - 0.5) * (12.0 / tensor[0].numel()) ** 0.5 * 1.4)
    return model.eval()
