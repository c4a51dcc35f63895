"""Exports a checkpoint as a folder for Hugging Face Transformers, after comparing its logits."""

import json
import shutil
import tempfile
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import save_file
from torch import Tensor

from data_prep.files import sync
from data_prep.tokenizers.hugging_face import write_hf_tokenizer
from data_prep.tokenizers.tokenizer import Tokenizer
from model.hub import llama_names, split
from model.llama_config import to_llama
from model.memory.none.spec import NoMemoryConfig
from model.network import LanguageModel
from training.checkpoint.tools import made
from training.checkpoint.trained_model import LoadedModel
from training.errors import ConfigError
from training.huggingface.logits import check_difference, largest_difference, load_in_transformers
from training.huggingface.model_card import model_card

Form = Literal["llama", "memtrain"]
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

_PROVEN = 512  # tokens over which the logits of a plain Llama are compared
_TEXTS = (
    "",
    " ",
    "Hello  world",
    "\n\tdef f(x):\n    return x\n",
    "<s> </s> <unk>",
    "na\u00efve \u65e5\u672c \U0001f642",
    "1234567",
    "a b " * 2000,  # longer than a length to which tokenizer.json may truncate
)


@dataclass(frozen=True)
class Exported:
    """The result of an export.

    difference: largest difference of a logit to the model with the written (rounded) weights.
    rounding: largest difference of a logit that rounding to the dtype causes; 0 for float32.
    parameters: number of parameters written.
    left_out: number of the memory's parameters, which a plain Llama does not have.
    exact_tokens: text length up to which a plain Llama has the checkpoint's logits; None: any length.
    """

    form: Form
    difference: float
    rounding: float
    parameters: int
    left_out: int
    exact_tokens: int | None


def form_of(trained: LoadedModel) -> Form:
    """Return the default form of an export: `llama` for a model without memory, else `memtrain`."""
    return "memtrain" if trained.net.memory_parameters() or trained.net.explicit else "llama"


def export(
    trained: LoadedModel,
    target: Path,
    tokenizer: Tokenizer | None,
    form: Form | None = None,
    dtype: str = "float32",
    tolerance: float = 1e-4,
    shard_size: str = "5GB",
) -> Exported:
    """Write the folder `target` and compare its logits; nothing is left when that fails.

    The weights of `trained.net` itself are rounded to `dtype` too.

    Args:
        trained: the model.
        target: folder to write; it must not exist.
        tokenizer: the tokenizer to write; None: none.
        form: `llama` or `memtrain`; None: `form_of(trained)`.
        dtype: a key of `DTYPES`.
        tolerance: largest allowed difference of a logit.
        shard_size: largest size of a file of weights, such as 5GB.

    Raises:
        ConfigError, DataError: bad input, or the written tokenizer gives other ids.
        TrainingError: the logits differ by more than `tolerance`.
    """
    form = form or form_of(trained)
    with made(target) as folder:
        _write_weights(trained.net, folder, form, DTYPES[dtype], shard_size)
        config = _config(trained, form, dtype)
        _write_json(folder / "config.json", config)
        if form == "memtrain":
            from model.hf.bundle import source_files

            for name, text in source_files(type(trained.net.config.memory)).items():
                (folder / name).write_text(text, encoding="utf-8")
        if tokenizer is not None:
            write_hf_tokenizer(tokenizer, folder)
            special = {"bos_token_id": tokenizer.bos_id, "eos_token_id": tokenizer.eos_id}
            _write_json(folder / "generation_config.json", special | {"pad_token_id": tokenizer.eos_id})
        with _under_a_name_of_its_own(folder) as written:
            if tokenizer is not None:
                _prove_tokenizer(tokenizer, written, runs_its_code=form == "memtrain")
            result = _prove(trained, written, form, dtype, tolerance)
        (folder / "README.md").write_text(model_card(trained, result, dtype, target.name), encoding="utf-8")
        for path in folder.iterdir():
            sync(path)
    return result


def _write_weights(net: LanguageModel, folder: Path, form: Form, dtype: torch.dtype, shard_size: str) -> None:
    """Write safetensors files, holding one shard in memory at a time, and an index when there are several."""
    from huggingface_hub import split_torch_state_dict_into_shards

    with torch.device("meta"):
        shapes = {name: torch.empty(value.shape, dtype=dtype) for name, value in _named(net, form)}
    plan = split_torch_state_dict_into_shards(shapes, max_shard_size=shard_size)
    for file, names in plan.filename_to_tensors.items():
        wanted = set(names)
        values = {name: value.to(dtype).contiguous() for name, value in _named(net, form) if name in wanted}
        save_file(values, folder / file, metadata={"format": "pt"})
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        _write_json(folder / "model.safetensors.index.json", index)


def _named(net: LanguageModel, form: Form) -> Iterator[tuple[str, Tensor]]:
    """Yield the weights under the names that the folder uses."""
    llama = llama_names(net.config)
    for name, parameter in net.named_parameters():
        if form == "memtrain":
            yield f"net.{name}", parameter.detach()
        elif name in llama:
            yield from split(name, parameter, net.config)


def _config(trained: LoadedModel, form: Form, dtype: str) -> dict[str, Any]:
    model = trained.net.config
    if form == "llama":
        return to_llama(model, _exact_tokens(trained), dtype)
    from model.hf.bundle import CONFIGURATION, MODELING

    if not trained.net.memory_on:
        model = model.model_copy(update={"memory": NoMemoryConfig(), "explicit": None})
    return {
        "architectures": ["MemtrainForCausalLM"],
        "auto_map": {
            "AutoConfig": f"{CONFIGURATION}.MemtrainConfig",
            "AutoModelForCausalLM": f"{MODELING}.MemtrainForCausalLM",
        },
        "model_type": "memtrain",
        "model": model.model_dump(mode="json"),
        "tie_word_embeddings": model.tie_embeddings,
        "torch_dtype": dtype,
    }


def _exact_tokens(trained: LoadedModel) -> int:
    """Return the text length up to which a plain Llama has the model's logits.

    A plain Llama attends to the whole text, this model to `attention_span` segments.
    """
    model = trained.net.config
    return min(model.attention_span * model.segment_length, trained.config.data.sequence_length)


def _prove(trained: LoadedModel, folder: Path, form: Form, dtype: str, tolerance: float) -> Exported:
    """Load the written folder with Transformers, and compare its logits with the model's.

    Raises `TrainingError` when they differ by more than `tolerance`.
    """
    net, segment = trained.net, trained.net.config.segment_length
    if form == "llama":
        lengths = [min(_PROVEN, _exact_tokens(trained))]
        net = without_memory(net)
    else:  # covers whole segments, an unfinished one, single tokens, and two segment boundaries
        lengths = [segment + (segment + 1) // 2, 1, segment, 1]
    theirs = load_in_transformers(folder, runs_its_code=True)  # code that this function's caller has just written
    rounding = 0.0
    if DTYPES[dtype] != torch.float32:
        rounding = largest_difference(net, theirs, lengths)
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.copy_(parameter.to(DTYPES[dtype]))
    difference = largest_difference(net, theirs, lengths)
    check_difference(difference, tolerance, f"{trained.path}: the exported model computes other logits")
    left_out = sum(p.numel() for _, p in trained.net.memory_parameters()) if form == "llama" else 0
    exact = _exact_tokens(trained) if form == "llama" else None
    total = sum(p.numel() for p in trained.net.parameters()) - left_out
    return Exported(form, difference, rounding, total, left_out, exact)


def without_memory(net: LanguageModel) -> LanguageModel:
    """Return the backbone of `net` with its memory off; the weights are shared."""
    if not net.memory_parameters() and net.explicit is None:
        return net
    with torch.device("meta"):
        plain = LanguageModel(net.config, memory_on=False)
    plain.load_state_dict(net.state_dict(), strict=False, assign=True)
    return plain.eval()


@contextmanager
def _under_a_name_of_its_own(folder: Path) -> Iterator[Path]:
    """Give a link to `folder` with a unique name.

    Transformers copies a folder's code into the user's cache under the folder's name; the copy under the unique name is
    removed at the end.
    """
    from transformers.utils import HF_MODULES_CACHE, TRANSFORMERS_DYNAMIC_MODULE_NAME

    name = f"proof_{uuid.uuid4().hex}"
    with tempfile.TemporaryDirectory() as temporary:
        link = Path(temporary) / name
        link.symlink_to(folder.resolve())
        try:
            yield link
        finally:
            shutil.rmtree(Path(HF_MODULES_CACHE) / TRANSFORMERS_DYNAMIC_MODULE_NAME / name, ignore_errors=True)


def _prove_tokenizer(tokenizer: Tokenizer, folder: Path, runs_its_code: bool) -> None:
    """Raise `ConfigError` when the written tokenizer gives other ids, decodes to another text or adds no BOS."""
    from transformers import AutoTokenizer

    # the tokenizer needs no code, but Transformers first loads the folder's configuration class
    theirs = AutoTokenizer.from_pretrained(folder, trust_remote_code=runs_its_code)
    for text in _TEXTS:
        ids = tokenizer.encode(text)
        found = theirs(text, add_special_tokens=False).input_ids
        if found != ids or theirs.decode(ids) != tokenizer.decode(ids):
            raise ConfigError(
                f"{tokenizer.path}: {text[:40]!r} has the ids {ids[:40]}, but {found[:40]} in Transformers' form; "
                "export without it: --no-tokenizer"
            )
        if (whole := theirs(text).input_ids) != [tokenizer.bos_id, *ids]:
            raise ConfigError(
                f"{tokenizer.path}: {text[:40]!r} has the ids {whole[:40]} in Transformers' form, but training put bos "
                f"{tokenizer.bos_id} before {ids[:40]}; export without it: --no-tokenizer"
            )


def _write_json(path: Path, content: dict[str, Any]) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
