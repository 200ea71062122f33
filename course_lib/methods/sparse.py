"""Selective methods that choose single weights: LT-SFT, diff pruning and threshold masks.

All three act on the weight matrices of the linear layers and put a torch parametrization on them: the original stays
frozen beside it, and merging is taking the parametrization off. Embeddings, biases and norms stay as they are, as in
the masking paper; the other two papers name more places.
"""

import math
from collections.abc import Callable

from course_lib.methods import METHODS, Method, Paper
from course_lib.methods.targets import Modules, targets

import torch
from torch import nn
from torch.nn.utils import parametrize


class SparseDelta(nn.Module):
    """W = W₀ + a sparse matrix: `values` (k,) are trained, `indices` (k,) into the flat W say where they stand."""

    def __init__(self, indices: torch.Tensor, values: torch.Tensor):
        super().__init__()
        self.values = nn.Parameter(values)
        self.register_buffer("indices", indices.to(torch.int32))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight.flatten().index_add(0, self.indices.long(), self.values.to(weight.dtype)).view_as(weight)

    def stored(self) -> dict[str, torch.Tensor]:
        return {"values": self.values.detach(), "indices": self.indices}

    def restore(self, stored: dict[str, torch.Tensor]) -> None:
        device = self.values.device
        self.values = nn.Parameter(stored["values"].to(device))
        self.indices = stored["indices"].to(device)


# The stretched concrete distribution's interval (diff pruning, section 3.1).
LOWER, UPPER = -1.5, 1.5


class HardConcrete(nn.Module):
    """W = W₀ + z ⊙ z_group ⊙ w, gates z in 0..1 drawn anew at each step from the stretched concrete distribution with
    parameters `alpha`, one a weight and one for the whole matrix (arXiv 2012.07463, sections 3.1 and 3.3).

    In eval mode the gates are those of the noise-free network.
    """

    def __init__(self, weight: torch.Tensor, alpha_init: float, sparsity_pen: float):
        super().__init__()
        self.sparsity_pen = sparsity_pen
        self.w = nn.Parameter(torch.zeros_like(weight))
        self.alpha = nn.Parameter(torch.full_like(weight, alpha_init))
        self.alpha_group = nn.Parameter(torch.full_like(weight[:1, 0], alpha_init))

    def gate(self, alpha: torch.Tensor) -> torch.Tensor:
        noise = torch.zeros_like(alpha)
        if self.training:
            uniform = torch.rand_like(alpha).clamp(1e-6, 1 - 1e-6)
            noise = uniform.log() - (-uniform).log1p()
        return (torch.sigmoid(noise + alpha) * (UPPER - LOWER) + LOWER).clamp(0, 1)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + self.gate(self.alpha) * self.gate(self.alpha_group) * self.w

    def penalty(self) -> torch.Tensor:
        """`sparsity_pen` times the expected number of open gates, of weights and of the matrix.

        Their sum, as in the authors' code. The paper's product lets one gate answer for a whole matrix, and in a short
        training that one shuts at once.
        """
        offset = math.log(-LOWER / UPPER)
        opened = torch.sigmoid(self.alpha - offset).sum() + torch.sigmoid(self.alpha_group - offset).sum()
        return self.sparsity_pen * opened


class ThresholdMask(nn.Module):
    """W = W₀ ⊙ [scores ≥ threshold]; the gradient passes the threshold as if it were not there (arXiv 2004.12406,
    section 3). The scores start uniform, so that a share `initial_sparsity` of them lies below the threshold."""

    def __init__(self, weight: torch.Tensor, threshold: float, initial_sparsity: float):
        super().__init__()
        # Scores lie within two thresholds' width, so that small steps can open and close a weight.
        self.scores = nn.Parameter(threshold * (1 + 2 * (torch.rand_like(weight) - initial_sparsity)))
        self.threshold = threshold

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        mask = (self.scores >= self.threshold).to(weight.dtype)
        return weight * (mask + (self.scores - self.scores.detach()))

    def stored(self) -> dict[str, torch.Tensor]:
        """The mask, eight weights a byte."""
        bits = (self.scores >= self.threshold).flatten()
        bits = nn.functional.pad(bits, (0, -len(bits) % 8)).view(-1, 8).to(torch.uint8)
        return {"mask": (bits << torch.arange(8, device=bits.device, dtype=torch.uint8)).sum(1, dtype=torch.uint8)}

    def restore(self, stored: dict[str, torch.Tensor]) -> None:
        bits = (stored["mask"].unsqueeze(1) >> torch.arange(8, dtype=torch.uint8)) & 1
        mask = bits.flatten()[: self.scores.numel()].view_as(self.scores).to(self.scores.device)
        self.scores.data = self.threshold * torch.where(mask.bool(), 1.5, 0.5)


def _parametrize(model, target_modules: Modules, make: Callable[[str, torch.Tensor], nn.Module]):
    """The model, frozen, with make(name, weight) put on the weight of every target."""
    model.requires_grad_(False)
    for name in targets(model.config, target_modules):
        module = model.get_submodule(name)
        parametrize.register_parametrization(module, "weight", make(name, module.weight.detach()))
    return model


def _entries(config, density: float, target_modules: Modules) -> int:
    """How many weights a density means: at least one."""
    if not 0 < density <= 1:
        raise ValueError(f"density must be above 0 and at most 1, the share of weights that change; got {density}.")
    total = sum(layer.weights for layer in targets(config, target_modules).values())
    return max(1, round(density * total))


def _shares(sizes: dict[str, int], k: int) -> dict[str, int]:
    """k divided in proportion to the sizes, by largest remainders: the shares add up to k."""
    total = sum(sizes.values())
    shares = {name: k * part // total for name, part in sizes.items()}
    by_remainder = sorted(sizes, key=lambda name: -(k * sizes[name] % total))
    for name in by_remainder[: k - sum(shares.values())]:
        shares[name] += 1
    return shares


def _largest(deltas: dict[str, torch.Tensor], k: int) -> dict[str, torch.Tensor]:
    """Flat indices of the k entries of largest magnitude over all matrices together."""
    flat = torch.cat([delta.flatten() for delta in deltas.values()])
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.abs().topk(k).indices] = True
    parts = chosen.split([delta.numel() for delta in deltas.values()])
    return {name: part.nonzero().squeeze(1) for name, part in zip(deltas, parts, strict=True)}


def _at_random(config, density: float, target_modules: Modules, device) -> dict[str, torch.Tensor]:
    sizes = {name: layer.weights for name, layer in targets(config, target_modules).items()}
    shares = _shares(sizes, _entries(config, density, target_modules))
    return {name: torch.randperm(size, device=device)[: shares[name]].sort().values for name, size in sizes.items()}


def _build_lt_sft(model, *, density, target_modules, dense):
    names = targets(model.config, target_modules)
    if dense is None:
        indices = _at_random(model.config, density, target_modules, model.device)
    else:
        own = {name: model.get_submodule(name).weight.detach() for name in names}
        deltas = {name: dense[f"{name}.weight"].to(weight) - weight for name, weight in own.items()}
        indices = _largest(deltas, _entries(model.config, density, target_modules))
    return _parametrize(
        model, target_modules, lambda name, weight: SparseDelta(indices[name], weight.new_zeros(len(indices[name])))
    )


def _count_lt_sft(config, *, density: float = 0.05, target_modules: Modules = "all-linear", dense=None) -> int:
    """dense: the state_dict() of the model after full fine-tuning, the first phase; None: places drawn at random, the
    control that shows what choosing them is worth."""
    if dense is not None:
        for name, layer in targets(config, target_modules).items():
            if f"{name}.weight" not in dense or dense[f"{name}.weight"].numel() != layer.weights:
                raise ValueError(
                    f"dense has no {name}.weight of this size: give the state_dict() of this model after full "
                    "fine-tuning."
                )
    return _entries(config, density, target_modules)


def _build_diff_pruning(model, *, density, target_modules, alpha_init, sparsity_pen):
    return _parametrize(model, target_modules, lambda _, weight: HardConcrete(weight, alpha_init, sparsity_pen))


def _count_diff_pruning(
    config,
    *,
    density: float = 0.005,
    target_modules: Modules = "all-linear",
    alpha_init: float = 5.0,
    sparsity_pen: float = 1.25e-7,
) -> int:
    _entries(config, density, target_modules)
    if not sparsity_pen >= 0:
        raise ValueError(f"sparsity_pen must not be negative; got {sparsity_pen}.")
    # A difference and a gate for each weight, and a gate for each matrix.
    return sum(2 * layer.weights + 1 for layer in targets(config, target_modules).values())


def _penalty(model) -> torch.Tensor:
    return sum(module.penalty() for module in model.modules() if isinstance(module, HardConcrete))


def prune(model, density: float | None = None):
    """The second phase of diff pruning: keep the `density` largest differences of the whole model, drop the others.

    The kept ones go on as trainable SparseDelta values (magnitude pruning, arXiv 2012.07463 section 3.2). Raises
    ValueError for a model that was not trained by diff_pruning.
    """
    method, hparams = getattr(model, "fine_tuned_by", (None, {}))
    if method != "diff_pruning":
        raise ValueError("prune() is for a model that METHODS['diff_pruning'].apply has been used on.")
    hparams = METHODS[method].complete(hparams)
    density = hparams["density"] if density is None else density
    target_modules = hparams["target_modules"]
    k = _entries(model.config, density, target_modules)
    training = model.training
    model.eval()
    deltas = {}
    for name in targets(model.config, target_modules):
        module = model.get_submodule(name)
        deltas[name] = (module.weight - module.parametrizations.weight.original).detach()
        parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
    indices = _largest(deltas, k)
    _parametrize(
        model,
        target_modules,
        lambda name, _: SparseDelta(indices[name], deltas[name].flatten()[indices[name]]),
    )
    model.fine_tuned_by = ("lt_sft", {"density": density, "target_modules": target_modules})
    return model.train(training)


def _build_threshold_mask(model, *, threshold, initial_sparsity, target_modules):
    return _parametrize(model, target_modules, lambda _, weight: ThresholdMask(weight, threshold, initial_sparsity))


def _count_threshold_mask(
    config, *, threshold: float = 0.01, initial_sparsity: float = 0.05, target_modules: Modules = "all-linear"
) -> int:
    if not threshold > 0:
        raise ValueError(f"threshold must be greater than 0; got {threshold}.")
    if not 0 <= initial_sparsity < 1:
        raise ValueError(f"initial_sparsity must be at least 0 and below 1; got {initial_sparsity}.")
    return sum(layer.weights for layer in targets(config, target_modules).values())


def _mask_bytes(config, *, target_modules, **_) -> int:
    return sum(math.ceil(layer.weights / 8) for layer in targets(config, target_modules).values())


# A value and its place, 4 bytes each.
def _sparse_bytes(config, *, density, target_modules, **_) -> int:
    return 8 * _entries(config, density, target_modules)


METHODS.add(
    Method(
        name="lt_sft",
        title="LT-SFT",
        family="selective",
        paper=Paper("Composable Sparse Fine-Tuning for Cross-Lingual Transfer", "2110.07560"),
        formula=r"W = W_0 + M \odot \Delta W,\quad M = \mathrm{top}_k\,\lvert W_1 - W_0 \rvert",
        words="the weights that moved most in a first training move alone in a second",
        mergeable=True,
        lesson="02_peft_taxonomy",
        build=_build_lt_sft,
        counter=_count_lt_sft,
        stored=_sparse_bytes,
    )
)
METHODS.add(
    Method(
        name="diff_pruning",
        title="Diff pruning",
        family="selective",
        paper=Paper("Parameter-Efficient Transfer Learning with Diff Pruning", "2012.07463"),
        formula=r"W = W_0 + z \odot w,\quad \min\; \mathcal{L} + \lambda\,\mathbb{E}\,\lVert z \rVert_0",
        words="a change behind a gate for each weight; a penalty shuts most gates",
        mergeable=True,
        lesson="02_peft_taxonomy",
        build=_build_diff_pruning,
        counter=_count_diff_pruning,
        stored=_sparse_bytes,
        penalty=_penalty,
        # The gates have a rate of their own, as in the authors' code: an order of magnitude or two above the weights'.
        own_rates={"alpha": 0.1},
    )
)
METHODS.add(
    Method(
        name="threshold_mask",
        title="Threshold mask",
        family="selective",
        paper=Paper("Masking as an Efficient Alternative to Finetuning for Pretrained Language Models", "2004.12406"),
        formula=r"W = W_0 \odot [\,S \ge \tau\,]",
        words="no weight moves: scores decide which become zero",
        mergeable=True,
        lesson="02_peft_taxonomy",
        build=_build_threshold_mask,
        counter=_count_threshold_mask,
        undecayed=("scores",),
        stored=_mask_bytes,
    )
)
