"""Trees of files as values: where they come from, what they mean together, what becomes of them.

A tree is its root `Node`. It is read from a directory (`open_directory`) or an image (`open_image`); layers one above
the other are one tree (`merged`), two trees have differences (`differences`), and any tree is written as an image
(`write_image`). Nothing is mounted on the way, no path in a tree is ever resolved by the kernel, and a tree may be
deeper than Python's recursion and its paths longer than PATH_MAX.
"""

from engine.tree.difference import Change, Kind, below, differences, layers_in_common
from engine.tree.directory import open_directory
from engine.tree.image import open_image, sound
from engine.tree.layered import Merged, flattened, merged
from engine.tree.node import OVERLAY, PIECE, Node, without
from engine.tree.writer import Written, write_image

__all__ = [
    "OVERLAY",
    "PIECE",
    "Change",
    "Kind",
    "Merged",
    "Node",
    "Written",
    "below",
    "differences",
    "flattened",
    "layers_in_common",
    "merged",
    "open_directory",
    "open_image",
    "sound",
    "without",
    "write_image",
]
