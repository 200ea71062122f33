"""The bridge to the peft library: its configs, applied to the course's models."""

from course_lib.methods.shapes import has_lm_head


def task_type(config) -> str:
    """peft's task type of the course's model of this architecture."""
    if config.is_encoder_decoder:
        return "SEQ_2_SEQ_LM"
    return "CAUSAL_LM" if has_lm_head(config) else "FEATURE_EXTRACTION"


def wrap(model, config_name: str, **hparams):
    """The model in a peft model with the config of that name, e.g. wrap(model, "LoraConfig", r=8)."""
    import peft

    return peft.get_peft_model(model, getattr(peft, config_name)(task_type=task_type(model.config), **hparams))


def defaults(method: str) -> dict[str, list[str]]:
    """peft's default target modules of a method ("lora", "ia3_feedforward", …): model type → names."""
    from peft.utils import constants

    kind = "_".join([part.upper() for part in method.split("_")])
    return getattr(
        constants, f"TRANSFORMERS_MODELS_TO_{kind}_{'MODULES' if 'FEED' in kind else 'TARGET_MODULES'}_MAPPING"
    )
