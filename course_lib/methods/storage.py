"""What is kept of a fine-tuned model: save it to a folder, load it onto a fresh model, or merge it into the weights."""

import json
from pathlib import Path

from course_lib.errors import CourseError
from course_lib.methods import METHODS
from course_lib.methods.added_linear import AddedLinear, NestedLoRA
from course_lib.methods.prompts import serve_one_task
from course_lib.methods.reparameterized import quantize
from course_lib.methods.shapes import blocks

import torch
from peft import PeftConfig, PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

TENSORS, DESCRIPTION = "fine_tuned.safetensors", "fine_tuned.json"


def save(model: nn.Module, folder: Path) -> int:
    """Write what a method trained to `folder`; returns the bytes of the file with the tensors.

    peft's methods write peft's own files. DyLoRA is kept with all its ranks; which one is chosen is not. Raises
    ValueError for a model that no method was applied to.
    """
    folder = Path(folder)
    name, hparams = _applied(model)
    folder.mkdir(parents=True, exist_ok=True)
    kept = {key: value for key, value in hparams.items() if key != "dense"}
    written = {"method": name, "hparams": kept, "model": _shape(model.config), "peft": isinstance(model, PeftModel)}
    (folder / DESCRIPTION).write_text(json.dumps(written) + "\n", encoding="utf-8")
    if isinstance(model, PeftModel):
        model.save_pretrained(folder)
        return (folder / "adapter_model.safetensors").stat().st_size
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in _trained(model).items()}, folder / TENSORS)
    return (folder / TENSORS).stat().st_size


def load(model: nn.Module, folder: Path) -> nn.Module:
    """A fresh model with what `save` wrote; use what is returned. It can train on; soft prompts and prefixes do so as
    plain vectors, since peft drops the networks that made them.

    Raises CourseError if the folder holds no such files, or files of another model.
    """
    folder = Path(folder)
    try:
        written = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
        method, hparams = METHODS[written["method"]], written["hparams"]
        shape, with_peft = written["model"], written["peft"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CourseError(
            f"{folder.name} holds no fine-tuned model ({error}). Write one with save(model, folder)."
        ) from error
    if shape != _shape(model.config):
        raise CourseError(
            f"{folder.name} was saved from another model: {shape}, and this one is {_shape(model.config)}."
        )
    if with_peft:
        if method.name == "qlora":
            settings = method.complete(hparams)
            quantize(model, settings["bnb_4bit_quant_type"], settings["bnb_4bit_use_double_quant"])
        prompt = PeftConfig.from_pretrained(folder).is_prompt_learning
        loaded = PeftModel.from_pretrained(model, folder, is_trainable=not prompt)
        serve_one_task(loaded)
        loaded.fine_tuned_by = (method.name, hparams)
        return loaded
    tensors = load_file(folder / TENSORS)
    model = method.apply(model, **hparams)
    stored = _with_own_format(model)
    for name, module in stored.items():
        module.restore({key: tensors.pop(f"{name}.{key}") for key in module.stored()})
    model.load_state_dict(tensors, strict=False)
    return model


def _shape(config) -> dict:
    """What a model must share with the one that was saved."""
    sizes = {"hidden_size": config.hidden_size, "blocks": blocks(config), "vocab_size": config.vocab_size}
    return {"model_type": config.model_type} | sizes


def merge(model: nn.Module) -> nn.Module:
    """The plain model with the fine-tuning written into its weights; changed in place, use what is returned.

    Raises ValueError for a method that cannot be merged, a head that shares its weight with the embeddings, or a model
    that no method was applied to.
    """
    name, _ = _applied(model)
    if not METHODS[name].mergeable:
        raise ValueError(f"{METHODS[name].title} cannot be merged into the weights; save and load it beside them.")
    if model.config.tie_word_embeddings and _changes_head(model):
        raise ValueError("This model's lm_head is its table of embeddings too: merged into one, the change is in both.")
    if isinstance(model, PeftModel):
        merged = model.merge_and_unload()
        merged.__dict__.pop("fine_tuned_by", None)
        return merged
    training = model.training
    # Diff pruning's gates are drawn in training, and still in evaluation.
    model.eval()
    with torch.no_grad():
        for path, module in list(model.named_modules()):
            if isinstance(module, NestedLoRA):
                module.rank.hook.remove()
            if isinstance(module, AddedLinear):
                model.set_submodule(path, module.merged())
            elif parametrize.is_parametrized(module):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    del model.fine_tuned_by
    return model.train(training)


def _changes_head(model: nn.Module) -> bool:
    head = getattr(model, "lm_head", None)
    return head is not None and (len(list(head.children())) > 0 or parametrize.is_parametrized(head))


def _applied(model: nn.Module) -> tuple[str, dict]:
    applied = getattr(model, "fine_tuned_by", None)
    if applied is None:
        raise ValueError("No method was applied to this model: METHODS[name].apply(model) comes first.")
    return applied


def _with_own_format(model: nn.Module) -> dict[str, nn.Module]:
    """The modules that know a smaller form of themselves, by name."""
    return {name: module for name, module in model.named_modules() if hasattr(module, "stored")}


def _inside(name: str, modules: dict[str, nn.Module]) -> bool:
    return name.rsplit(".", 1)[0] in modules


def _trained(model: nn.Module) -> dict[str, torch.Tensor]:
    """The tensors to keep: what modules store in their own form, and every other trained parameter."""
    own = _with_own_format(model)
    kept = {f"{name}.{key}": tensor for name, module in own.items() for key, tensor in module.stored().items()}
    return kept | {name: p for name, p in model.named_parameters() if p.requires_grad and not _inside(name, own)}
