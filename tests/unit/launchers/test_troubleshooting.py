"""Every message of docs/troubleshooting.md is provoked and compared with the page."""

import contextlib
import importlib
import json
import logging
import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
import yaml

from launchers._cli import say_error
from tests.unit.training.config_case import TINY
from tests.unit.training.test_checkpoint_files import make
from training.config import dump_yaml, load_config, parse_config
from training.config.sections import FaultConfig
from training.distributed.meeting import meet
from training.distributed.ranks import RankInfo
from training.distributed.topology import check_world
from training.faults.anomalies import AnomalyDetector
from training.monitoring.run_lock import RunLock
from training.reporter import start_tracker

ROOT = Path(__file__).parents[3]
PAGE = (ROOT / "docs/troubleshooting.md").read_text(encoding="utf-8")
MESSAGES = dict(re.findall(r"^### (.+)\n\n```text\n(.+)\n```\n", PAGE, re.MULTILINE))
LAUNCHER_VARIABLES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT")

Provoke = Callable[["Place"], object]


class Place:
    """A folder with data, configurations and runs, as a user has it; commands are typed there."""

    def __init__(self, folder: Path, data: Path, patch: pytest.MonkeyPatch) -> None:
        self.folder, self.data, self.patch = folder, data, patch

    def __call__(self, name: str, *arguments: str) -> None:
        """Type a command; what it refuses is on standard error."""
        with contextlib.suppress(SystemExit):  # argparse's
            importlib.import_module(f"launchers.{name}").main(list(arguments))

    def pretrain(self, *overrides: str) -> None:
        self("pretrain", "--config", "tiny.yaml", *overrides)

    def prepare(self, **settings: object) -> None:
        """Prepare JSON lines with the settings changed."""
        usual = {
            "sources": [{"kind": "jsonl", "path": "corpus/*.jsonl"}],
            "tokenizer": {"path": str(self.data / "tokenizer.model")},
            "workers": 1,
        }
        self("prepare_data", "--config", "tiny.yaml", f"data.prepare={json.dumps(usual | settings)}", "data.path=new")

    def write(self, file: str, text: str) -> None:
        (self.folder / file).parent.mkdir(parents=True, exist_ok=True)
        (self.folder / file).write_text(text, encoding="utf-8")

    def call(self, raises: Callable[[], object]) -> None:
        """Print an error as a command does."""
        try:
            raises()
        except (ValueError, RuntimeError) as error:
            say_error(error)


@pytest.fixture
def place(tmp_path: Path, prepared_data: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Place]:
    for name in LAUNCHER_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.chdir(tmp_path)
    run = TINY | {"data": {"path": str(prepared_data), "sequence_length": 64}, "tracking": {"enabled": False}}
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(run), encoding="utf-8")
    yield Place(tmp_path, prepared_data, monkeypatch)
    logging.captureWarnings(False)  # as it was before a run looked for its log


# -- what provokes each message ----------------------------------------------------------------------------------------


def a_folder_of_other_settings(place: Place) -> None:
    place.write("corpus/a.jsonl", '{"text": "a document of some words"}\n')
    place.write("corpus/b.jsonl", '{"text": "another document, of other words"}\n')
    place.prepare(valid_fraction=0)
    place.prepare(valid_fraction=0.5)


def a_port_in_use(place: Place, *overrides: str) -> None:
    with socket.socket() as taken:
        taken.bind(("0.0.0.0", 0))
        taken.listen()
        variables = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1"}
        for name, value in (variables | {"MASTER_PORT": str(taken.getsockname()[1])}).items():
            place.patch.setenv(name, value)
        place.pretrain(*overrides)


def half_of_the_variables(place: Place) -> None:
    place.patch.setenv("RANK", "0")
    place.pretrain()


def more_ranks_than_gpus(place: Place) -> None:
    place.patch.setattr(torch.cuda, "is_available", lambda: True)  # as on a machine with one GPU
    place.patch.setattr(torch.cuda, "device_count", lambda: 1)
    place.call(lambda: check_world(load_config(Path("tiny.yaml")), RankInfo(1, 2, 1)))


def ranks_that_do_not_meet(place: Place) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    place.call(lambda: meet(RankInfo(1, 2, 1, "127.0.0.1", port), 0.5))


def a_loss_that_rises_again(place: Place) -> None:
    detector = AnomalyDetector(FaultConfig(rollbacks=1))
    detector.roll_back(20, back_to=10)
    place.call(lambda: detector.roll_back(20, back_to=10))


def a_run_of_another_configuration(place: Place) -> None:
    place.write("runs/tiny/config.yaml", dump_yaml(load_config(Path("tiny.yaml"))))
    place.pretrain("model.ffn_size=128")


def a_folder_that_is_no_run(place: Place) -> None:
    place.write("runs/tiny/notes.txt", "mine")
    place.pretrain()


def a_run_that_is_being_trained(place: Place) -> None:
    lock = RunLock.take(place.folder / "runs/tiny")
    try:
        a_port_in_use(place)
    finally:
        lock.release()


def no_checkpoint(place: Place) -> None:
    place.write("runs/tiny/config.yaml", "")
    place("generate", "--checkpoint", "runs/tiny", "--prompt", "x")


def a_damaged_checkpoint(place: Place) -> None:
    path = make(place.folder, 10) / "__0_0.distcp"
    content = bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    place("checkpoint", "verify", str(path.parent))


def no_slurm(place: Place) -> None:
    place.patch.setenv("PATH", str(place.folder))
    place("submit", "--config", "tiny.yaml", "--cluster", "local")


def a_run_without_its_server(place: Place) -> None:
    place.patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    config = load_config(Path("tiny.yaml"), ["tracking.enabled=true", "tracking.uri=http://127.0.0.1:9"])
    lock = RunLock.take(config.run.folder)
    place.call(lambda: start_tracker(config, 1, lock))
    lock.discard()


def no_server_for_mlflow_sync(place: Place) -> None:
    place.write("runs/tiny/config.yaml", dump_yaml(parse_config(TINY)))
    place.patch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    place("mlflow_sync", "runs/tiny", "--uri", "http://127.0.0.1:9")


def a_folder_to_write_that_exists(place: Place) -> None:
    place.write("there/file", "")
    place("checkpoint", "copy", str(make(place.folder, 10)), "there")


def a_folder_without_weights(place: Place) -> None:
    place.write("gpt/config.json", json.dumps({"model_type": "gpt2"}))
    place("import_hf", "gpt")


def samples_longer_than_the_data(place: Place) -> None:
    place.pretrain("data.sequence_length=1048576", *(f"phases.{n}.tokens_per_step=1048576" for n in (0, 1)))


def no_tokenizer(place: Place) -> None:
    place.write("corpus/a.jsonl", '{"text": "whole"}\n')
    place.write("own.model", "no model")
    place.prepare(tokenizer={"path": "own.model"})


def of_a_file(file: str, text: str, **settings: object) -> Provoke:
    def provoke(place: Place) -> None:
        place.write(file, text)
        place.prepare(**settings)

    return provoke


FEW_WORDS = "hello world\n" * 50
PROVOKED: dict[str, Provoke] = {
    "The configuration file does not exist": lambda place: place("plan", "--config", "nothere.yaml"),
    "Unknown configuration name": lambda place: place("pretrain", "--config", "quickstrat"),
    "Unknown key": lambda place: place.pretrain("training.micro_batchsize=2"),
    "An override with dashes": lambda place: place.pretrain("--training.precision=bf16"),
    "An override without a value": lambda place: place.pretrain("training.precision"),
    "A size that tensor ranks cannot share": lambda place: place.pretrain("parallel.tensor=2", "model.memory.heads=1"),
    "A step that is not whole micro-batches": lambda place: place.pretrain("training.micro_batch_size=3"),
    "Nothing says what to prepare": lambda place: place("prepare_data", "--config", "tiny.yaml"),
    "No file in a source": lambda place: place.prepare(sources=[{"kind": "jsonl", "path": "none/*.jsonl"}]),
    "A damaged line": of_a_file("corpus/a.jsonl", '{"text": "whole"}\n{"text": "broken\n'),
    "A text field of another name": of_a_file("corpus/a.jsonl", '{"content": "whole"}\n'),
    "A folder of other settings": a_folder_of_other_settings,
    "The data are not prepared": lambda place: place.pretrain("data.path=nowhere"),
    "Samples longer than the data": samples_longer_than_the_data,
    "A vocabulary smaller than the tokenizer": lambda place: place.pretrain("model.vocab_size=500"),
    "More pieces than the text has": of_a_file(
        "corpus/a.txt",
        FEW_WORDS,
        sources=[{"kind": "text", "path": "corpus/a.txt"}],
        tokenizer={"vocab_size": 5000},
        valid_fraction=0,
    ),
    "No tokenizer file": no_tokenizer,
    "Ranks that do not fit the topology": lambda place: place.pretrain("parallel.tensor=2"),
    "Half of a launcher's variables": half_of_the_variables,
    "The port is in use": a_port_in_use,
    "More ranks than GPUs": more_ranks_than_gpus,
    "Ranks that do not meet": ranks_that_do_not_meet,
    "The loss spikes again": a_loss_that_rises_again,
    "A run of another configuration": a_run_of_another_configuration,
    "A folder without a run": a_folder_that_is_no_run,
    "The run is being trained": a_run_that_is_being_trained,
    "No checkpoint there": no_checkpoint,
    "A damaged checkpoint": a_damaged_checkpoint,
    "Unknown cluster profile": lambda place: place("submit", "--config", "tiny.yaml", "--cluster", "ours"),
    "No Slurm on this machine": no_slurm,
    "The tracking server does not answer a run": a_run_without_its_server,
    "The tracking server does not answer mlflow_sync": no_server_for_mlflow_sync,
    "A folder without weights": a_folder_without_weights,
    "The folder to write exists": a_folder_to_write_that_exists,
    "An unknown task": lambda place: place("evaluate", "--checkpoint", "runs/tiny", "--tasks", "babylong"),
    "An unknown length": lambda place: place("evaluate", "--checkpoint", "runs/tiny", "--lengths", "4q"),
    "BABILong without bAbI": lambda place: place(
        "babilong", "--part", "test", "--data", str(place.data), "--babi", "nowhere", "--output", "out"
    ),
    "The report finds no run": lambda place: place("report", "runs/none"),
}


def test_every_entry_of_the_page_has_a_message_and_a_way_out() -> None:
    headings = re.findall(r"^### (.+)$", PAGE, re.MULTILINE)
    assert len(headings) >= 25
    assert len(set(headings)) == len(headings)
    assert list(MESSAGES) == headings
    assert set(PROVOKED) == set(headings)
    assert PAGE.count("\n**Way out:** ") == len(headings)


@pytest.mark.parametrize("title", MESSAGES)
def test_the_message_of_the_page_is_what_is_printed(
    title: str, place: Place, capfd: pytest.CaptureFixture[str]
) -> None:
    PROVOKED[title](place)
    printed = capfd.readouterr().err.strip()
    words = re.split(r"<[a-z ]+>", MESSAGES[title])
    assert sum(map(len, words)) >= 20, "a placeholder for everything compares nothing"
    assert re.fullmatch(".+?".join(map(re.escape, words)), printed), printed
