"""Linear layers with something linear beside them, for methods that no maintained library has: KronA and DyLoRA."""

import math

from course_lib.methods.shapes import Linear

import torch
from torch import nn


def factors(dimension: int, decompose_factor: int) -> tuple[int, int]:
    """The dimension as a product, first factor the smaller: as near the square root as its divisors allow (−1), or with
    a first factor as near below `decompose_factor` as they allow."""
    if decompose_factor > 0 and dimension % decompose_factor == 0:
        return decompose_factor, dimension // decompose_factor
    limit = math.isqrt(dimension) if decompose_factor == -1 else min(decompose_factor, math.isqrt(dimension))
    small = max(n for n in range(1, limit + 1) if dimension % n == 0)
    return small, dimension // small


class AddedLinear(nn.Module):
    """A frozen linear layer (or Conv1D) and something linear beside it; `delta` computes it, `delta_weight` is its
    matrix (outputs, inputs)."""

    def __init__(self, base: nn.Module):
        super().__init__()
        self.base = base

    @property
    def weight(self) -> torch.Tensor:
        return self.base.weight

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.base(x) + self.delta(x).to(x.dtype)

    def merged(self) -> nn.Module:
        """The plain layer with the addition in its weights."""
        delta = self.delta_weight().detach().to(self.base.weight)
        self.base.weight.data += delta if isinstance(self.base, nn.Linear) else delta.T
        return self.base


class Kronecker(AddedLinear):
    """h = W₀x + s (A ⊗ B)x (arXiv 2212.10650, section 3): A (out₁, in₁), B (out₂, in₂), and out = out₁ · out₂.

    B starts at zero. The product is never written out: (A ⊗ B)x is A X Bᵀ with x laid out as X (in₁, in₂).
    """

    def __init__(self, base: nn.Module, layer: Linear, decompose_factor: int, scale: float):
        super().__init__(base)
        (in_1, in_2), (out_1, out_2) = (
            factors(layer.inputs, decompose_factor),
            factors(layer.outputs, decompose_factor),
        )
        self.a = nn.Parameter(base.weight.new_empty(out_1, in_1))
        self.b = nn.Parameter(base.weight.new_zeros(out_2, in_2))
        nn.init.kaiming_uniform_(self.a, a=math.sqrt(5))
        self.scale = scale

    def delta(self, x: torch.Tensor) -> torch.Tensor:
        x = x.unflatten(-1, (self.a.shape[1], self.b.shape[1]))
        return self.scale * (self.a @ x @ self.b.T).flatten(-2)

    def delta_weight(self) -> torch.Tensor:
        return self.scale * torch.kron(self.a, self.b)


class Rank:
    """The rank that every DyLoRA layer of a model uses now: drawn in training, `chosen` in evaluation."""

    def __init__(self, r: int):
        self.largest = self.chosen = self.now = r

    def draw(self, module, args) -> None:
        """Forward hook of the model: the same rank for all its layers."""
        self.now = int(torch.randint(1, self.largest + 1, ())) if module.training else self.chosen


class NestedLoRA(AddedLinear):
    """LoRA whose first b ranks work alone for every b ≤ r (arXiv 2210.07558, section 4): A (r, in), B (out, r),
    h = W₀x + (α/b) B[:, :b] A[:b] x.

    All b rows are updated, which the paper finds better than the b-th alone (its "frozen" mode).
    """

    def __init__(self, base: nn.Module, layer: Linear, rank: Rank, lora_alpha: float):
        super().__init__(base)
        self.lora_a = nn.Parameter(base.weight.new_empty(rank.largest, layer.inputs))
        self.lora_b = nn.Parameter(base.weight.new_zeros(layer.outputs, rank.largest))
        nn.init.kaiming_uniform_(self.lora_a, a=math.sqrt(5))
        self.rank, self.lora_alpha = rank, lora_alpha

    def delta(self, x: torch.Tensor) -> torch.Tensor:
        b = self.rank.now
        return self.lora_alpha / b * (x @ self.lora_a[:b].T @ self.lora_b[:, :b].T)

    def delta_weight(self) -> torch.Tensor:
        b = self.rank.chosen
        return self.lora_alpha / b * self.lora_b[:, :b] @ self.lora_a[:b]


def set_rank(model, rank: int) -> None:
    """Evaluate (and merge) a model trained by dylora at this rank.

    Raises ValueError for a rank that it does not have, or a model without DyLoRA layers.
    """
    layers = [module for module in model.modules() if isinstance(module, NestedLoRA)]
    if not layers:
        raise ValueError("This model has no DyLoRA layers: METHODS['dylora'].apply makes them.")
    if not isinstance(rank, int) or not 1 <= rank <= layers[0].rank.largest:
        raise ValueError(f"rank must be a whole number between 1 and {layers[0].rank.largest}; got {rank}.")
    layers[0].rank.chosen = rank
