"""Memory kinds of installed packages, which name them as entry points of the group `memtrain.memory_kinds`."""

from importlib.metadata import EntryPoint, entry_points

from model.errors import ModelError
from model.memory.spec import REQUIRED, MemoryConfig

GROUP = "memtrain.memory_kinds"


def kinds() -> list[str]:
    """Return the names of the installed kinds, without importing them."""
    return sorted({point.name for point in entry_points(group=GROUP)})


def load(kind: str) -> type[MemoryConfig]:
    """Return the class of the installed kind `kind`.

    Raises `ModelError` naming the package when two packages bring the kind, or the entry point names no usable class.
    """
    points = list(entry_points(group=GROUP, name=kind))
    if len(points) > 1:
        packages = " and ".join(_package(point) for point in points)
        raise ModelError(f"memory.kind '{kind}': the packages {packages} both bring one; uninstall one of them")
    (point,) = points
    try:
        found = point.load()
    except Exception as error:  # importing another package can raise anything
        raise ModelError(
            f"memory.kind '{kind}': {point.value} of the package {_package(point)} cannot be imported "
            f"({type(error).__name__}: {error}); repair or uninstall that package"
        ) from error
    if not (isinstance(found, type) and issubclass(found, MemoryConfig) and found.selects.get("kind") == kind):
        raise ModelError(
            f"memory.kind '{kind}': {point.value} of the package {_package(point)} must be a subclass of "
            f"model.memory.spec.MemoryConfig whose `selects` begins with kind '{kind}'"
        )
    missing = [name for name in REQUIRED if getattr(found, name) is getattr(MemoryConfig, name)]
    if missing:
        raise ModelError(
            f"memory.kind '{kind}': {point.value} of the package {_package(point)} lacks the methods "
            f"{', '.join(missing)}; define them as model.memory.spec.MemoryConfig describes them"
        )
    return found


def _package(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.module
