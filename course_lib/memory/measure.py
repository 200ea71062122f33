"""What a training step really holds, counted tensor by tensor on one real step."""

import torch
from torch.autograd.graph import saved_tensors_hooks


def count_step(model, batch: dict, *, optimizer=torch.optim.AdamW) -> dict[str, int]:
    """Bytes by part of one training step of `model` on `batch` (a dict with labels), on any device.

    activations: the tensors that autograd keeps for the backward pass, each storage once, parameters and
    the batch itself left out. The step is taken with a learning rate of 0: no weight changes.
    """
    own = {t.untyped_storage().data_ptr() for t in [*model.parameters(), *model.buffers(), *batch.values()]}
    saved: dict[int, tuple[int, object]] = {}

    def keep(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in own:
            # The storage is held, so that no later tensor can get the same address.
            saved[storage.data_ptr()] = (storage.nbytes(), storage)
        return tensor

    trainable = [p for p in model.parameters() if p.requires_grad]
    before = model.training
    model.train()
    with torch.random.fork_rng():
        with saved_tensors_hooks(keep, lambda tensor: tensor):
            loss = model(**batch).loss
        activations = sum(size for size, _ in saved.values())
        saved.clear()
        loss.backward()
    gradients = sum(p.grad.nbytes for p in trainable if p.grad is not None)
    stepper = optimizer(trainable, lr=0.0, weight_decay=0.0)
    stepper.step()
    # AdamW also keeps its step number, four bytes a tensor: no matter of size, and left out.
    states = sum(t.nbytes for state in stepper.state.values() for t in state.values() if torch.is_tensor(t) and t.ndim)
    model.zero_grad(set_to_none=True)
    model.train(before)
    return {
        "weights": sum(p.nbytes for p in model.parameters()),
        "gradients": gradients,
        "optimizer states": states,
        "activations": activations,
    }
