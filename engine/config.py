"""Where a root keeps its things on this host, and the few settings that a host decides.

``Config.load(root)`` reads ``ROOT/config.json`` where it exists; unknown keys are refused.

ROOT (default /var/lib/serac)         RUN (default /run/serac/<hash of ROOT>, gone when it is empty)
  config.json                           mounts/<digest>/    images, read-only, shared by all jobs
  catalog.sqlite                        jobs/<id>/          stage/, init.json ..: while a job holds anything of the host
  events.jsonl     the journal; events.1.jsonl is its older part
  bases/<digest>/  image.json ..        criu-<boot>.kdat    what criu found out about this kernel
                   meta.erofs data.blob
  images/<digest>/ the same: what was archived of layers and processes
  layers/<id>/     upper/, work/ while a job writes it; snapshot.json and image/ (criu's) once it is sealed;
                   manifest.json of the snapshot that it tops, once that is archived
  jobs/<id>/       io/ (logs, status, the socket of init); the lock of the job is on this directory
                   what else is there of records: engine/lifecycle/records.py
  lost/<time>/     what a repair found and could not place; for people to look at
  tmp/             images are built here, then renamed; what lies here outside of a verb is the trace of a crash
  ballast          room that is given up when a removal meets a full disk
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import msgspec

from engine.errors import InvalidInput, from_os
from engine.model import Archiving, Policy, Quota

DEFAULT_ROOT = Path("/var/lib/serac")


class Settings(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The contents of config.json; every field has a default."""

    id_first: int = 0x6FFF0000
    """first host id of the range that jobs' user namespaces map; the top of the range that systemd sets aside for
    containers, so that no account of the host has it"""
    id_count: int = 65536
    subnet: str = "10.213.0.0/16"
    """addresses of ``--net bridge`` jobs, a /30 each"""
    dns: tuple[str, ...] = ()
    """name servers for jobs with a network; empty: the host's own"""
    stop_grace: float = 10.0
    """seconds between TERM and KILL"""
    archive: Archiving = "background"
    """whether pauses archive, where they don't say"""
    depth: int = 8
    """layers of a chain, 2 at least, from which on it is flattened in the background; 0 = never"""
    retention: tuple[Policy, ...] = ()
    """which snapshots are kept; the first that speaks of a snapshot counts"""
    quota: Quota = Quota()
    sessions: int = 0
    """hosted sessions (engine.hosted) that there may be, of those that haven't ended; 0 = as many as one likes"""
    sessions_paused: bool = True
    """whether paused ones count"""
    run: str | None = None
    """the run directory, where /run/serac isn't wanted"""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    root: Path
    run: Path
    settings: Settings

    @classmethod
    def load(cls, root: str | os.PathLike[str] | None = None) -> Config:
        """Raises InvalidInput when config.json isn't what it must be, NotPrivileged when it may not be read."""
        path = Path(os.path.abspath(root or os.environ.get("SERAC_ROOT") or DEFAULT_ROOT))
        file = path / "config.json"
        try:
            settings = msgspec.json.decode(file.read_bytes(), type=Settings)
        except (FileNotFoundError, NotADirectoryError):
            settings = Settings()
        except PermissionError as error:
            raise from_os(error, "read the settings") from error
        except OSError as error:
            raise InvalidInput(f"{file}: {error.strerror}", hint="config.json must be a file") from error
        except msgspec.DecodeError as error:
            raise InvalidInput(f"{file}: {error}", hint="fields and defaults are in engine/config.py") from error
        run = Path(settings.run) if settings.run else Path("/run/serac") / cls.tag(path)
        return cls(root=path, run=run, settings=settings)

    @staticmethod
    def tag(root: Path) -> str:
        """Eight hex digits that stand for a root in names outside of it: run directory, cgroups, interfaces."""
        return hashlib.sha256(os.fsencode(root)).hexdigest()[:8]

    @property
    def name(self) -> str:
        return self.tag(self.root)
