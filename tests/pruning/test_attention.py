from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from nets import Tiny
from torch import Tensor, nn

from mobileprune.errors import UsageError
from mobileprune.pruning.anatomy import Anatomy


class Attends(nn.Module):
    """A patch embedding, ``convolutions`` residual ones, and ``attentions`` layers of self-attention."""

    def __init__(self, convolutions: int, attentions: int, fused: bool) -> None:
        super().__init__()
        self.embed, self.fused = nn.Conv2d(3, 16, 8, 8), fused
        self.convolutions = nn.ModuleList([nn.Conv2d(16, 16, 3, padding=1) for _ in range(convolutions)])
        self.attentions = nn.ModuleList([nn.Linear(16, 48) for _ in range(attentions)])
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.embed(x)
        for convolution in self.convolutions:
            x = x + F.relu(convolution(x))
        x = x.flatten(2).transpose(1, 2)
        for layer in self.attentions:
            q, k, v = layer(x).chunk(3, -1)
            if self.fused:
                x = x + F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
            else:
                x = x + torch.bmm(torch.bmm(q, k.transpose(1, 2)).softmax(-1), v)
        return self.head(x.mean(1))


@pytest.mark.parametrize("fused", [True, False])
def test_a_transformer_is_refused_in_words_and_a_hybrid_is_not(fused: bool) -> None:
    x = torch.randn(1, 3, 32, 32)
    with pytest.raises(UsageError, match=r"transformer \(4 attentions, 1 convolutions\)"):
        Anatomy.of(Attends(0, 4, fused), x)
    Anatomy.of(Attends(4, 2, fused), x)
    Anatomy.of(Tiny(1), x)


class Auxiliary(Tiny):
    """An auxiliary head that runs in training alone and needs 12 x 12 pixels or more."""

    def __init__(self) -> None:
        super().__init__(2)
        self.auxiliary = nn.Conv2d(32, 5, 12)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        extra = self.auxiliary(x).mean((2, 3)) if self.training else 0.0
        return self.head(self.body(x).mean((2, 3))) + extra


def test_a_size_at_which_training_fails_is_not_taken() -> None:
    model = Auxiliary()
    model.stem.stride = (1, 1)
    anatomy = Anatomy.of(model, torch.randn(1, 3, 32, 32))
    assert anatomy.sizes == tuple((s, s) for s in (12, 16, 20, 24, 28, 32))
    assert any("not at 8x8: in training it fails" in note for note in anatomy.notes)
    assert model.training and not any(m._forward_hooks for m in model.modules())
