"""What a training step must hold, predicted from the number of parameters alone.

Sources: ZeRO (arXiv 1910.02054, section 3.1) for the states of mixed- and full-precision AdamW.
"""

# Bytes of optimizer state for each trainable parameter, in fp32.
STATE_BYTES = {"adamw": 8, "sgd": 0, "sgd_momentum": 4, "rmsprop": 4}


def predict(parameters: int, trainable: int, *, bytes_per_weight: int = 4, optimizer: str = "adamw") -> dict[str, int]:
    """Bytes of weights, gradients and optimizer states; activations depend on the batch and are not in it.

    parameters: all of them; trainable: those with a gradient, which has the weights' own type. Raises ValueError
    if more are trainable than there are, KeyError for an optimizer that is not in STATE_BYTES.
    """
    if not 0 <= trainable <= parameters:
        raise ValueError(f"trainable must lie between 0 and {parameters}, the number of parameters; got {trainable}.")
    return {
        "weights": bytes_per_weight * parameters,
        "gradients": bytes_per_weight * trainable,
        "optimizer states": STATE_BYTES[optimizer] * trainable,
    }
