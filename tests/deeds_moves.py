"""Deeds that take something away, put something else in its place, or give it another name.

EXDEV is no wonder where a directory of a lower layer moves: overlayfs notes where it came from, in at most 256 bytes.
"""

from __future__ import annotations

import os
from errno import EEXIST, EINVAL, EISDIR, ENOTDIR, ENOTEMPTY, EXDEV

import ground as g
from deeds import deed, plant
from ground import Ground, Place


@deed()
def remove_a_leaf(ground: Ground) -> None:
    fd, name = ground.entry(*g.LEAVES)
    os.unlink(name, dir_fd=fd)


@deed()
def remove_a_file(ground: Ground) -> None:
    fd, name = ground.file()
    os.unlink(name, dir_fd=fd)


@deed()
def remove_a_directory(ground: Ground) -> None:
    g.remove(ground.lesser_folder())


@deed()
def empty_a_directory(ground: Ground) -> None:
    """It stays, with whiteouts in it where it is one of a lower layer."""
    fd, name = ground.lesser_folder()
    inner = ground.hold(os.open(name, g.DIRECTORY, dir_fd=fd))
    for below in g.listed(inner, g.ANY):
        g.remove(Place(inner, below))


@deed()
def make_a_file_again(ground: Ground) -> None:
    place = ground.file()
    g.remove(place)
    g.write_new(place, (0, ground.bytes(ground.number(5000))))


@deed()
def make_a_directory_again(ground: Ground) -> None:
    """Opaque, where it is one of a lower layer."""
    place = ground.lesser_folder()
    g.remove(place)
    plant(ground, place)


@deed()
def make_an_empty_directory_again(ground: Ground) -> None:
    place = ground.lesser_folder()
    g.remove(place)
    os.mkdir(place.name, dir_fd=place.fd)


@deed()
def replace_a_leaf_by_a_directory(ground: Ground) -> None:
    place = ground.entry(*g.LEAVES)
    g.remove(place)
    plant(ground, place)


@deed()
def replace_a_directory_by_a_file(ground: Ground) -> None:
    place = ground.lesser_folder()
    g.remove(place)
    g.write_new(place, (0, b"once a directory"))


@deed()
def replace_a_directory_by_a_symlink(ground: Ground) -> None:
    place = ground.lesser_folder()
    g.remove(place)
    os.symlink("once/a/directory", place.name, dir_fd=place.fd)


@deed()
def rename_a_leaf(ground: Ground) -> None:
    fd, name = ground.entry(*g.LEAVES)
    rename(Place(fd, name), Place(fd, ground.new_name(fd)))


@deed()
def move_a_leaf(ground: Ground) -> None:
    rename(ground.entry(*g.LEAVES), ground.vacancy())


@deed(EXDEV)
def rename_a_directory(ground: Ground) -> None:
    fd, name = ground.folder()
    rename(Place(fd, name), Place(fd, ground.new_name(fd)))


@deed(EINVAL, EXDEV)
def move_a_directory(ground: Ground) -> None:
    """Not below itself."""
    rename(ground.folder(), ground.vacancy())


@deed(EINVAL, EXDEV)
def move_a_directory_and_make_it_again(ground: Ground) -> None:
    place = ground.folder()
    rename(place, ground.vacancy())
    plant(ground, place)


@deed(ENOTDIR, EISDIR)
def rename_over_a_leaf(ground: Ground) -> None:
    rename(ground.entry(*g.LEAVES), ground.entry(*g.LEAVES))


@deed(EINVAL, ENOTEMPTY, EEXIST, EXDEV)
def rename_over_a_directory(ground: Ground) -> None:
    """One that is emptied before, else it can't be."""
    source, target = ground.folder(), ground.lesser_folder()
    inner = ground.hold(os.open(target.name, g.DIRECTORY, dir_fd=target.fd))
    for below in g.listed(inner, g.LEAVES):
        os.unlink(below, dir_fd=inner)
    rename(source, target)


@deed(EINVAL, EXDEV)
def exchange(ground: Ground) -> None:
    """Whatever they are; not with what is above or below itself."""
    g.renameat2(ground.entry(*g.ANY), ground.entry(*g.ANY), g.RENAME_EXCHANGE)


@deed(EINVAL, EXDEV)
def exchange_directories(ground: Ground) -> None:
    g.renameat2(ground.folder(), ground.folder(), g.RENAME_EXCHANGE)


def rename(source: Place, target: Place) -> None:
    os.rename(source.name, target.name, src_dir_fd=source.fd, dst_dir_fd=target.fd)
