"""Whatever happens to a prepared folder is found and named before a token of it is trained on."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data_prep import DataError, Manifest, PreparedFolder, TokenStream
from tests.unit.data_prep.data_folder import write_folder

LENGTH = 16
SIZES = {"web": [300, 5, 700, 40, 900, 60, 800], "books": [40] * 20}
# The same names and as many tokens, but other ones: what a run with another tokenizer leaves.
FOREIGN = {"books": [40] * 20, "web": [300, 5, 700, 40, 900, 60, 800]}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("damage")
    for name, sizes in {"good": SIZES, "foreign": FOREIGN}.items():
        (root / name).mkdir()
        write_folder(root / name, sizes)
    return root / "good", root / "foreign"


def flip(path: Path, place: float, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= 1 << bit
    path.write_bytes(content)


def truncate(path: Path, place: float, bit: int) -> None:
    path.write_bytes(path.read_bytes()[: int(place * path.stat().st_size)])


def delete(path: Path, place: float, bit: int) -> None:
    path.unlink()


def grow(path: Path, place: float, bit: int) -> None:
    path.write_bytes(path.read_bytes() + bytes(1 + bit))


def read_everything(folder: Path) -> dict[str, int]:
    """Reads one sample after the other, as training does; shard -> samples that were read from it."""
    stream = TokenStream(folder, sequence_length=LENGTH, seed=0)
    read: dict[str, int] = {}
    for g in range(len(stream)):
        name = stream.describe(g).shard
        try:
            stream.batch([g])
        except DataError as error:
            assert name in str(error)
            raise
        read[name] = read.get(name, 0) + 1
    return read


damages = st.sampled_from([flip, truncate, delete, grow])
names = st.sampled_from(
    ["train-web-00000.arrow", "train-web-00001.arrow", "train-books-00000.arrow", "tokenizer.model"]
)


@settings(max_examples=80, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(damage=damages, name=names, place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_damaged_file_is_named_before_it_is_used(
    folders: tuple[Path, Path],
    tmp_path: Path,
    damage: Callable[[Path, float, int], None],
    name: str,
    place: float,
    bit: int,
) -> None:
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders[0], folder)
    damage(folder / name, place, bit)
    with pytest.raises(DataError, match=name):
        read_everything(folder)
    with pytest.raises(DataError, match=name):
        PreparedFolder(folder).verify()


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_damaged_manifest_is_refused_or_says_the_same(
    folders: tuple[Path, Path], tmp_path: Path, place: float, bit: int
) -> None:
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(folders[0], folder)
    flip(folder / "manifest.json", place, bit)
    try:
        manifest = Manifest.load(folder)
    except DataError as error:
        assert str(folder) in str(error)
    else:
        assert manifest == Manifest.load(folders[0])


@pytest.mark.parametrize("name", ["train-web-00000.arrow", "train-web-00001.arrow", "train-books-00000.arrow"])
def test_shard_of_another_tokenizer_is_refused(folders: tuple[Path, Path], tmp_path: Path, name: str) -> None:
    good, foreign = folders
    folder = Path(shutil.copytree(good, tmp_path / "copy"))
    assert (foreign / name).stat().st_size == (good / name).stat().st_size  # so that only the bytes tell
    shutil.copyfile(foreign / name, folder / name)
    with pytest.raises(DataError, match=rf"{name}: shard is damaged: its checksum is"):
        read_everything(folder)


def test_swapped_shards_are_refused(folders: tuple[Path, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(folders[0], tmp_path / "copy"))
    one, two = folder / "train-web-00000.arrow", folder / "train-books-00000.arrow"
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    with pytest.raises(DataError, match=r"train-web-00000\.arrow: shard has"):
        TokenStream(folder, sequence_length=LENGTH, seed=0)


def test_whole_folder_reads(folders: tuple[Path, Path]) -> None:
    read = read_everything(folders[0])
    assert set(read) == {"train-web-00000.arrow", "train-web-00001.arrow", "train-books-00000.arrow"}
    assert sum(read.values()) == len(TokenStream(folders[0], sequence_length=LENGTH, seed=0))
