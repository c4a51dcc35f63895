"""Loads the weights of a Hugging Face folder at the start of a phase: of a Llama, or of this project's export.

Only safetensors and JSON are read; nothing in the folder is executed.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from data_prep.files import parse_json
from model.config import ModelConfig
from model.errors import ModelError
from model.hub import check_fit, check_shapes, fuse, llama_names
from model.llama_config import differences
from model.network import LanguageModel, is_memory_name
from model.parallel import TensorParallel
from training.checkpoint.manifest import plain_name
from training.errors import ConfigError

INDEX = "model.safetensors.index.json"
OURS = "net."  # prefix of canonical names in an exported folder that has a memory
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
_PLAIN = ("F64", "F32", "F16", "BF16")  # names in safetensors of dtypes that are not quantised
_AT_ONCE = 1 << 30  # bytes of weights that a rank holds at a time while it loads


class WeightFolder:
    """The weights of a folder, read by name one at a time.

    Methods raise `ConfigError` that names the configuration field `field` and the file.
    """

    def __init__(self, folder: Path, field: str) -> None:
        self.folder, self.field = folder, field
        self._files: dict[str, Path] = {}
        self.shapes: dict[str, tuple[int, ...]] = {}
        self._kinds: dict[str, str] = {}  # safetensors' names of dtypes
        for path in self._paths():
            with self._open(path) as file:
                for name in file.keys():  # noqa: SIM118  # no dictionary
                    part = file.get_slice(name)
                    self._files[name], self.shapes[name] = path, tuple(part.get_shape())
                    self._kinds[name] = part.get_dtype()
        self.ours = f"{OURS}embedding.weight" in self.shapes  # written by launchers/export.py

    def __enter__(self) -> "WeightFolder":
        self._stack = ExitStack()
        self._open_files: dict[Path, Any] = {}
        return self

    def __exit__(self, *_error: object) -> None:
        self._stack.close()

    def read(self, name: str) -> Tensor:
        """Return one whole weight in the folder's dtype; only inside the context of this object."""
        path = self._files[name]
        if path not in self._open_files:
            self._open_files[path] = self._stack.enter_context(self._open(path))
        return self._open_files[path].get_tensor(name)

    def check_plain(self) -> None:
        """Raise `ModelError` when weights are quantised, that is stored in another dtype than floats."""
        coded = sorted(name for name, kind in self._kinds.items() if kind not in _PLAIN)
        if coded:
            raise ModelError(
                f"{len(coded)} weights are quantised ({coded[0]} is {self._kinds[coded[0]]}), which are not supported; "
                f"use a folder with weights in {', '.join(_PLAIN)}"
            )

    def check_head(self) -> None:
        """Raise `ModelError` when the stored head differs from the embedding, which a tied model uses as its head."""
        if HEAD not in self.shapes or EMBEDDING not in self.shapes:
            return  # a missing embedding is reported with the other missing weights
        shape = self.shapes[EMBEDDING]
        same = len(shape) == 2 and self.shapes[HEAD] == shape
        if same:
            embedding, head = (self._open(self._files[name]).get_slice(name) for name in (EMBEDDING, HEAD))
            step = max(1, _AT_ONCE // (8 * max(1, shape[1])))
            starts = range(0, shape[0], step)
            same = all(torch.equal(embedding[at : at + step], head[at : at + step]) for at in starts)
        if not same:
            raise ModelError(
                f"tie_word_embeddings is true, but the stored {HEAD} differs from {EMBEDDING}, and would be dropped; "
                "if the head was trained, set tie_word_embeddings: false in config.json and tie_embeddings: false "
                f"here, else remove {HEAD}"
            )

    @property
    def config(self) -> dict[str, Any] | None:
        """The content of config.json; None when the folder has none."""
        path = self.folder / "config.json"
        return self._json(path) if path.exists() else None

    def _paths(self) -> list[Path]:
        """Return the files of the weights: those in the index, or the only one."""
        if (index := self.folder / INDEX).is_file():
            named = self._json(index).get("weight_map")
            if not isinstance(named, dict) or not all(isinstance(n, str) and plain_name(n) for n in named.values()):
                raise ConfigError(f"{self.field}: {index} names no files of its folder; fetch it again")
            paths = [self.folder / name for name in sorted(set(named.values()))]
            if missing := [path.name for path in paths if not path.is_file()]:
                raise ConfigError(f"{self.field}: {self.folder} lacks {', '.join(missing[:4])}; fetch the folder again")
            return paths
        found = sorted(self.folder.glob("*.safetensors"))
        if (single := self.folder / "model.safetensors") in found:
            return [single]
        if len(found) > 1:
            raise ConfigError(f"{self.field}: {self.folder} holds {len(found)} *.safetensors but no {INDEX}; fetch it")
        if not self.folder.is_dir():
            what = "is a file" if self.folder.exists() else "does not exist"
            raise ConfigError(
                f"{self.field}: {self.folder} {what}, so it holds no *.safetensors; give a Hugging Face folder"
            )
        if not found:
            raise ConfigError(f"{self.field}: {self.folder} holds no *.safetensors; give a Hugging Face folder")
        return found

    def _open(self, path: Path) -> Any:
        try:
            return safe_open(path, framework="pt")
        except (OSError, SafetensorError) as error:
            raise ConfigError(
                f"{self.field}: {path} is not a readable safetensors file ({error}); fetch it again"
            ) from None

    def _json(self, path: Path) -> dict[str, Any]:
        try:
            content = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(f"{self.field}: {path} is not readable as JSON ({error}); fetch it again") from None
        if not isinstance(content, dict):
            raise ConfigError(f"{self.field}: {path} is not a JSON object; fetch it again")
        return content


def check_folder(folder: Path, config: ModelConfig, field: str, memory: bool = True) -> None:
    """Check a folder that a phase starts from, reading only headers and, in a tied model, head and embedding.

    Args:
        folder: the folder.
        config: the run's model.
        field: name of the configuration field, for messages.
        memory: whether the phase has memory on.

    Raises:
        ConfigError, ModelError: the folder is unreadable or of another model.
    """
    weights = WeightFolder(folder, field)
    given = weights.config
    try:
        weights.check_plain()
        if weights.ours:
            _check_ours(weights, config, memory)
            problems = _differences_of_ours(given or {}, config)
        else:
            problems = differences(given, config) if given is not None else []
            check_shapes(weights.shapes, config)
            if not problems and config.tie_embeddings:
                weights.check_head()
    except ModelError as error:
        raise ModelError(f"{field}: {folder}: {error}") from None
    if problems:
        raise ConfigError(f"{field}: {folder} is of another model: {'; '.join(problems)}")


def _check_ours(weights: WeightFolder, config: ModelConfig, memory: bool) -> None:
    """Raise `ModelError` when an exported folder's weights do not fit the run's model."""
    given = {name.removeprefix(OURS): shape for name, shape in weights.shapes.items()}
    remembers = any(is_memory_name(name) for name in given)
    if remembers and not memory:
        raise ModelError("it has a memory, which a phase with memory: off would drop; set memory: on")
    with torch.device("meta"):
        net = LanguageModel(config, memory_on=remembers)
    check_fit(given, {name: tuple(p.shape) for name, p in net.named_parameters()}, "the folder's weights do")


def _differences_of_ours(given: dict[str, Any], config: ModelConfig) -> list[str]:
    """Return a sentence for each field in which an exported folder's model differs from `config` in its logits."""
    stored = given.get("model")
    if not isinstance(stored, dict):
        return []
    try:
        given_model = ModelConfig(**stored)
    except ValueError as error:
        raise ModelError(f"config.json: model: {error}") from None
    theirs, ours = given_model.model_dump(), config.model_dump()
    ignored = {"init_std"} | (set() if given_model.memory.exists else {"memory"})
    return [
        f"model.{key} is {ours[key]}, the folder's config.json gives {theirs[key]}"
        for key in theirs
        if key not in ignored and theirs[key] != ours[key]
    ]


def load_folder(
    parameters: dict[str, nn.Parameter],
    folder: Path,
    config: ModelConfig,
    tp: TensorParallel,
    write: Callable[[dict[str, Tensor]], None],
) -> None:
    """Read this rank's slices of the folder's weights and pass them to `write`, at most 1 GiB at a time.

    A memory that the folder does not have keeps its initial values. Each rank reads for itself; `write` may be
    collective.

    Args:
        parameters: the rank's parameters, by canonical name.
        folder: the folder.
        config: the model.
        tp: tensor-parallel group, which determines the slices.
        write: sets weights of this rank, by canonical name, in fp32.

    Raises:
        ConfigError, ModelError: the folder is unreadable or of another model.
    """
    part: dict[str, Tensor] = {}
    held = 0
    for name, whole in _whole_weights(WeightFolder(folder, "init_from"), set(parameters), config):
        part[name] = tp.shard(whole.float(), parameters[name]).clone()  # a view would keep the whole weight in memory
        held += part[name].nbytes
        if held > _AT_ONCE:
            write(part)
            part, held = {}, 0
    write(part)


def _whole_weights(weights: WeightFolder, wanted: set[str], config: ModelConfig) -> Iterator[tuple[str, Tensor]]:
    llama = llama_names(config)
    with weights:
        for name in sorted(wanted):
            if weights.ours and OURS + name in weights.shapes:
                yield name, weights.read(OURS + name)
            elif not weights.ours and name in llama:
                yield name, fuse(name, weights.read, config)
