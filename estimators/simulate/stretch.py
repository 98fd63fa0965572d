"""Stretch: the trace of a deep model from the trace of a shallow one.

Equal layers make equal events. So a model of four layers is traced, and the events of its third are repeated for every
further one: forward in order, backward in reverse, and wherever parameters are walked through (loading, optimizer) next
to each other. What a layer frees of its neighbour's is its own neighbour's in the longer model.
"""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from difflib import SequenceMatcher

from estimators.simulate.trace import Mark, Storage, Trace

BASE_LAYERS = 4
REPEATED = 2  # neither it nor its neighbours is the first layer, which may save less


def stretch(trace: Trace, num_layers: int, *, sharded: bool = False) -> Trace:
    """Return the trace of `num_layers` layers, given that of BASE_LAYERS equal ones. `sharded`: the load is FSDP2's,
    whose whole tensors are not of the layer whose shards are cut beside them."""
    if num_layers < BASE_LAYERS:
        raise ValueError(f"cannot stretch {BASE_LAYERS} layers to {num_layers}")
    return _Stretcher(trace, num_layers, sharded=sharded).run()


class _Stretcher:
    def __init__(self, trace: Trace, num_layers: int, *, sharded: bool) -> None:
        self.source, self.sharded = trace, sharded
        self.copies = num_layers - BASE_LAYERS + 1
        self.out = Trace()
        self.ids: dict[tuple[int, int], int] = {}  # (storage of the short trace, layer of the long one) -> its id
        self.made_for: dict[int, int] = {}  # storage of no layer -> the layer in whose making it comes and goes
        self.peers = _peers(trace)

    def run(self) -> Trace:
        for mark, start, end in self.source.spans():
            self._mark(mark, mark.layer)
            for owner, events in self._runs(mark, start, end):
                if owner != REPEATED:
                    self._emit(events, owner, self._depth(owner))
                    continue
                depths = range(REPEATED, REPEATED + self.copies)
                for depth in reversed(depths) if mark.stage == "backward" else depths:
                    if mark.layer >= 0:
                        self._mark(mark, depth)
                    self._emit(events, owner, depth)
        return self.out

    def _mark(self, mark: Mark, layer: int) -> None:
        depth = layer if layer != BASE_LAYERS - 1 or mark.layer != layer else self._depth(layer)
        self.out.marks.append(replace(mark, position=len(self.out.events), layer=depth))

    def _depth(self, layer: int) -> int:
        """Layer of the long model that stands for a layer of the short one (the repeated one: its first copy)."""
        return layer + self.copies - 1 if layer > REPEATED else layer

    def _runs(self, mark: Mark, start: int, end: int) -> Iterator[tuple[int, list[int]]]:
        """Group a span's events by owner: the layer that is running, or else the layer of the storage.

        An optimizer's temporary of one parameter that goes in the middle of the next one's turn goes with that one, and
        what comes and goes in the making of a layer's adapter with that layer.
        """
        if mark.layer >= 0:
            yield mark.layer, self.source.events[start:end]
            return
        events, storages = self.source.events[start:end], self.source.storages
        following = [-1] * len(events)  # layer of the next birth
        for i in reversed(range(len(events) - 1)):
            following[i] = storages[events[i + 1]].layer if events[i + 1] >= 0 else following[i + 1]
        if mark.stage == "load" and not self.sharded:
            self.made_for |= self._made_for(events)
        owner, run, born = -1, list[int](), set[int]()
        for event, next_layer in zip(events, following, strict=True):
            within_turn = mark.stage == "optimizer" and owner >= 0 and ~event in born and next_layer == owner
            index = event if event >= 0 else ~event
            layer = owner if within_turn else self.made_for.get(index, storages[index].layer)
            if layer != owner and run:
                yield owner, run
                run = []
            owner = layer
            run.append(event)
            if event >= 0:
                born.add(event)
        if run:
            yield owner, run

    def _made_for(self, events: list[int]) -> dict[int, int]:
        """Storages of no layer that come and go while one layer's are made -> that layer."""
        storages, found, between = self.source.storages, dict[int, int](), dict[int, set[int]]()
        for event in events:
            if event < 0:
                layers = between.pop(~event, set())
                if len(layers) == 1:
                    found[~event] = layers.pop()
            elif storages[event].layer < 0:
                between[event] = set()
            else:
                for layers in between.values():
                    layers.add(storages[event].layer)
        return found

    def _emit(self, events: list[int], owner: int, depth: int) -> None:
        out = self.out
        for event in events:
            if event >= 0:
                storage = self.source.storages[event]
                at = depth + self._shift(owner, storage.layer) if storage.layer >= 0 else -1
                self.ids[event, depth if event in self.made_for else at] = len(out.storages)
                out.events.append(len(out.storages))
                module = storage.module
                if at != storage.layer:
                    module = module.replace(f".{storage.layer}.", f".{at}.", 1)
                out.storages.append(Storage(storage.n_bytes, storage.op, module, at, storage.width, storage.label))
                continue
            keys = self._deaths(~event, owner, depth)
            for key in keys:
                index = self.ids.pop(key, None)
                if index is not None:
                    out.events.append(~index)

    def _deaths(self, index: int, owner: int, depth: int) -> list[tuple[int, int]]:
        """Storages of the long model that go with this one; of a layer that is no neighbour all copies go at once."""
        layer = self.source.storages[index].layer
        if owner < 0 or layer < 0 or abs(layer - owner) <= 1:
            return [self._resolve(index, owner, depth)]
        if layer == REPEATED:
            return [(index, at) for at in range(REPEATED, REPEATED + self.copies)]
        return [(index, self._depth(layer))]

    def _shift(self, owner: int, layer: int) -> int:
        return layer - owner if owner >= 0 else 0

    def _resolve(self, index: int, owner: int, depth: int) -> tuple[int, int]:
        """Which storage of the long model a death means, seen from layer `depth` standing for `owner`."""
        layer = self.source.storages[index].layer
        if index in self.made_for:
            return index, depth
        if layer < 0:
            return index, -1
        if owner < 0:
            return index, self._depth(layer)
        at = depth + layer - owner
        short = self._short(at)
        return self.peers.get((index, short), index), at

    def _short(self, depth: int) -> int:
        """Layer of the short model that a layer of the long one repeats."""
        if depth < REPEATED:
            return depth
        return REPEATED if depth < REPEATED + self.copies else depth - self.copies + 1


def _peers(trace: Trace) -> dict[tuple[int, int], int]:
    """(storage, layer) -> the storage that is to that layer what the first is to its own."""
    births: dict[tuple[int, str, int], list[int]] = defaultdict(list)
    for number, (mark, start, end) in enumerate(trace.spans()):
        for event in trace.events[start:end]:
            if event >= 0 and trace.storages[event].layer >= 0:
                place = -1 if mark.layer >= 0 else number
                births[mark.step, f"{mark.stage}{place}", trace.storages[event].layer].append(event)
    peers: dict[tuple[int, int], int] = {}
    for (step, stage, _), own in births.items():
        for layer in range(BASE_LAYERS):
            other = births.get((step, stage, layer), [])
            peers.update({(a, layer): b for a, b in _aligned(own, other, trace)})
    return peers | _handed_down(trace, peers)


def _handed_down(trace: Trace, peers: dict[tuple[int, int], int]) -> dict[tuple[int, int], int]:
    """Pairs of what the last layer's backward and the repeated one's leave to the layer below, where they differ: the
    head's gradient may come in another dtype than a layer's."""
    above = REPEATED + 1
    handed: dict[tuple[int, int], list[int]] = defaultdict(list)
    for mark, start, end in trace.spans():
        if mark.stage == "backward" and mark.layer in (REPEATED, REPEATED - 1):
            gone = (~event for event in trace.events[start:end] if event < 0)
            handed[mark.step, mark.layer + 1] += [i for i in gone if trace.storages[i].layer == mark.layer + 1]
    found: dict[tuple[int, int], int] = {}
    for (step, layer), own in handed.items():
        if layer == above:
            others = handed[step, REPEATED]
            alone = [i for i in own if peers.get((i, REPEATED)) not in others]
            free = [i for i in others if peers.get((i, above)) not in own]
            found.update({(a, REPEATED): b for a, b in zip(alone, free, strict=False)})
    return found


def _aligned(own: list[int], other: list[int], trace: Trace) -> Iterator[tuple[int, int]]:
    """Pairs of equal storages in two layers' births; the first and the last layer may have some that others do not."""
    kinds = [[(trace.storages[i].op, trace.storages[i].n_bytes) for i in births] for births in (own, other)]
    if kinds[0] == kinds[1]:
        yield from zip(own, other, strict=True)
        return
    for a, b, size in SequenceMatcher(None, kinds[0], kinds[1], autojunk=False).get_matching_blocks():
        yield from zip(own[a : a + size], other[b : b + size], strict=True)
