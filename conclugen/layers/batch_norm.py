"""Batch norm over the global batch, one set of statistics for each modality, counting present rows only."""

import torch
from torch import Tensor, nn

from conclugen import distributed


class ModalityBatchNorm(nn.Module):
    """Batch norm (Ioffe & Szegedy 2015) of stacked modalities: x (M, B, C), present (M, B) bool -> (M, B, C).

    Training: each modality is normalised by mean and biased variance of its present rows on all ranks. The ranks'
    (count, mean, sum of squared deviations) are merged as in Chan, Golub & LeVeque 1979 after one differentiable
    gather. The running statistics, shared by the modalities, are updated once per modality in order (momentum 0.1,
    unbiased variance), and not at all by a modality with fewer than two rows. Evaluation uses the running statistics.
    Statistics are computed in float32, or float64 for float64 input, whatever autocast says; the output has the input's
    dtype.
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(self, channels: int, eps: float = 1e-5, momentum: float = 0.1) -> None:
        super().__init__()
        self.eps, self.momentum = eps, momentum
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x_MBC: Tensor, present_MB: Tensor) -> Tensor:
        with torch.autocast(x_MBC.device.type, enabled=False):
            x = x_MBC.to(self.weight.dtype)
            if self.training:
                count_M, mean_MC, m2_MC = global_moments(x, present_MB)
                var_MC = m2_MC / count_M.clamp(min=1).unsqueeze(1)
                self._update(count_M, mean_MC.detach(), m2_MC.detach())
            else:
                mean_MC, var_MC = self.running_mean.unsqueeze(0), self.running_var.unsqueeze(0)
            scale_MC = self.weight * torch.rsqrt(var_MC + self.eps)
            y = (x - mean_MC.unsqueeze(1)) * scale_MC.unsqueeze(1) + self.bias
        return y.to(x_MBC.dtype)

    @torch.no_grad()
    def _update(self, count_M: Tensor, mean_MC: Tensor, m2_MC: Tensor) -> None:
        unbiased_MC = m2_MC / (count_M - 1).clamp(min=1).unsqueeze(1)
        step_M = torch.where(count_M >= 2, self.momentum, 0.0).to(mean_MC.dtype)
        for m in range(mean_MC.shape[0]):
            self.running_mean.lerp_(mean_MC[m], step_M[m])
            self.running_var.lerp_(unbiased_MC[m], step_M[m])


def global_moments(x_MBC: Tensor, present_MB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Count (M,), mean (M, C) and sum of squared deviations (M, C) of the present rows of all ranks, with gradient."""
    mask_MB1 = present_MB.unsqueeze(2).to(x_MBC.dtype)
    count_M1 = mask_MB1.sum(1)
    mean_MC = (x_MBC * mask_MB1).sum(1) / count_M1.clamp(min=1)
    m2_MC = (((x_MBC - mean_MC.unsqueeze(1)) * mask_MB1) ** 2).sum(1)
    if distributed.world_size() == 1:
        return count_M1.squeeze(1), mean_MC, m2_MC
    local_1MS = torch.cat([count_M1, mean_MC, m2_MC], dim=1).unsqueeze(0)
    count_WM1, mean_WMC, m2_WMC = distributed.gather(local_1MS).split([1, mean_MC.shape[1], mean_MC.shape[1]], dim=2)
    count_M1 = count_WM1.sum(0)
    total_mean_MC = (count_WM1 * mean_WMC).sum(0) / count_M1.clamp(min=1)
    total_m2_MC = m2_WMC.sum(0) + (count_WM1 * (mean_WMC - total_mean_MC) ** 2).sum(0)
    return count_M1.squeeze(1).detach(), total_mean_MC, total_m2_MC
