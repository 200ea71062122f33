"""Memory of training, in bytes by part: predicted from numbers of parameters, or counted on a real step."""

PARTS = ("weights", "gradients", "optimizer states", "activations")
