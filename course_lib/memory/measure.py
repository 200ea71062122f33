"""What a training step really holds, counted tensor by tensor on one real step."""

from course_lib.memory.ledger import Ledger
from course_lib.memory.tape import ACTIVATIONS

import torch


def count_step(model, batch: dict, *, optimizer=torch.optim.AdamW) -> dict[str, int]:
    """Bytes by part of one training step of `model` on `batch` (a dict with labels), on any device.

    activations: the tensors that autograd keeps for the backward pass, each storage once, parameters and
    the batch itself left out. The step is taken with a learning rate of 0: no weight changes.
    """
    trainable = [p for p in model.parameters() if p.requires_grad]
    ledger = Ledger(next(model.parameters()).device.type)
    for tensor in (*model.parameters(), *model.buffers(), *batch.values()):
        ledger.book(tensor, "what is there before")
    before = model.training
    model.train()
    with torch.random.fork_rng():
        with ledger, ledger.saving():
            loss = model(**batch).loss
        activations = ledger.now[ACTIVATIONS]
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
