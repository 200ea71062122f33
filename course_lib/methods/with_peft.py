"""The bridge to the peft library: its configs, applied to the course's models."""

from course_lib.methods.shapes import has_lm_head, uses_conv1d
from course_lib.methods.targets import targets


def task_type(config) -> str:
    """peft's task type of the course's model of this architecture."""
    if config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if has_lm_head(config) else "FEATURE_EXTRACTION"


def wrap(model, config_name: str, **hparams):
    """The model in a peft model with the config of that name, e.g. wrap(model, "LoraConfig", r=8)."""
    import peft

    pattern = hparams.get("target_modules")
    if isinstance(pattern, str) and pattern.lower() != "all-linear":
        # The linear layers that it fits, by name: peft would try other modules too, and fail.
        hparams["target_modules"] = list(targets(model.config, pattern))
    kind = getattr(peft, config_name)
    if uses_conv1d(model.config) and hasattr(kind, "fan_in_fan_out"):
        # Conv1D keeps its weight the other way round; peft finds out too, with a warning.
        hparams["fan_in_fan_out"] = True
    return peft.get_peft_model(model, kind(task_type=task_type(model.config), **hparams))


def defaults(method: str) -> dict[str, list[str]]:
    """peft's default targets of a method, "lora_target", "ia3_feedforward", …: model type → names of modules."""
    from peft.utils import constants

    return getattr(constants, f"TRANSFORMERS_MODELS_TO_{method.upper()}_MODULES_MAPPING")
