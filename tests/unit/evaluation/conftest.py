"""Fixtures that the BABILong tests share."""

import pytest

from data_prep import Tokenizer, load_tokenizer
from evaluation.babilong.background import Background, open_background
from evaluation.babilong.material import Material, load_material
from evaluation.babilong.recipe import Places
from tests.unit.evaluation.babilong_material import TASKS, write_places


@pytest.fixture(scope="session")
def places(tmp_path_factory: pytest.TempPathFactory) -> Places:
    return write_places(tmp_path_factory.mktemp("material"))


@pytest.fixture(scope="session")
def tokenizer(places: Places) -> Tokenizer:
    return load_tokenizer(places.tokenizer)


@pytest.fixture(scope="session")
def material(places: Places) -> Material:
    return load_material(places.babi, TASKS)


@pytest.fixture(scope="session")
def background(places: Places) -> Background:
    return open_background(places.books or ())
