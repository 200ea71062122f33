"""A training step followed through the real model code on the meta device: every shape and lifetime, no memory."""

import math
from contextlib import ExitStack, contextmanager
from unittest.mock import patch

from course_lib.errors import unknown
from course_lib.memory import optimizers
from course_lib.memory.estimate import WEIGHTS, Estimate
from course_lib.memory.ledger import Ledger
from course_lib.memory.tape import BACKWARD, CUDA_BLOCK, FORWARD, GRADIENTS, WORKSPACE, Parameter
from course_lib.methods.shapes import has_lm_head
from course_lib.models import Classifier

import torch
from torch import nn

aten = torch.ops.aten


def _attend(device: str):
    """`scaled_dot_product_attention` with the kernel that PyTorch would choose on this device; the meta device's own
    would be plain products."""

    def attend(q, k, v, attn_mask=None, dropout_p=0.0, is_causal=False, scale=None, enable_gqa=False):
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = torch.zeros_like(attn_mask, dtype=q.dtype).masked_fill_(attn_mask.logical_not(), -math.inf)
        half = q.dtype in (torch.bfloat16, torch.float16)
        if device == "cpu" and not dropout_p:
            return aten._scaled_dot_product_flash_attention_for_cpu(
                q, k, v, dropout_p, is_causal, attn_mask=attn_mask, scale=scale
            )[0]
        if device == "cpu" or (enable_gqa and not (half and attn_mask is None)):
            return aten._scaled_dot_product_attention_math(
                q, k, v, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa
            )[0]
        if attn_mask is None and half:
            return aten._scaled_dot_product_flash_attention(q, k, v, dropout_p, is_causal, scale=scale)[0]
        return aten._scaled_dot_product_efficient_attention(
            q, k, v, attn_mask, True, dropout_p, is_causal, scale=scale
        )[0]

    return attend


def _dropout(x, p=0.5, training=True, inplace=False):
    """CUDA's dropout: a mask of one byte an element is kept."""
    return torch.native_dropout(x, p, training)[0] if training and p else x


@contextmanager
def _kernels_of(device: str):
    with ExitStack() as stack:
        stack.enter_context(patch.object(nn.functional, "scaled_dot_product_attention", _attend(device)))
        if device == "cuda":
            stack.enter_context(patch.object(nn.functional, "dropout", _dropout))
        yield


def with_loss(model, labels: int = 2) -> nn.Module:
    """A model that gives a loss: a language model as it is, an encoder with the course's classifier on it."""
    if has_lm_head(model.config):
        return model
    with torch.device(next(model.parameters()).device):
        return Classifier(model, labels)


def _pack(model: nn.Module) -> list[torch.Tensor]:
    """Let bitsandbytes pack the 4-bit weights of a model on the meta device; returns what it keeps beside them."""
    tables = []
    for module in model.modules():
        weight = getattr(module, "weight", None)
        if hasattr(weight, "bnb_quantized"):
            if not weight.bnb_quantized:
                from bitsandbytes import functional

                # Its table of codes is made once and kept: one on the meta device must not be.
                with patch.dict(functional.name2qmap, clear=True):
                    weight._quantize(torch.device("meta"))
            state = weight.quant_state
            tables += [state.absmax, state.code]
            tables += [state.state2.absmax, state.state2.code, state.offset] if state.nested else []
    return tables


def trace(model, batch: dict[str, torch.Tensor], *, device: str = "cuda", optimizer: str = "adamw") -> Estimate:
    """What a training step of a model on the meta device would hold on a `device` ("cuda" or "cpu"), tensor by tensor.

    model: with a loss, and made trainable; batch: what it is called with, on the meta device too. The step is one in
    the midst of training: the optimizer has its states. Raises ValueError for a model or a batch with memory of its
    own, and for unknown names.
    """
    if not all(tensor.is_meta for tensor in (*model.parameters(), *model.buffers(), *batch.values())):
        raise ValueError("trace needs a model and a batch on the meta device, such as models.skeleton(name).")
    if device not in ("cuda", "cpu"):
        raise unknown("device", device, ("cuda", "cpu"))
    optimizers.states(optimizer, [])
    before = model.training
    trained = [p for p in model.parameters() if p.requires_grad]
    block = CUDA_BLOCK if device == "cuda" else 1
    ledger = Ledger("meta", vocabulary=getattr(model.config, "vocab_size", None), block=block)
    for tensor in (*_pack(model), *model.parameters(), *model.buffers()):
        ledger.book(tensor, WEIGHTS)
    for tensor in batch.values():
        ledger.book(tensor, WORKSPACE)
    hooks = [p.register_post_accumulate_grad_hook(lambda p: ledger.book(p.grad, GRADIENTS)) for p in trained]
    model.train()
    try:
        with ledger, _kernels_of(device):
            ledger.phase = FORWARD
            with ledger.saving():
                loss = model(**batch).loss
            saved = ledger.now.copy()
            ledger.phase = BACKWARD
            loss.backward()
            del loss
            gradients = ledger.now[GRADIENTS]
            moved = [p for p in trained if p.grad is not None]
            states = optimizers.states(optimizer, [Parameter(tuple(p.shape), p.element_size()) for p in moved], block)
    finally:
        for hook in hooks:
            hook.remove()
        model.zero_grad(set_to_none=True)
        model.train(before)
    return Estimate.of_step(
        weights=saved[WEIGHTS], saved=saved, gradients=gradients, peak=ledger.peak, moment=ledger.moment, states=states
    )
