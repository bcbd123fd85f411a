from __future__ import annotations

import pytest
import torch
from conftest import network
from nets import Mixed, OptionA, Tiny
from torch import Tensor, nn

from mobileprune.pruning.blocks import find_blocks
from mobileprune.pruning.cost import trace
from mobileprune.pruning.couplings import find_couplings
from mobileprune.pruning.layers import axes_of, outline
from mobileprune.pruning.listed import find_listed_layers
from mobileprune.pruning.plain import find_plain_layers
from mobileprune.pruning.shadow import shadow_of

NETS = {"tiny": lambda: Tiny(3), "mixed": Mixed, "padded": OptionA}
NAMES = [
    *NETS, "torchvision:vgg11_bn", "torchvision:densenet121", "torchvision:mobilenet_v3_small", "torchvision:googlenet",
    "torchvision:convnext_tiny", "timm:regnetx_002", "timm:ghostnet_100",
]  # fmt: skip


def both(name: str) -> tuple[nn.Module, nn.Module, Tensor, Tensor]:
    bench = outline(NETS[name]() if name in NETS else network(name)).eval()
    example = torch.randn(1, 3, 64, 64)
    shadow, shapes, _ = shadow_of(bench, example)
    assert all(p.is_meta for p in shadow.parameters()) and isinstance(shapes, Tensor) and shapes.is_meta
    return bench, shadow, example, shapes


@pytest.mark.parametrize("name", NAMES)
def test_what_is_found_on_the_shadow_is_what_the_network_has(name: str) -> None:
    bench, shadow, example, shapes = both(name)
    real, seen = trace(bench, example), trace(shadow, shapes)
    assert seen == real and seen.shapes.items() <= real.shapes.items()  # what a layer holds inside does not run
    assert all(axes_of(bench.get_submodule(path)) == {} for path in real.shapes.keys() - seen.shapes.keys())
    assert find_blocks(shadow, shapes) == find_blocks(bench, example)
    assert find_plain_layers(shadow, shapes) == find_plain_layers(bench, example)
    of_shadow, of_bench = find_couplings(shadow, shapes), find_couplings(bench, example)
    assert of_shadow.held == of_bench.held
    for one, other in zip(of_shadow.groups, of_bench.groups, strict=True):
        assert one.name == other.name and one.members.keys() == other.members.keys()
        assert all((one.members[axis] == other.members[axis]).all() for axis in one.members)
    assert find_listed_layers(shadow, shapes, of_shadow.groups) == find_listed_layers(bench, example, of_bench.groups)


def test_a_network_without_a_shadow_is_analysed_as_it_is() -> None:
    class Looks(Tiny):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x / float(x.abs().max()))

    model, example = Looks(2), torch.ones(1, 3, 32, 32)
    shadow, given, found = shadow_of(model, example)
    assert given is example and found == trace(model.eval(), example)
    assert shadow is not model and shadow.stem.weight is model.stem.weight and not shadow.training


@pytest.mark.parametrize(
    "layer",
    [
        nn.Conv2d(4, 6, 3, 2, 1),
        nn.Conv2d(4, 6, (3, 5), (1, 3), (0, 2), (2, 1)),
        nn.Conv2d(4, 8, 3, groups=2),
        nn.Conv2d(4, 6, 3, padding="same"),
        nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"),
        nn.ConvTranspose2d(4, 6, 3, 2),
        nn.BatchNorm2d(4),
        nn.Hardswish(),
    ],
)
def test_a_stand_in_gives_the_shape_of_its_layer_and_refuses_what_that_refuses(layer: nn.Module) -> None:
    x = torch.randn(2, 4, 11, 13)
    wanted = layer(x).shape
    shadow, _, _ = shadow_of(nn.Sequential(layer).eval(), x)
    assert shadow(x.to("meta")).shape == wanted
    if not isinstance(layer, nn.Hardswish | nn.ConvTranspose2d):  # torch itself takes any shape for the latter
        with pytest.raises((ValueError, RuntimeError)):
            shadow(torch.empty(2, 5, 11, 13, device="meta"))
    if type(layer) is nn.Conv2d and layer.padding == (0, 0):
        with pytest.raises((ValueError, RuntimeError)):
            shadow(torch.empty(2, 4, 2, 2, device="meta"))
