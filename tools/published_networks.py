"""The networks of the published latency tables, built anew from their papers to count their work.

`build(name)` gives an untrained module and the side of its square input, for a name like "mobilenet_v2-0.75-192":
architecture, width multiplier, side in pixels. The mobile families are ours, from the tables of their papers, since the
published grids need every width; the large ones come from torchvision and timm. Paddings are symmetric where TensorFlow
pads "SAME": the sizes of all tensors, and so the work, are the same.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

CLASSES = 1001  # TensorFlow's ImageNet has a class for "background"


def divisible(channels: float, by: int = 8) -> int:
    """Channels rounded to a multiple of `by`, but not by more than 10 % downwards (Sandler et al. 2018, their code)."""
    rounded = max(by, int(channels + by / 2) // by * by)
    return rounded + by if rounded < 0.9 * channels else rounded


class Stage(NamedTuple):
    """Blocks of the same kind in a row. expand: ratio, or channels where `absolute`; squeeze: channels of the gate."""

    expand: float
    kernel: int
    out: int
    repeats: int
    stride: int
    squeeze: float = 0.0
    act: str = "relu6"
    absolute: bool = False


_ACTS: dict[str, Callable[[], nn.Module]] = {
    "relu": nn.ReLU,
    "relu6": nn.ReLU6,
    "hswish": nn.Hardswish,
    "swish": nn.SiLU,
    "none": nn.Identity,
}


def _unit(
    inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1, act: str = "relu6"
) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), _ACTS[act]())


class Gate(nn.Module):
    """Squeeze-and-excitation (Hu et al. 2018) with 1x1 convolutions; hard: MobileNetV3's piecewise linear sigmoid."""

    def __init__(self, channels: int, squeezed: int, hard: bool) -> None:
        super().__init__()
        self.down, self.up, self.hard = nn.Conv2d(channels, squeezed, 1), nn.Conv2d(squeezed, channels, 1), hard

    def forward(self, x: Tensor) -> Tensor:
        gate = self.up(F.relu(self.down(F.adaptive_avg_pool2d(x, 1))))
        return x * (F.hardsigmoid(gate) if self.hard else gate.sigmoid())


class Block(nn.Module):
    """The inverted bottleneck of Sandler et al. 2018: expand (1x1), depthwise, gate, project (1x1), shortcut."""

    def __init__(self, inputs: int, hidden: int, outputs: int, stage: Stage, stride: int, squeezed: int) -> None:
        super().__init__()
        steps = [_unit(inputs, hidden, 1, act=stage.act)] if hidden != inputs else []
        steps.append(_unit(hidden, hidden, stage.kernel, stride, hidden, stage.act))
        if squeezed:
            steps.append(nn.Sequential(Gate(hidden, squeezed, hard=stage.squeeze > 1)))
        self.body = nn.Sequential(*steps, _unit(hidden, outputs, 1, act="none"))
        self.shortcut = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x) if self.shortcut else self.body(x)


class MobileNet(nn.Module):
    """Stem, stages of inverted bottlenecks, 1x1 head, pooling, an optional hidden layer, classifier."""

    def __init__(
        self,
        stages: list[Stage],
        stem: int,
        head: int,
        *,
        width: float = 1.0,
        act: str = "relu6",
        hidden: int = 0,
        fixed_ends: bool = False,
        fixed_head: bool = True,
    ) -> None:
        """fixed_ends: the stem keeps its width (EfficientNet-Lite); fixed_head: the head is not made narrower."""
        super().__init__()
        channels = stem if fixed_ends else divisible(stem * width)
        steps: list[nn.Module] = [_unit(3, channels, 3, 2, act=act)]
        for stage in stages:
            for place in range(stage.repeats):
                outputs = divisible(stage.out * width)
                inner = divisible(stage.expand * width) if stage.absolute else round(channels * stage.expand)
                squeezed = _squeezed(stage, channels, inner)
                steps.append(Block(channels, inner, outputs, stage, stage.stride if place == 0 else 1, squeezed))
                channels = outputs
        ending = head if fixed_head else divisible(head * width)
        self.features = nn.Sequential(*steps, _unit(channels, ending, 1, act=act))
        classifier: list[nn.Module] = [nn.AdaptiveAvgPool2d(1)]
        if hidden:
            classifier += [nn.Conv2d(ending, hidden, 1), _ACTS[act]()]
        self.classifier = nn.Sequential(*classifier, nn.Flatten(), nn.Linear(hidden or ending, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def _squeezed(stage: Stage, inputs: int, inner: int) -> int:
    """Channels of the gate: a share of the block's input (MnasNet, below 1) or of its inside (MobileNetV3, 1 / n)."""
    if not stage.squeeze:
        return 0
    return max(1, int(inputs * stage.squeeze)) if stage.squeeze < 1 else divisible(inner / stage.squeeze)


class MobileNetV1(nn.Module):
    """Howard et al. 2017, table 1."""

    def __init__(self, width: float) -> None:
        super().__init__()
        plan = [(64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), *[(512, 1)] * 5, (1024, 2), (1024, 1)]
        channels = int(32 * width)
        steps = [_unit(3, channels, 3, 2)]
        for full, stride in plan:
            outputs = int(full * width)
            steps += [_unit(channels, channels, 3, stride, channels), _unit(channels, outputs, 1)]
            channels = outputs
        pool = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
        self.layers = nn.Sequential(*steps, *pool, nn.Linear(channels, CLASSES))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def _mobilenet_v2(width: float) -> nn.Module:
    """Sandler et al. 2018, table 2; the head grows with widths above 1 only."""
    plan = [(1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1)]
    stages = [Stage(expand, 3, out, repeats, stride) for expand, out, repeats, stride in plan]
    return MobileNet(stages, 32, 1280, width=width, fixed_head=width <= 1)


# Howard et al. 2019, tables 1 and 2: kernel, expanded channels, channels, gate, activation, stride.
_V3_LARGE = """3 16 16 - R 1|3 64 24 - R 2|3 72 24 - R 1|5 72 40 S R 2|5 120 40 S R 1|5 120 40 S R 1|3 240 80 - H 2
|3 200 80 - H 1|3 184 80 - H 1|3 184 80 - H 1|3 480 112 S H 1|3 672 112 S H 1|5 672 160 S H 2|5 960 160 S H 1
|5 960 160 S H 1"""
_V3_SMALL = """3 16 16 S R 2|3 72 24 - R 2|3 88 24 - R 1|5 96 40 S H 2|5 240 40 S H 1|5 240 40 S H 1|5 120 48 S H 1
|5 144 48 S H 1|5 288 96 S H 2|5 576 96 S H 1|5 576 96 S H 1"""


def _mobilenet_v3(table: str, head: int, hidden: int, minimal: bool) -> Callable[[float], nn.Module]:
    """minimal: the "minimalistic" variant: 3x3 kernels, ReLU, no gates."""

    def make(width: float) -> nn.Module:
        stages = []
        for row in table.replace("\n", "").split("|"):
            kernel, inner, out, gate, act, stride = row.split()
            squeeze = 4.0 if gate == "S" and not minimal else 0.0
            name = "hswish" if act == "H" and not minimal else "relu"
            size = 3 if minimal else int(kernel)
            stages.append(Stage(int(inner), size, int(out), 1, int(stride), squeeze, name, absolute=True))
        act = "relu" if minimal else "hswish"
        return MobileNet(stages, 16, head, width=width, act=act, hidden=hidden, fixed_head=False)

    return make


def _mnasnet(plan: list[tuple[float, int, int, int, int, float]]) -> Callable[[float], nn.Module]:
    """Tan et al. 2019, figure 7: expansion, kernel, channels, repeats, stride, gate."""

    def make(width: float) -> nn.Module:
        stages = [Stage(*row, act="relu") for row in plan]
        return MobileNet(stages, 32, 1280, width=width, act="relu")

    return make


_MNASNET_B1 = [
    (1.0, 3, 16, 1, 1, 0.0),
    (3.0, 3, 24, 3, 2, 0.0),
    (3.0, 5, 40, 3, 2, 0.0),
    (6.0, 5, 80, 3, 2, 0.0),
    (6.0, 3, 96, 2, 1, 0.0),
    (6.0, 5, 192, 4, 2, 0.0),
    (6.0, 3, 320, 1, 1, 0.0),
]
_MNASNET_A1 = [
    (1.0, 3, 16, 1, 1, 0.0),
    (6.0, 3, 24, 2, 2, 0.0),
    (3.0, 5, 40, 3, 2, 0.25),
    (6.0, 3, 80, 4, 2, 0.0),
    (6.0, 3, 112, 2, 1, 0.25),
    (6.0, 5, 160, 3, 2, 0.25),
    (6.0, 3, 320, 1, 1, 0.0),
]


def _efficientnet_lite(depth: float) -> Callable[[float], nn.Module]:
    """EfficientNet-B0 (Tan & Le 2019, table 1) without gates, with ReLU6, stem and head unscaled (the -Lite edition).

    The depth of the first and the last stage stays as it is.
    """
    plan = [
        (1, 3, 16, 1, 1),
        (6, 3, 24, 2, 2),
        (6, 5, 40, 2, 2),
        (6, 3, 80, 3, 2),
        (6, 5, 112, 3, 1),
        (6, 5, 192, 4, 2),
    ]

    def make(width: float) -> nn.Module:
        stages = [
            Stage(expand, kernel, out, repeats if place == 0 else math.ceil(repeats * depth), stride)
            for place, (expand, kernel, out, repeats, stride) in enumerate(plan)
        ]
        return MobileNet([*stages, Stage(6, 3, 320, 1, 1)], 32, 1280, width=width, fixed_ends=True)

    return make


def _torchvision(name: str, **options: Any) -> Callable[[float], nn.Module]:
    def make(width: float) -> nn.Module:
        from mobileprune._torchvision import import_torchvision

        module: nn.Module = getattr(import_torchvision().models, name)(weights=None, num_classes=CLASSES, **options)
        return module

    return make


def _timm(name: str) -> Callable[[float], nn.Module]:
    def make(width: float) -> nn.Module:
        from mobileprune._torchvision import import_timm

        module: nn.Module = import_timm().create_model(name, pretrained=False, num_classes=CLASSES)
        return module

    return make


def _nasnet_mobile(width: float) -> nn.Module:
    """NASNet-A (4 @ 1056), Zoph et al. 2018: timm's large one, narrower and with two cells fewer per stage."""
    from mobileprune._torchvision import import_timm

    import_timm()
    from timm.models.nasnet import NASNetALarge

    net = NASNetALarge(num_classes=CLASSES, stem_size=32, num_features=1056)
    return _ShortNasNet(net)


class _ShortNasNet(nn.Module):
    def __init__(self, net: Any) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        net = self.net
        stem = net.conv0(x)
        before = net.cell_stem_0(stem)
        now = net.cell_stem_1(stem, before)
        for stage in range(3):
            if stage:
                # The first cell of a stage sees the reduction and the cell two before it, as in the large net.
                reduced = getattr(net, f"reduction_cell_{stage - 1}")(now, before)
                now = reduced
            for place in range(4):
                after = getattr(net, f"cell_{6 * stage + place}")(now, before)
                before, now = now, after
        return net.forward_head(net.act(now))


ARCHITECTURES: dict[str, Callable[[float], nn.Module]] = {
    "mobilenet_v1": MobileNetV1,
    "mobilenet_v2": _mobilenet_v2,
    "mobilenet_v3_large": _mobilenet_v3(_V3_LARGE, 960, 1280, minimal=False),
    "mobilenet_v3_small": _mobilenet_v3(_V3_SMALL, 576, 1024, minimal=False),
    "mobilenet_v3_large_minimal": _mobilenet_v3(_V3_LARGE, 960, 1280, minimal=True),
    "mobilenet_v3_small_minimal": _mobilenet_v3(_V3_SMALL, 576, 1024, minimal=True),
    "mnasnet_b1": _mnasnet(_MNASNET_B1),
    "mnasnet_a1": _mnasnet(_MNASNET_A1),
    **{f"efficientnet_lite{place}": _efficientnet_lite(depth) for place, depth in enumerate((1.0, 1.1, 1.2, 1.4, 1.8))},
    "resnet50": _torchvision("resnet50"),
    "resnet_v2_101": _timm("resnetv2_101"),
    "densenet121": _torchvision("densenet121"),
    "squeezenet": _torchvision("squeezenet1_0"),
    "inception_v3": _torchvision("inception_v3", aux_logits=False, init_weights=False),
    "inception_v4": _timm("inception_v4"),
    "inception_resnet_v2": _timm("inception_resnet_v2"),
    "nasnet_large": _timm("nasnetalarge"),
    "nasnet_mobile": _nasnet_mobile,
}


def build(name: str) -> tuple[nn.Module, int]:
    """The network called "architecture-width-side", in eval mode, and its side; raises KeyError or ValueError."""
    architecture, width, side = name.rsplit("-", 2)
    return ARCHITECTURES[architecture](float(width)).eval(), int(side)
