"""Tar streams that mean harm, each of them by hand, and any number of them by chance."""

from __future__ import annotations

import random
import tarfile


def entry(name: str, kind: bytes = tarfile.REGTYPE, content: bytes = b"", *, link: str = "", **more: object) -> bytes:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(content)
    for key, value in more.items():
        setattr(info, key, value)
    return info.tobuf(tarfile.PAX_FORMAT) + content + bytes(-len(content) % 512)


def raw(name: bytes = b"x", kind: bytes = b"0", size: bytes = b"0", **fields: bytes) -> bytes:
    """A header whose fields are what they are given as; only the checksum is right."""
    block = bytearray(512)
    places = {"mode": 100, "uid": 108, "gid": 116, "mtime": 136, "link": 157, "magic": 257}
    block[: len(name)] = name
    block[124 : 124 + len(size)] = size
    block[156:157] = kind
    for field, value in fields.items():
        block[places[field] : places[field] + len(value)] = value
    block[148:156] = b" " * 8
    block[148:155] = b"%06o\0" % sum(block)
    return bytes(block)


def pax(body: bytes) -> bytes:
    return raw(b"pax", b"x", b"%o" % len(body)) + body + bytes(-len(body) % 512)


def record(key: bytes, value: bytes) -> bytes:
    size = len(key) + len(value) + 3
    size += len(str(size + len(str(size))))
    return b"%d %s=%s\n" % (size, key, value)


END = bytes(1024)
NEGATIVE = b"\xff" * 12
HOSTILE = {
    "nothing at all": b"",
    "cut in a header": entry("x")[:300],
    "cut in contents": entry("x", content=b"y" * 5000)[:3000],
    "no end": entry("x"),
    "no tar": b"a" * 2048,
    "bad checksum": entry("x").replace(b"0000644", b"0000600", 1) + END,
    "upwards": entry("../x") + END,
    "upwards in the middle": entry("a/../../x") + END,
    "absolute": entry("/tmp/x") + END,
    "empty name": raw(b"") + END,
    "negative size": raw(size=NEGATIVE) + END,
    "size beyond 63 bits": raw(size=b"\x80" + b"\xff" * 11) + END,
    "size of all bits": raw(size=b"\x80\0\0\0\x7f" + b"\xff" * 7) + END,
    "letters for a size": raw(size=b"12z") + END,
    "unknown type": raw(kind=b"Z") + END,
    "GNU sparse": raw(kind=b"S") + END,
    "pax: negative size": pax(record(b"size", b"-5")) + raw() + END,
    "pax: huge size": pax(record(b"size", b"9" * 30)) + raw() + END,
    "pax: size of 63 bits": pax(record(b"size", b"9223372036854775807")) + raw() + END,
    "pax: too long": raw(b"pax", b"x", b"77777777777") + END,
    "pax: negative": raw(b"pax", b"x", NEGATIVE) + END,
    "pax: no length": pax(b"path=x\n") + raw() + END,
    "pax: length zero": pax(b"0 path=x\n") + raw() + END,
    "pax: length too long": pax(b"99 path=x\n") + raw() + END,
    "pax: huge length": pax(b"9" * 400 + b" path=x\n") + raw() + END,
    "pax: length too short": pax(b"3 path=x\n") + raw() + END,
    "pax: no value": pax(b"5 xy\n") + raw() + END,
    "pax: no newline": pax(b"9 path=xy") + raw() + END,
    "pax: NUL in a name": pax(record(b"path", b"a\0b")) + raw() + END,
    "pax: upwards": pax(record(b"path", b"a/../../x")) + raw() + END,
    "pax: absolute": pax(record(b"path", b"/tmp/x")) + raw() + END,
    "pax: empty name": pax(record(b"path", b"")) + raw() + END,
    "pax: no time": pax(record(b"mtime", b"now")) + raw() + END,
    "pax: sign alone": pax(record(b"mtime", b"-")) + raw() + END,
    "pax: nothing follows": pax(record(b"path", b"x")) + END,
    "component too long": pax(record(b"path", b"n" * 256)) + raw() + END,
    "hard link upwards": entry("x", tarfile.LNKTYPE, link="../secret") + END,
    "hard link absolute": entry("x", tarfile.LNKTYPE, link="/etc/passwd") + END,
    "hard link to nothing": entry("x", tarfile.LNKTYPE, link="y") + END,
    "hard link to itself": entry("x") + entry("x", tarfile.LNKTYPE, link="x") + END,
    "hard link to the top": entry("x", tarfile.LNKTYPE, link=".") + END,
    "hard link to a directory": entry("d", tarfile.DIRTYPE) + entry("x", tarfile.LNKTYPE, link="d") + END,
    "file called .": entry(".") + END,
    "through a link": entry("a", tarfile.SYMTYPE, link="../outside") + entry("a/x", content=b"y") + END,
    "a directory that is a link": entry("a", tarfile.SYMTYPE, link="../outside") + entry("a", tarfile.DIRTYPE) + END,
    "hard link through a link": entry("a", tarfile.SYMTYPE, link="../outside")
    + entry("x", tarfile.LNKTYPE, link="a/secret")
    + END,
    "directory over a file": entry("a") + entry("a", tarfile.DIRTYPE) + END,
    "file over a directory": entry("a", tarfile.DIRTYPE) + entry("a") + END,
    "below a file": entry("a") + entry("a/b") + END,
}


def seeds() -> list[bytes]:
    everything = [
        entry("d", tarfile.DIRTYPE, mode=0o700),
        entry("d/f", content=b"z" * 700, mtime=1.5),
        entry("d/" + "n" * 150, content=b"long"),
        entry("d/h", tarfile.LNKTYPE, link="d/f"),
        entry("d/s", tarfile.SYMTYPE, link="t" * 150),
        entry("d/p", tarfile.FIFOTYPE),
        pax(record(b"SCHILY.xattr.user.a", b"b") + record(b"mtime", b"-1.25")) + raw(b"d/x"),
        raw(b"././@LongLink", b"L", b"310") + b"d/" + b"g" * 198 + bytes(312) + raw(b"g"),
        raw(b"g", b"g", b"5") + b"xxxxx" + bytes(507),
    ]
    return [b"".join(everything) + END, *(one + END for one in everything)]


def reseal(data: bytearray) -> None:
    """Make the checksum of each block right that begins like a header, so that damage gets past it."""
    for at in range(0, len(data) - 511, 512):
        if any(data[at : at + 512]) and data[at + 154 : at + 156] in (b"\0 ", b" \0", b"\0\0"):
            data[at + 148 : at + 156] = b" " * 8
            data[at + 148 : at + 155] = b"%06o\0" % sum(data[at : at + 512])


def damaged(random_: random.Random) -> bytes:
    data = bytearray(random_.choice(seeds()))
    for _ in range(random_.randint(1, 6)):
        at = random_.randrange(len(data))
        change = random_.randrange(4)
        if change == 0:
            data[at] = random_.choice(b"\0\x01\x7f\x80\xff /.0179-=\n")
        elif change == 1:
            del data[at : at + random_.choice((1, 512, 700))]
        elif change == 2:
            data[at:at] = random_.choice((b"9", b"-", b"/../", bytes(512), b"\xff" * 12))
        else:
            data[at : at + 12] = random_.choice(
                (b"77777777777 ", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"37777777777\0")
            )
        if not data:
            return b""
    reseal(data)
    return bytes(data)
