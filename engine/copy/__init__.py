"""Files in and out of a job, as a tar stream between the host and ``serac-init pack`` or ``unpack`` inside the job.

The format, and what the job's side does, are in native/copy.h. This is the host's side: ``iter_pack`` writes a stream
for ``unpack`` to read, ``unpack_host`` reads what ``pack`` wrote. A job can write anything into its stream: nothing in
it makes ``unpack_host`` touch what lies outside of the target, or hold more than a piece of the stream in memory.

Names, both ways:

SOURCE           a file or a directory; a symbolic link is copied as a link, unless it is given as ``LINK/``
SOURCE/.         the contents of a directory, without its own name; of a link, the directory that it leads to
TARGET           an existing directory: the source goes into it under its own name; with ``SOURCE/.`` its contents do
                 not there (its parent is): the source gets this name; ``TARGET/`` takes a directory only
                 an existing file: a file replaces it, a directory is refused

Files are replaced, links too (nothing is written through them); directories are merged, and one that exists keeps its
mode and time. Copies belong to the caller on the host, to root in the job; modes travel without set-id bits, times to
the nanosecond. Hard links within the source stay, sockets are left out, devices are refused, extended attributes don't
travel to or from the host. A copy that fails leaves what was written before.
"""

from engine.copy.pack import iter_pack, pack_host
from engine.copy.unpack import unpack_host

__all__ = ["iter_pack", "pack_host", "unpack_host"]
