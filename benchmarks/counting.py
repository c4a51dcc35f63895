"""What a computation would do on a GPU, counted without one: kernels, bytes of elementwise work, bytes held.

Eager code runs on fake tensors, which have shapes and no numbers; each operation that reaches torch's dispatcher is one
kernel, unless it only returns a view.  Compiled code goes through torch.compile with inductor's own passes and the
scheduler it has for GPUs, which decides what is fused; each node of that schedule is one kernel.  Nothing is executed.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any
from unittest import mock

import torch
import torch._inductor.compile_fx as inductor
from functorch.compile import make_boxed_func  # type: ignore[import-untyped]
from torch import Tensor, fx
from torch._guards import detect_fake_mode
from torch._inductor.debug import DebugContext
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import BaseSchedulerNode, NopKernelSchedulerNode, Scheduler
from torch._inductor.virtualized import V
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addmv", "mv", "dot", "linalg_solve_triangular"}
LOOK_UPS = {"embedding", "gather", "index_select"}  # read as much of their table as they return
OVERWRITES = {"copy_", "zero_", "fill_"}  # do not read what they change
SCATTERS = {"scatter_add_", "index_put_", "index_add_"}  # change no more than their last operand has


@dataclass
class Counts:
    """Kernels of each sort, and what the elementwise ones read and write; other libraries' count as attention's."""

    products: int = 0
    attention: int = 0
    elementwise: int = 0
    bytes: float = 0.0

    @property
    def kernels(self) -> int:
        return self.products + self.attention + self.elementwise

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    def __mul__(self, times: int) -> "Counts":
        return Counts(*(times * value for value in vars(self).values()))

    def note(self, name: str, size: float) -> None:
        """One kernel of the operation `name`, which would read and write `size` bytes."""
        if name in PRODUCTS:
            self.products += 1
        elif "attention" in name or "attn" in name or name.startswith("delta_segment"):
            self.attention += 1
        else:
            self.elementwise += 1
            self.bytes += size


class Eager(TorchDispatchMode):
    """Counts what is computed inside the context, and `peak`: the most bytes it holds at once of what it has made."""

    def __init__(self) -> None:
        super().__init__()
        self.counts, self.peak = Counts(), 0
        self._known: set[int] = set()
        self._alive: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [x for x in tree_leaves((args, kwargs or {})) if isinstance(x, Tensor)]
        out = func(*args, **(kwargs or {}))
        made = [x for x in tree_leaves(out) if isinstance(x, Tensor)]
        name, changes = func._schema.name.split("::")[1], func._schema.is_mutable
        before = {_storage(x) for x in given}
        is_view = not changes and all(_storage(x) in before for x in made)
        if not is_view and not name.startswith(("empty", "new_empty")):
            self.counts.note(name, moved(name, given, made, changes))
        self._hold([x for x in made if _storage(x) not in before])
        return out

    def holds(self, size: int) -> None:
        """Something outside the trace holds `size` bytes now, beside what is held."""
        self.peak = max(self.peak, self._held() + size)

    def _hold(self, made: list[Tensor]) -> None:
        for x in made:
            self._alive[_storage(x)] = (StorageWeakRef(x.untyped_storage()), x.untyped_storage().nbytes())
        self.peak = max(self.peak, self._held())

    def _held(self) -> int:
        self._alive = {key: one for key, one in self._alive.items() if not one[0].expired()}
        return sum(size for _, size in self._alive.values())


def moved(name: str, given: list[Tensor], made: list[Tensor], changes: bool) -> float:
    """Bytes that an operation reads and writes; a number that is read for several others counts once."""
    written = sum(_size(x) for x in made)
    if name in LOOK_UPS:
        return 2 * written + sum(_size(x) for x in given if x.dtype == torch.int64)
    if name in SCATTERS:
        return 3 * _size(given[-1])
    read = given[1:] if changes and name in OVERWRITES else given
    return written + sum(_size(x) for x in {_storage(x): x for x in read}.values())


def _size(x: Tensor) -> int:
    return min(x.numel() * x.element_size(), x.untyped_storage().nbytes())


def _storage(x: Tensor) -> int:
    return int(x.untyped_storage()._cdata)


@dataclass
class Compiled:
    """A backend of torch.compile that schedules what it is given and executes nothing: forward and backward.

    counts: of all graphs so far; inside: the most bytes that a graph makes and does not return.
    """

    counts: Counts = field(default_factory=Counts)
    inside: int = 0

    @contextmanager
    def as_compiler(self) -> Iterator[None]:
        """torch.compile takes this backend for a while."""
        with mock.patch("torch.compile", partial(torch.compile, backend=self)):
            yield

    def __call__(self, graph: fx.GraphModule, inputs: list[Tensor]) -> Any:
        with torch._inductor.config.patch(cpu_backend="triton"):
            return inductor.compile_fx(graph, inputs, inner_compile=self._scheduled)  # type: ignore[arg-type]

    def _scheduled(self, graph: fx.GraphModule, inputs: list[Any], **options: Any) -> Callable[..., Any]:
        fake = detect_fake_mode(inputs)
        assert fake is not None
        inductor.view_to_reshape(graph)
        inductor.record_original_output_strides(graph)
        with V.set_fake_mode(fake), V.set_debug_handler(DebugContext()):
            inductor._recursive_post_grad_passes(graph, is_inference=False)
            backward = bool(options.get("is_backward"))
            lowered = GraphLowering(graph, inputs, fake.shape_env, is_backward=backward)
            with V.set_graph_handler(lowered), V.set_extern_kernel_nodes([]):
                lowered.run(*inputs)
                lowered.init_wrapper_code()
                lowered.scheduler = Scheduler(lowered.operations)
                self._count(lowered)
        returned: Any = graph.graph.output_node().args[0]
        return make_boxed_func(lambda *_: [_unwritten(node) for node in returned])  # type: ignore[no-any-return]

    def _count(self, lowered: GraphLowering) -> None:
        returned, inside = set(lowered.get_output_names()), 0
        for node in lowered.scheduler.nodes:
            for name, size in _kernels(node):
                self.counts.note(name, size)
                inside += node.get_write_buffer_sizes() if not returned & node.get_buffer_names() else 0
        self.inside = max(self.inside, inside)


def _kernels(node: BaseSchedulerNode) -> Iterator[tuple[str, float]]:
    """The name and the bytes of the kernel that a node of the schedule is, if it is one."""
    if isinstance(node, NopKernelSchedulerNode):  # parts that were written into their place
        return
    if not node.is_extern():
        yield "fused", float(node.get_read_write_buffers_sizes())
    elif (operator := getattr(node.node, "op_overload", None)) is not None:  # None: one of an operator's results
        yield operator._schema.name.split("::")[1], float(node.get_read_write_buffers_sizes())


def _unwritten(node: Any) -> Any:
    """What a graph returns, without numbers."""
    value = node.meta["val"] if isinstance(node, fx.Node) else None
    if not isinstance(value, Tensor):
        return value
    shape, strides = ([int(n) for n in numbers] for numbers in (value.shape, value.stride()))
    return torch.empty_strided(shape, strides, dtype=value.dtype)
