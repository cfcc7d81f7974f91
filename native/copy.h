/* Files in and out of a job as a tar stream.  Both run inside the job: no path and no link can lead out of it.
 *
 *   pack PATH               writes PATH to standard output.  Entries are named by its last component, or `.` where that
 *                           is empty, `.` or `..`.  A symbolic link is followed only as PATH/ or PATH/.  --one-file-system:
 *                              of what is mounted below PATH only the empty directory
 *   unpack [--owner] PATH   reads a stream from standard input.  A directory PATH takes the entries in, anything else
 *                           becomes the stream's one top entry.  --owner: owners, set-id bits and capabilities are as
 *                           in the stream; without it all belongs to the caller
 *
 * A stream is POSIX ustar with pax headers: names over 100 bytes, sizes over 8 GiB, ids over 2097151, times to the
 * nanosecond, extended attributes (SCHILY.xattr.; user.* and security.capability).  Sockets are left out, holes are
 * written out.  unpack reads GNU long names as well.  It replaces files, merges directories (one that exists keeps its
 * mode, owner and time) and follows no link below PATH.  A failure leaves what was unpacked before it.
 *
 * Status 0, or 1 with one line on standard error. */
#pragma once

int copy_main(int argc, char **argv); /* argv[0] is `pack` or `unpack` */
