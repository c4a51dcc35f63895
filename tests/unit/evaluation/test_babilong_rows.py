"""Rows of exercises made on the spot, and what people mistype when they ask for exercises."""

import re
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from data_prep import DataError
from data_prep.tokenizers.tokenizer import Tokenizer
from evaluation.babilong.background import Background
from evaluation.babilong.encoding import SentenceEncoder
from evaluation.babilong.material import Material
from evaluation.babilong.recipe import ExerciseMaker, Places, Recipe
from evaluation.babilong.rows import BLOCK, Row, RowMaker, rows_by_processes, stream_of_rows
from evaluation.babilong.world import answer
from launchers import babilong
from tests.unit.evaluation.babilong_material import TASKS, told

ALL = dict.fromkeys(TASKS, 1.0)
FACT = re.compile(r"\b[A-Z][a-z]+ [^.A-Z]*(?:[A-Z][a-z]+)?\.")


class TestRows:
    RECIPE = Recipe(ALL, {"single": 1, "dense": 2}, noise={0: 1, 100: 1})

    @pytest.mark.parametrize(("seed", "length"), [(0, 160), (1, 255), (2, 700)])
    def test_answers_and_their_ends_are_learned_and_nothing_else(
        self, seed: int, length: int, material: Material, background: Background, tokenizer: Tokenizer
    ) -> None:
        rows = list(islice(stream_of_rows(seed, self.RECIPE, material, tokenizer, length, background), BLOCK))
        filled = 0
        for row in rows:
            assert row.tokens.shape == row.document_ids.shape == (length + 1,)
            assert (row.tokens.dtype, row.loss_mask.shape, row.loss_mask.dtype) == ("uint16", (length,), bool)
            learned = np.concatenate([[False], row.loss_mask])
            for number in range(row.document_ids.max() + 1):
                mine = row.document_ids == number
                tokens = row.tokens[mine].tolist()
                if tokens[0] != tokenizer.bos_id:  # what stays free
                    assert set(tokens) == {tokenizer.eos_id}
                    assert not learned[mine].any()
                    assert number == row.document_ids.max()
                    continue
                filled += len(tokens)
                self._check(tokens, learned[mine].tolist(), tokenizer)
        assert filled / (len(rows) * (length + 1)) > 0.8

    def _check(self, tokens: list[int], learned: list[bool], tokenizer: Tokenizer) -> None:
        facts: tuple[str, ...] = ()
        place = 1
        while place < len(tokens):
            begin = learned.index(True, place)
            end = tokens.index(tokenizer.eos_id, begin)
            assert all(learned[begin : end + 1])
            *context, question, rest = tokenizer.decode(tokens[place:begin]).split("\n")
            assert rest == ""
            facts += told(tuple(FACT.findall(" ".join(context))))
            assert answer(facts, question) == tokenizer.decode(tokens[begin:end])
            place = end + 1
            assert not any(learned[place : place + 1])
        assert learned[-1]

    def test_are_a_function_of_seed_and_block(
        self, material: Material, background: Background, tokenizer: Tokenizer
    ) -> None:
        def rows(seed: int, **options: int) -> list[bytes]:
            stream = stream_of_rows(seed, self.RECIPE, material, tokenizer, 255, background, **options)
            return [_bytes(row) for row in islice(stream, 2 * BLOCK)]

        both = rows(0)
        assert both == rows(0)
        assert not set(both) & set(rows(1))
        assert rows(0, worker=1, workers=2)[:BLOCK] == both[BLOCK:]
        assert rows(0, first_block=1)[:BLOCK] == both[BLOCK:]

    def test_tasks_have_their_share_of_the_tokens(self, tokenizer: Tokenizer) -> None:
        recipe = Recipe({"qa4": 1.0, "qa5": 3.0, "qa1": 0.0}, simulated=1, share_of="tokens")
        qa4 = everything = 0
        for row in islice(stream_of_rows(0, recipe, Material(), tokenizer, 700), BLOCK):
            for number in range(row.document_ids.max() + 1):
                text = tokenizer.decode(row.tokens[row.document_ids == number].tolist())
                qa4 += len(text) * text.startswith("The ")
                everything += len(text)
        assert 0.2 < qa4 / everything < 0.3

    def test_processes_make_the_same(
        self, places: Places, material: Material, background: Background, tokenizer: Tokenizer
    ) -> None:
        one = stream_of_rows(5, self.RECIPE, material, tokenizer, 255, background)
        two = rows_by_processes(5, self.RECIPE, places, 255, 2)
        assert [_bytes(row) for row in islice(one, 3 * BLOCK)] == [_bytes(row) for row in islice(two, 3 * BLOCK)]
        two.close()  # type: ignore[attr-defined]  # a generator

    def test_a_row_too_short_for_any_exercise_is_named(self, tokenizer: Tokenizer) -> None:
        maker = ExerciseMaker(Recipe(ALL, simulated=1), Material(), SentenceEncoder(tokenizer), None)
        with pytest.raises(DataError, match="row_length is 4: no exercise fits"):
            RowMaker(maker, 4, 0).block(0)


def _bytes(row: Row) -> bytes:
    return b"".join(np.ascontiguousarray(part).tobytes() for part in row)


class TestMistakes:
    @pytest.mark.parametrize(
        ("settings", "message"),
        [
            ({"tasks": {"qa1": -1.0}}, "tasks: shares are .* none may be below 0"),
            ({"tasks": ALL, "noise": {100: 0.0}}, "noise: shares are .* one must be above"),
            ({"tasks": {"qa7": 1.0}}, "tasks: qa7 has no dense stories"),
            ({"tasks": ALL, "simulated": 1.5}, "simulated: is 1.5; a share is from 0 to 1"),
            ({"tasks": ALL, "asked": 0.0}, "asked: is 0"),
        ],
    )
    def test_of_a_recipe_are_named(self, settings: dict, message: str) -> None:
        with pytest.raises(DataError, match=message):
            Recipe(**settings)

    def test_noise_needs_books(self, tokenizer: Tokenizer) -> None:
        with pytest.raises(DataError, match="--background: is missing, but the recipe has noise"):
            ExerciseMaker(Recipe(ALL, noise={100: 1}), Material(), SentenceEncoder(tokenizer), None)

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
            (["--babi", "NOWHERE"], "--babi: NOWHERE is no folder"),
            (["--background", "NOWHERE"], "--background: NOWHERE is neither a text file"),
            (["--part", "test", "--form", "dense"], "--form: is for --part train"),
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
