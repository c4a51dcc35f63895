"""The file an evaluation writes: one model, a row a cell of a table."""

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from data_prep.errors import DataError
from data_prep.files import write_text
from evaluation.intervals import wilson

FORMAT: Literal[1] = 1


class Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Row(Record):
    """One cell. Fields that mean nothing to its task are None and are not written."""

    task: str = Field(description="babilong/qa1, mmlu/abstract_algebra, perplexity")
    samples: int
    scorer: str = Field(description="babilong: official, exact, corrected; mmlu: likelihood; nats per token")
    length: str | None = Field(None, description="0k, 1k, … 1M: the budget the samples were made for")
    tokens: int | None = Field(None, description="that budget in tokens; what the samples held on average is `read`")
    read: float | None = Field(None, description="tokens the model read, mean of the samples, prompt included")
    mode: Literal["prompt", "finetuned"] | None = None
    capability: str | None = None
    category: str | None = None
    level: str | None = None
    shots: int | None = None
    accuracy: float | None = Field(None, description="share of right answers, with its 95 % Wilson interval low, high")
    low: float | None = None
    high: float | None = None
    value: float | None = Field(None, description="of a scorer that is no share: nats per token")

    @property
    def cell(self) -> tuple[str, str | None]:
        """What is evaluated at once: the rows of a cell differ in their scorer alone."""
        return self.task, self.length


class ModelFacts(Record):
    """What was evaluated."""

    name: str
    kind: str = Field(description="label of the memory kind, such as none or lm2-time; then +explicit, +rag")
    parameters: int
    hidden_size: int
    num_layers: int
    segment_length: int
    vocab_size: int
    memory_on: bool


class Results(BaseModel):
    """One evaluation of one checkpoint. Rows are added as they are measured."""

    model_config = ConfigDict(extra="forbid")

    format: Literal[1] = FORMAT
    checkpoint: str
    run: str
    model: ModelFacts
    tokens: int = Field(description="tokens the model was trained on")
    phase: str
    seed: int = Field(description="of the training run; the samples' own is in settings")
    device: str
    date: str
    command: str
    settings: dict[str, Any] = Field(default_factory=dict, description="what the rows depend on, beside the model")
    data: dict[str, dict[str, Any]] = Field(default_factory=dict, description="task -> where its samples come from")
    tokens_per_second: float | None = None
    peak_memory_bytes: int | None = None
    rows: list[Row] = Field(default_factory=list)
    series: dict[str, dict[str, list[float]]] = Field(default_factory=dict)

    def has(self, task: str, length: str | None = None) -> bool:
        return any(row.cell == (task, length) for row in self.rows)

    def save(self, path: Path) -> None:
        """Write the file whole, or leave what was there."""
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(self.model_dump(exclude_none=True), indent=1, ensure_ascii=False) + "\n")


def load_results(path: Path) -> Results:
    """Read one; raises `DataError` that names the file when it is none."""
    try:
        return Results.model_validate_json(path.read_bytes())
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror}); make it with launchers/evaluate.py") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DataError(
            f"{path}: is no result of launchers/evaluate.py of format {FORMAT}: {where}: {first['msg']}; evaluate again"
        ) from None


def share_row(right: int, samples: int, **fields: Any) -> Row:
    """A row of a share of right answers, with its interval."""
    low, high = wilson(right, samples)
    share = right / samples if samples else None
    return Row(accuracy=share, low=low, high=high, samples=samples, **fields)
