"""Knowledge distillation (Hinton et al., arXiv 1503.02531): the pruned network also learns the base's soft answers."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def distillation_loss(student: Tensor, teacher: Tensor, temperature: float = 3.0) -> Tensor:
    """T^2 * KL(teacher || student) of logits (N, classes) softened by T, mean over the batch."""
    soft_student = F.log_softmax(student / temperature, dim=1)
    soft_teacher = F.log_softmax(teacher / temperature, dim=1)
    return F.kl_div(soft_student, soft_teacher, reduction="batchmean", log_target=True) * temperature**2
