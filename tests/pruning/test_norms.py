from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from nets import Tiny, shaken
from torch import Tensor, nn

from mobileprune.errors import UsageError
from mobileprune.pruning.norms import reestimate_norms
from mobileprune.pruning.prune import prune
from mobileprune.scale import Scale


class Two(nn.Module):
    """Two norms one after the other, a dropout between them, and one that never runs."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.drop, self.second = nn.BatchNorm2d(3), nn.Dropout(0.9), nn.BatchNorm2d(3)
        self.unused = nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(2.0 * self.drop(self.first(x)) + 5.0)


@given(sizes=st.lists(st.integers(2, 6), min_size=1, max_size=4), seed=st.integers(0, 999))
@settings(max_examples=30, deadline=None)
def test_the_statistics_are_means_over_images(sizes: list[int], seed: int) -> None:
    torch.manual_seed(seed)
    norm = nn.BatchNorm2d(3)
    batches = [torch.randn(n, 3, 4, 5) * 3 + 1 for n in sizes]
    assert reestimate_norms(norm, iter(batches)) == sum(sizes)
    flat = torch.cat(batches)
    assert norm.running_mean is not None and norm.running_var is not None
    assert torch.allclose(norm.running_mean, flat.mean((0, 2, 3)), atol=1e-5)
    variances = [n * b.transpose(0, 1).flatten(1).var(1) for n, b in zip(sizes, batches, strict=True)]
    assert torch.allclose(norm.running_var, torch.stack(variances).sum(0) / sum(sizes), rtol=1e-4)


def test_one_batch_makes_evaluation_equal_to_training() -> None:
    model = shaken(Two())
    x = torch.randn(8, 3, 6, 6)
    reestimate_norms(model, [x])
    # The second norm sees 2 * (standardised, scaled and shifted) + 5, up to the unbiased variance n / (n - 1).
    weight, bias = model.first.weight.detach(), model.first.bias.detach()
    assert torch.allclose(model.second.running_mean, 2 * bias + 5, atol=1e-4)
    assert torch.allclose(model.second.running_var, 4 * weight**2 * 288 / 287, rtol=1e-3)


def test_modes_momenta_and_the_rest_are_restored() -> None:
    model = shaken(Two()).train()
    model.drop.eval()
    model.first.momentum, model.second.momentum = 0.3, None
    others = {k: v.clone() for k, v in model.state_dict().items() if "running" not in k and "tracked" not in k}
    unused = {k: v.clone() for k, v in model.unused.state_dict().items()}
    reestimate_norms(model, [torch.randn(4, 3, 5, 5)])
    assert model.training and model.first.training and not model.drop.training
    assert (model.first.momentum, model.second.momentum) == (0.3, None)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in others.items())
    assert all(torch.equal(model.unused.state_dict()[k], v) for k, v in unused.items())
    assert not any(m._forward_hooks for m in model.modules()) and model.first.weight.grad is None


@pytest.mark.parametrize("batches", [[], [torch.randn(1, 3, 1, 1)], [torch.randn(4, 3, 2, 2), torch.randn(1, 3, 1, 1)]])
def test_a_failure_leaves_the_model_as_it_was(batches: list[Tensor]) -> None:
    model = shaken(Two()).train()
    state = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UsageError, match=r"at least (one batch|2 images)"):
        reestimate_norms(model, batches)
    assert all(torch.equal(model.state_dict()[k], v) for k, v in state.items())
    assert all(m.training for m in model.modules())


def test_a_model_without_norms_is_left_alone() -> None:
    assert reestimate_norms(nn.Conv2d(3, 8, 1), iter([torch.randn(2, 3, 4, 4)])) == 0


def test_a_pruned_network_at_a_new_size_is_calibrated() -> None:
    """After depth and resolution were cut, every norm's input has the statistics that it now holds."""
    pruned = prune(shaken(Tiny(4)), Scale(0.5, 0.5, 0.5), torch.randn(1, 3, 32, 32))
    x = torch.randn(16, 3, *pruned.input_size)
    stem = pruned.model.stem(x).detach()
    assert not torch.allclose(pruned.model.norm.running_mean, stem.mean((0, 2, 3)), atol=1e-2)
    reestimate_norms(pruned.model, [x])
    assert torch.allclose(pruned.model.norm.running_mean, stem.mean((0, 2, 3)), atol=1e-4)
    assert torch.isfinite(pruned.model(x)).all()
