"""How what is kept looks when it leaves its host: images, the manifest of a snapshot, and both as one stream."""

from engine.archive.image import (
    BLOB,
    INDEX,
    META,
    PIECE_SIZE,
    build_image,
    check_files,
    check_tree,
    damages,
    image_digest,
    load_image,
    verify_image,
)

__all__ = [
    "BLOB",
    "INDEX",
    "META",
    "PIECE_SIZE",
    "build_image",
    "check_files",
    "check_tree",
    "damages",
    "image_digest",
    "load_image",
    "verify_image",
]
