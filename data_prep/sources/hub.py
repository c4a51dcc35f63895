"""Read data sets by name, with the optional package `datasets`."""

from typing import Any

from data_prep.config import SourceConfig
from data_prep.errors import DataError
from data_prep.sources.formats import Records
from data_prep.sources.places import InputFile
from data_prep.sources.problems import Problems
from data_prep.suggest import did_you_mean

_PART = "#part="


def _load(source: SourceConfig) -> Any:
    try:
        import datasets
    except ImportError as error:
        raise DataError(
            f"sources.kind: hf needs the package datasets ({error}): pip install 'memtrain[hf]', or read the files "
            "themselves: kind: parquet, path: hf://datasets/OWNER/NAME/**/*.parquet"
        ) from error
    try:
        return datasets.load_dataset(str(source.path), source.subset, split=source.subset_split, streaming=True)
    except Exception as error:  # the library raises many kinds
        raise DataError(
            f"sources.path: data set {source.path} (subset {source.subset}, split {source.subset_split}) cannot be "
            f"opened ({error}); check the name, and that this machine can reach the hub"
        ) from error


def hub_parts(source: SourceConfig) -> list[InputFile]:
    """Returns the parts of a data set, each as a "file" of unknown size."""
    parts = int(_load(source).num_shards)
    return [InputFile(f"{source.path}{_PART}{number:05d}", 0) for number in range(parts)]


def is_hub_part(file: InputFile) -> bool:
    """Whether the file is a part that `hub_parts` made."""
    return _PART in file.name


def read_hub(source: SourceConfig, part: InputFile, problems: Problems) -> Records:
    """Yields the records of one part."""
    number, data = int(part.name.rpartition(_PART)[2]), _load(source)
    for row, record in enumerate(data.shard(num_shards=data.num_shards, index=number), start=1):
        origin = f"{part.name}:{row}"
        text = record.get(source.text_field)
        if source.text_field not in record:
            hint = did_you_mean(source.text_field, record)
            problems.bad(f"{origin}: row has no column {source.text_field!r}{hint}", "set text_field")
        elif text is not None and not isinstance(text, str):
            problems.bad(f"{origin}: {source.text_field!r} is a {type(text).__name__}; it must be a string")
        else:
            yield text or "", origin, 0
