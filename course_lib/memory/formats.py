"""Bytes of numbers in each format, with all that quantization keeps beside the numbers themselves."""

from course_lib.errors import unknown
from course_lib.methods.shapes import Linear, uses_conv1d
from course_lib.methods.targets import targets

BYTES = {"fp32": 4, "bf16": 2, "fp16": 2}
QUANTIZATIONS = ("int8", "nf4", "nf4_double", "fp4", "fp4_double")
# QLoRA (arXiv 2305.14314, section 3): a constant for each 64 weights, and one for each 256 of those.
BLOCK, OUTER_BLOCK = 64, 256


def quantized_tensors(layer: Linear, quantization: str) -> list[int]:
    """Bytes of each tensor that bitsandbytes keeps for a linear layer's weight.

    int8 (arXiv 2208.07339, section 2): a byte a weight, and a constant in fp32 for each output. 4 bits: half a byte a
    weight, a constant in fp32 for each block, and the 16 values; "double": the constants in 8 bits, theirs in fp32, the
    256 values of their codes, and their mean. Raises ValueError for another format.
    """
    if quantization not in QUANTIZATIONS:
        raise unknown("quantization", quantization, QUANTIZATIONS)
    if quantization == "int8":
        return [layer.weights, 4 * layer.outputs]
    blocks = -(-layer.weights // BLOCK)
    packed = [-(-layer.weights // 2), 16 * 4]
    if not quantization.endswith("_double"):
        return [*packed, 4 * blocks]
    return [*packed, blocks, 4 * -(-blocks // OUTER_BLOCK), 256 * 4, 4]


def quantized_layers(config) -> dict[str, Linear]:
    """Module name → size of the layers that are quantized: every linear one but the output head, and those that the
    architecture wants in fp32 (T5's wo). Raises ValueError for GPT-2, whose layers are no nn.Linear."""
    if uses_conv1d(config):
        raise ValueError("bitsandbytes quantizes nn.Linear, and GPT-2's projections are Conv1D. Take bf16.")
    found = targets(config, "all-linear")
    return {name: layer for name, layer in found.items() if not (config.model_type == "t5" and name.endswith(".wo"))}
