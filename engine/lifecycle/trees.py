"""Layers, chains and bases as trees that are read, wherever their files are.

Whoever reads a chain to its end (`opened_chain`) has its layers' directories locked, shared, so that
`engine.lifecycle.collect` leaves them; a glance at one layer's root (`opened`, `below`) needs no lock."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path

from engine import archive, store
from engine.errors import Damaged
from engine.lifecycle import mounting
from engine.lifecycle.root import Root
from engine.model import Job, Layer
from engine.tree import Merged, Node, merged, open_directory, open_image


@contextlib.contextmanager
def opened(root: Root, layer: Layer) -> Iterator[Node]:
    """One layer. Raises Damaged."""
    with contextlib.ExitStack() as stack:
        yield _entered(stack, _tree(root, layer))


@contextlib.contextmanager
def opened_base(root: Root, digest: str) -> Iterator[Node]:
    """Raises Damaged. A base that mkfs.erofs wrote, as earlier versions had it, is read where it is mounted."""
    with contextlib.ExitStack() as stack:
        try:
            tree = _entered(stack, _image(root.bases / digest))
        except Damaged:
            tree = _entered(stack, open_directory(mounting.mounted(root, digest)))
        yield tree


@contextlib.contextmanager
def below(root: Root, job: Job) -> Iterator[Node]:
    """What a job's upper lies on: the topmost layer of its chain, or the base. Raises NotFound, Damaged."""
    if job.layers:
        with opened(root, *root.catalog.chain(job.layers[-1:])) as tree:
            yield tree
    else:
        with opened_base(root, job.base) as tree:
            yield tree


@contextlib.contextmanager
def opened_chain(root: Root, ids: Sequence[str]) -> Iterator[list[Node]]:
    """Layers, the topmost first; ``ids``, as always, the oldest first. Raises NotFound, Damaged."""
    with contextlib.ExitStack() as stack:
        for layer in ids:
            with contextlib.suppress(FileNotFoundError):  # that it is gone is found next
                stack.enter_context(store.locked(root.layer(layer), timeout=root.timeout, shared=True))
        yield [_entered(stack, _tree(root, layer)) for layer in reversed(root.catalog.chain(ids))]


class Forest:
    """Trees for as long as a context lasts, each opened once, so that what two chains have in common is the same."""

    def __init__(self, root: Root, stack: contextlib.ExitStack) -> None:
        self._root, self._stack = root, stack
        self._opened: dict[str, Node] = {}

    def chain(self, base: str, ids: Sequence[str]) -> Merged:
        """A chain with its base. Raises NotFound, Damaged."""
        for layer in ids:
            if layer not in self._opened:
                (self._opened[layer],) = self._stack.enter_context(opened_chain(self._root, (layer,)))
        if base not in self._opened:
            self._opened[base] = self._stack.enter_context(opened_base(self._root, base))
        return merged([*(self._opened[layer] for layer in reversed(ids)), self._opened[base]])


@contextlib.contextmanager
def forest(root: Root) -> Iterator[Forest]:
    with contextlib.ExitStack() as stack:
        yield Forest(root, stack)


def _tree(root: Root, layer: Layer) -> contextlib.AbstractContextManager[Node]:
    if layer.directory:
        return open_directory(root.layer(layer.id) / "upper")
    return _image(root.images / str(layer.image))


def _image(directory: Path) -> contextlib.AbstractContextManager[Node]:
    return open_image(directory / archive.META, directory / archive.BLOB)


def _entered(stack: contextlib.ExitStack, tree: contextlib.AbstractContextManager[Node]) -> Node:
    try:
        return stack.enter_context(tree)
    except FileNotFoundError as error:
        raise Damaged(f"a layer's files are gone: {error.filename}") from error
