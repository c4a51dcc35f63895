"""What people mistype when they ask for exercises."""

from pathlib import Path

import pytest

from data_prep import DataError
from data_prep.tokenizers.tokenizer import Tokenizer
from evaluation.babilong.encoding import SentenceEncoder
from evaluation.babilong.material import Material
from evaluation.babilong.recipe import ExerciseMaker, Places, Recipe
from launchers import babilong
from tests.unit.evaluation.babilong_material import TASKS


class TestMistakes:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"tasks": TASKS, "forms": {"dense": -1.0}}, "forms: shares are .* none may be below 0"),
            ({"tasks": TASKS, "noise": {100: 0.0}}, "noise: shares are .* one must be above"),
            ({"tasks": ("qa7",)}, "tasks: qa7 has no dense stories"),
            ({"tasks": TASKS, "simulated": 1.5}, "simulated: is 1.5; a share is from 0 to 1"),
            ({"tasks": TASKS, "asked": 0.0}, "asked: is 0"),
        ],
    )
    def test_of_a_recipe_are_named(self, settings: dict, message: str) -> None:
        with pytest.raises(DataError, match=message):
            Recipe(**settings)

    def test_noise_needs_books(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(DataError, match="--background: is missing, but the recipe has noise"):
            ExerciseMaker(Recipe(TASKS, noise={100: 1}), Material(), SentenceEncoder(tokenizer), None)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            (["--form", "dens"], "--form: 'dens' is not one of single, story, dense"),
            (["--form", "dense=x"], "--form: 'x' is not a number"),
            (["--noise", "many=1"], "--noise: 'many' is not a number of tokens"),
            (["--permute"], "--permute: exchanges names in the stories of bAbI's files; pass --babi"),
            (["--workers", "0"], "--workers: 0 must be at least 1"),
            (["--tasks", "qa7", "--form", "dense"], "qa7 has no dense stories"),
            (["--lengths", "4", "--tasks", "qa3"], "no story of qa3 fits into 4 tokens"),
            (["--lengths", "0k,8", "--tasks", "qa3"], "no story of qa3 fits into 8 tokens"),
            (["--lengths", "shrt"], "--lengths: 'shrt' is no length; write"),
            (["--babi", "NOWHERE"], "--babi: NOWHERE is no folder"),
            (["--background", "NOWHERE"], "--background: NOWHERE is neither a text file"),
            (["--part", "test", "--form", "dense"], "--form: is for --part train"),
            (["--part", "test", "--lengths", "short"], "--lengths: 'short' is no length"),
        ],
    )
    def test_of_the_command_write_nothing(
        self, places: Places, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
    ) -> None:
        output = tmp_path / "out"
        given = ["--part", "train", "--tokenizer", str(places.tokenizer), "--output", str(output), "--samples", "3"]
        assert babilong.main([*given, *options]) == 2
        assert message in capsys.readouterr().err
        assert not output.exists()
