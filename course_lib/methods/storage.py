"""What is kept of a fine-tuned model: save it to a folder, load it onto a fresh model, or merge it into the weights."""

import json
from pathlib import Path

from course_lib.errors import CourseError
from course_lib.methods import METHODS
from course_lib.methods.prompts import serve_one_task
from course_lib.methods.reparameterized import AddedLinear, quantize

import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from torch import nn
from torch.nn.utils import parametrize

TENSORS, DESCRIPTION = "fine_tuned.safetensors", "fine_tuned.json"


def save(model: nn.Module, folder: Path) -> int:
    """Write what a method trained to `folder`; returns the bytes of the file with the tensors.

    peft's methods write peft's own files. Raises ValueError for a model that no method was applied to.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    name, hparams = _applied(model)
    kept = {key: value for key, value in hparams.items() if key != "dense"}
    (folder / DESCRIPTION).write_text(json.dumps({"method": name, "hparams": kept}) + "\n", encoding="utf-8")
    if isinstance(model, PeftModel):
        model.save_pretrained(folder)
        return (folder / "adapter_model.safetensors").stat().st_size
    save_file({key: tensor.detach().cpu().contiguous() for key, tensor in _trained(model).items()}, folder / TENSORS)
    return (folder / TENSORS).stat().st_size


def load(model: nn.Module, folder: Path) -> nn.Module:
    """A fresh model with what `save` wrote; use what is returned.

    Raises CourseError if the folder holds no such files, or files of another model.
    """
    folder = Path(folder)
    try:
        written = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CourseError(
            f"{folder.name} holds no fine-tuned model ({error}). Write one with save(model, folder)."
        ) from error
    method, hparams = METHODS[written["method"]], written["hparams"]
    if not (folder / TENSORS).exists():
        if method.name == "qlora":
            settings = method.complete(hparams)
            quantize(model, settings["bnb_4bit_quant_type"], settings["bnb_4bit_use_double_quant"])
        loaded = PeftModel.from_pretrained(model, folder)
        serve_one_task(loaded)
        loaded.fine_tuned_by = (method.name, hparams)
        return loaded
    tensors = load_file(folder / TENSORS)
    model = method.apply(model, **hparams)
    stored = _with_own_format(model)
    for name, module in stored.items():
        module.restore({key: tensors.pop(f"{name}.{key}") for key in module.stored()})
    mismatch = set(tensors) ^ {name for name in _trained(model) if not _inside(name, stored)}
    if mismatch:
        raise CourseError(f"{folder.name} was saved from another model: {min(mismatch)} is not in both.")
    model.load_state_dict(tensors, strict=False)
    return model


def merge(model: nn.Module) -> nn.Module:
    """The plain model with the fine-tuning written into its weights; changed in place, use what is returned.

    Raises ValueError for a method that cannot be merged, or a model that no method was applied to.
    """
    name, _ = _applied(model)
    if not METHODS[name].mergeable:
        raise ValueError(f"{METHODS[name].title} cannot be merged into the weights; save and load it beside them.")
    if isinstance(model, PeftModel):
        return model.merge_and_unload()
    training = model.training
    # Diff pruning's gates are drawn in training, and still in evaluation.
    model.eval()
    with torch.no_grad():
        for path, module in list(model.named_modules()):
            if isinstance(module, AddedLinear):
                model.set_submodule(path, module.merged())
            elif parametrize.is_parametrized(module):
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=True)
    del model.fine_tuned_by
    return model.train(training)


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
