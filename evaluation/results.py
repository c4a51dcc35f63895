"""The file of an evaluation of one model; a row is a cell of a table."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep.errors import DataError
from data_prep.files import write_text
from evaluation.intervals import wilson

FORMAT: Literal[1] = 1


class Record(BaseModel):
    """An entry of a results file; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(Record):
    """One cell. Fields that its task does not use are None and are not written."""

    task: str = Field(description="babilong/qa1, mmlu/abstract_algebra, perplexity")
    samples: int
    scorer: str = Field(description="babilong: official, exact, corrected; mmlu: likelihood; nats per token")
    length: str | None = Field(None, description="0k, 1k, … 1M: the budget of the samples")
    tokens: int | None = Field(None, description="the budget in tokens; `read` is the samples' actual mean")
    read: float | None = Field(None, description="mean tokens of a sample that the model read, prompt included")
    mode: Literal["prompt", "finetuned"] | None = None
    capability: str | None = None
    category: str | None = None
    level: str | None = None
    shots: int | None = None
    accuracy: float | None = Field(None, description="share of right answers, with its 95 % Wilson interval low, high")
    low: float | None = None
    high: float | None = None
    value: float | None = Field(None, description="of a scorer that is not a share: nats per token")

    @property
    def cell(self) -> tuple[str, str | None]:
        """(task, length), which are evaluated together: the rows of a cell differ only in their scorer."""
        return self.task, self.length


class ModelFacts(Record):
    """The model that was evaluated."""

    name: str
    kind: str = Field(description="label of the memory kind, such as none or lm2-time; then +explicit, +rag")
    parameters: int
    hidden_size: int
    num_layers: int
    segment_length: int
    vocab_size: int
    memory_on: bool


class Results(BaseModel):
    """One evaluation of one checkpoint. Rows are added when they are measured."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = FORMAT
    checkpoint: str
    run: str
    model: ModelFacts
    tokens: int = Field(description="tokens the model was trained on")
    phase: str
    seed: int = Field(description="of the training run; the seed of the samples is in settings")
    device: str
    date: str
    command: str
    settings: dict[str, Any] = Field(default_factory=dict, description="the options that the rows depend on")
    data: dict[str, dict[str, Any]] = Field(default_factory=dict, description="task -> origin of its samples")
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    rows: list[Row] = Field(default_factory=list)
    series: dict[str, dict[str, list[float]]] = Field(default_factory=dict)

    def has(self, task: str, length: str | None = None) -> bool:
        return any(row.cell == (task, length) for row in self.rows)

    def save(self, path: Path) -> None:
        """Write the file atomically."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(self.model_dump(exclude_none=True), indent=1, ensure_ascii=False) + "\n")


def load_results(path: Path) -> Results:
    """Read a file of results. Raises `DataError` naming the file when it is not one."""
    try:
        return Results.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it with launchers/evaluate.py") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path}: is not a result of launchers/evaluate.py, format {FORMAT}: {where}: {first['msg']}; make it again"
        ) from None


def share_row(right: int, samples: int, **fields: Any) -> Row:
    """Return a row with the share of right answers and its Wilson interval."""
    low, high = wilson(right, samples)
    share = right / samples if samples else None
    return Row(accuracy=share, low=low, high=high, samples=samples, **fields)
