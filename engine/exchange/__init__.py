"""Snapshots in other engines' formats: OCI image layouts, and the checkpoint archives of Podman.

Nothing that serac keeps is in one of these; they are what it gives away. How an image is taken is the affair of
`engine.base` and `engine.lifecycle.oci_import`.
"""

from engine.exchange.changes import Entry, changes
from engine.exchange.oci import ImageConfig, Process, write_image, write_layer
from engine.exchange.podman import Container, write_checkpoint
from engine.exchange.tar import Tar

__all__ = [
    "Container",
    "Entry",
    "ImageConfig",
    "Process",
    "Tar",
    "changes",
    "write_checkpoint",
    "write_image",
    "write_layer",
]
