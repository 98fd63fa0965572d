"""Tracker: a dispatch mode that follows every storage on the device from birth to death and writes a Trace.

It also answers what a fake tensor cannot: scalars read back from the device, and how many positions a boolean mask
selects (all of them: the longest case).
"""

import threading
import weakref
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch._prims_common import is_non_overlapping_and_dense_or_false
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from estimators.simulate.kernels import MATMULS, SCRATCH_FIRST, scratch
from estimators.simulate.memo import Memo
from estimators.simulate.operations import Tally
from estimators.simulate.result import OperationStage
from estimators.simulate.trace import Mark, Stage, Storage, Trace

aten = torch.ops.aten
DEVICE_OF = torch.ops.prim.device.default
HELD_ONCE = 4  # a tensor's use count during an operation: the buffer, the Python object, the operation's argument twice
NAMED_BY_ARGUMENTS = frozenset(
    {"load", "clip", "optimizer", "zero"}
)  # stages whose work belongs to a parameter's layer


class Tracker(TorchDispatchMode):  # type: ignore[misc]
    """Follow storages on `cuda:0`. `workspace` bytes are taken by each thread that multiplies matrices; `threads` are
    resident on the card at a time.

    boolean: what a truth value read from the device is said to be (do all masks hold: is the batch unpadded). wrappers:
    tensor types that run an operation once more, on this rank's part.
    """

    def __init__(self, *, workspace: int, threads: int, boolean: bool, wrappers: tuple[type, ...] = ()) -> None:
        super().__init__()
        self.trace = Trace()
        self.boolean = boolean
        self.wrappers = wrappers
        self.workspace, self.threads = workspace, threads
        self.step = 0
        self.stage: Stage = "load"
        self.layer = -1
        self.module = ""
        self.failed_op = ""
        self.evaluates = False
        self.tally: Tally | None = None  # counts the operations while it is here
        self._live: dict[int, int] = {}
        self._references: dict[int, weakref.ref[Any]] = {}
        self._multiplying: set[int] = set()
        self._copied_from: dict[int, int] = {}
        self._memo = Memo()
        self.enter("load")

    # -- where the run is

    def enter(self, stage: Stage, layer: int = -1) -> None:
        """From now on events belong to this stage and layer; an evaluation is one stage."""
        self.stage, self.layer = "evaluation" if self.evaluates else stage, layer
        marks = self.trace.marks
        mark = Mark(len(self.trace.events), self.step, self.stage, layer)
        if marks and marks[-1].position == mark.position:
            marks.pop()
        if not marks or (marks[-1].step, marks[-1].stage, marks[-1].layer) != (self.step, self.stage, layer):
            marks.append(mark)

    def name(self, tensors: Iterable[torch.Tensor | None], label: str, layer: int | None = None) -> None:
        """Say what the storages of `tensors` are, and which layer they belong to."""
        for tensor in tensors:
            index = self._index(tensor)
            if index is None:
                continue
            storage = self.trace.storages[index]
            storage.label = label
            if layer is None:
                continue
            storage.layer = layer
            source = self._copied_from.get(index)  # PEFT makes adapters in one dtype and casts them when all are made
            if source is not None and self.trace.storages[source].layer < 0:
                self.trace.storages[source].layer = layer

    def resized(self, tensor: torch.Tensor, op: str, label: str) -> None:
        """The tensor's storage was given another size: its memory went, and perhaps came."""
        index = self._live.pop(tensor.untyped_storage()._cdata, None)
        if index is not None:
            del self._references[index]
            self._die(index)
        self._see(tensor, op, self.layer)
        self.name([tensor], label)

    def transient(self, n_bytes: int, op: str, layer: int = -1) -> None:
        """An allocation that comes and goes at once."""
        self._die(self._born(n_bytes, op, 0, layer))

    def multiplied(self, a: torch.Tensor, b: torch.Tensor) -> None:
        """A product that is not run here, since all it changes is a tensor that exists."""
        if self.tally is not None:
            self.tally.count_product(a, b, self._pass())

    def where(self) -> str:
        """Say in words where the run is."""
        layer = f", layer {self.layer}" if self.layer >= 0 else ""
        module = f", module {self.module}" if self.module else ""
        op = f", operation {self.failed_op}" if self.failed_op else ""
        return f"in stage {self.stage} of step {self.step + 1}{layer}{module}{op}"

    def finish(self) -> Trace:
        """Stop following, and return the trace: what still lives stays alive in it."""
        self._references.clear()
        return self.trace

    # -- storages

    def _born(self, n_bytes: int, op: str, width: int, layer: int, label: str = "") -> int:
        trace = self.trace
        index = len(trace.storages)
        trace.storages.append(Storage(n_bytes, op, self.module, layer, width, label))
        trace.events.append(index)
        return index

    def _die(self, index: int) -> None:
        self.trace.events.append(~index)

    def _see(self, tensor: torch.Tensor, op: str, layer: int) -> None:
        if tensor.device.type != "cuda" or tensor.layout != torch.strided:
            return
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._live:
            return
        n_bytes = storage.nbytes()
        if n_bytes == 0:
            return
        self._follow(storage, self._born(n_bytes, op, tensor.shape[-1] if tensor.dim() else 1, layer))

    def _follow(self, storage: Any, index: int) -> None:
        key = storage._cdata
        self._live[key] = index

        def gone(_: Any) -> None:
            if self._live.get(key) == index:
                del self._live[key], self._references[index]
                self._die(index)

        self._references[index] = weakref.ref(storage, gone)

    def _accumulate(self, args: tuple[Any, ...], out: torch.Tensor) -> None:
        """The engine adds a second gradient into the first where nobody else holds that, or else into the second
        (input_buffer.cpp can_accumulate_inplace); fake tensors, being a subclass, get a third. Undo that."""
        for tensor in args[:2]:
            index = self._index(tensor)
            if index is not None and _is_held_once(tensor) and tensor.shape == out.shape and tensor.dtype == out.dtype:
                del self._live[tensor.untyped_storage()._cdata], self._references[index]
                self._follow(out.untyped_storage(), index)
                return

    def layer_of(self, argument: Any) -> int:
        """Layer that a tensor's storage belongs to; -1 for none, or for what is no tensor."""
        index = self._index(argument)
        return -1 if index is None else self.trace.storages[index].layer

    def _index(self, argument: Any) -> int | None:
        argument = getattr(argument, "_local_tensor", argument)  # this rank's part of a DTensor
        if isinstance(argument, torch.Tensor) and argument.layout == torch.strided:
            return self._live.get(argument.untyped_storage()._cdata)
        return None

    def _owners(self, args: tuple[Any, ...]) -> list[int]:
        """Layers that an operation's outputs belong to: its first argument's, element by element for a list."""
        if self.layer >= 0 or self.stage not in NAMED_BY_ARGUMENTS or not args:
            return []
        first = args[0]
        return [self.layer_of(x) for x in first] if isinstance(first, list | tuple) else [self.layer_of(first)]

    # -- dispatch

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation and note what it allocates."""
        if func is DEVICE_OF and isinstance(args[0], FakeTensor):
            return args[0].fake_device  # two calls of three, asked by torch's own C++
        if self.wrappers and any(issubclass(t, self.wrappers) for t in types):
            return NotImplemented  # it runs again, on what is wrapped
        kwargs = kwargs or {}
        name = func._schema.name
        try:
            if func is aten._local_scalar_dense.default:
                return self._scalar(args[0])
            if name in MATMULS:
                self._first_matmul(args)
            needs = scratch(name, args, kwargs, self.threads)
            owners = self._owners(args)
            layer = self.layer if self.layer >= 0 or not owners else owners[0]
            if needs and name in SCRATCH_FIRST:
                held = [self._born(n, f"{name} (scratch)", 0, layer, "dequantized_weights") for n in needs]
                out = self._run(func, name, args, kwargs)
                self._note(out, name, args, owners, layer)
            else:
                out = self._run(func, name, args, kwargs)
                if func is aten.add.Tensor and _engine_is_adding():
                    self._accumulate(args, out)
                self._note(out, name, args, owners, layer)
                held = [self._born(n, f"{name} (scratch)", 0, layer) for n in needs]
            for index in held:
                self._die(index)
            if self.tally is not None:
                self.tally.count(func, args, kwargs, out, stage=self._pass(), layers=owners or [layer])
        except Exception:
            self.failed_op = self.failed_op or name
            raise
        return out

    def _pass(self) -> OperationStage:
        if self.stage in ("clip", "zero"):
            return "clip"
        if self.stage == "optimizer":
            return "optimizer"
        return "backward" if _engine_is_adding() else "forward"

    def _note(self, out: Any, name: str, args: tuple[Any, ...], owners: list[int], layer: int) -> None:
        if isinstance(out, torch.Tensor):
            self._see(out, name, layer)
            if name == "aten::_to_copy" and self.stage == "load":
                source, copy = self._index(args[0]), self._index(out)
                if source is not None and copy is not None:
                    self._copied_from[copy] = source
        elif isinstance(out, list | tuple):
            leaves = tree_leaves(out)
            paired = len(owners) == len(leaves)
            for i, leaf in enumerate(leaves):
                if isinstance(leaf, torch.Tensor):
                    self._see(leaf, name, owners[i] if paired else layer)

    def _scalar(self, tensor: torch.Tensor) -> bool | float | int:
        if tensor.dtype == torch.bool:
            return self.boolean if tensor.device.type == "cuda" else True
        return 1.0 if tensor.is_floating_point() else 1

    def _first_matmul(self, args: tuple[Any, ...]) -> None:
        thread = threading.get_ident()
        if thread not in self._multiplying and args[0].device.type == "cuda":
            self._multiplying.add(thread)
            self._born(self.workspace, "cublas workspace", 0, -1, "workspace")

    def _run(self, func: Any, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The operation itself, or its longest outcome where that depends on data."""
        if name == "aten::index":
            return func(args[0], _all_selected(args[1]), *args[2:], **kwargs)
        if name == "_c10d_functional::wait_tensor":  # its fake makes a new tensor, the real one does not
            return args[0]
        if name == "aten::nonzero":
            return torch.empty((args[0].numel(), args[0].dim()), dtype=torch.long, device=args[0].device)
        if name == "aten::_index_put_impl_" and args[1][0].dtype == torch.bool:
            return args[0]
        if name == "bitsandbytes::int8_vectorwise_quant":  # outliers depend on data: none
            codes, scales, _ = func(args[0], 0.0)
            return codes, scales, torch.empty(0, dtype=torch.int64, device=args[0].device)
        if name == "bitsandbytes::int8_mixed_scaled_mm":
            a, ca, cb = args[0], args[1], args[2]
            return torch.empty((*ca.shape[:-1], cb.shape[0]), device=a.device, dtype=a.dtype), None
        return self._memo.run(func, args, kwargs)


def _engine_is_adding() -> bool:
    """Whether a backward pass is running, and not a forward that it repeats."""
    return torch._C._current_graph_task_id() != -1 and not torch.is_grad_enabled()


def _is_held_once(tensor: torch.Tensor) -> bool:
    """Whether one gradient buffer alone holds a tensor that fills its storage."""
    whole = tensor.numel() * tensor.element_size() == tensor.untyped_storage().nbytes()
    return whole and bool(is_non_overlapping_and_dense_or_false(tensor)) and bool(tensor._use_count() <= HELD_ONCE)


def _all_selected(indices: Sequence[torch.Tensor | None]) -> list[torch.Tensor | None]:
    """Boolean masks as the positions that they select when all is true (indexing does the same, with nonzero)."""
    out: list[torch.Tensor | None] = []
    for index in indices:
        if index is None or index.dtype != torch.bool:
            out.append(index)
        else:
            position = torch.empty(index.numel(), dtype=torch.long, device=index.device)
            out += [position] * index.dim()
    return out
