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
  supervisor/      what the supervisor has seen of jobs so far; its lock is on this directory
  clock.json       the clocks when snapshots were judged last, see engine/retention.py
  ballast          room that is given up when a removal meets a full disk
"""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Annotated

import msgspec

from engine.errors import InvalidInput, from_os
from engine.model import Archiving, Mode, Policy, Quota

DEFAULT_ROOT = Path("/var/lib/serac")


Positive = Annotated[float, msgspec.Meta(gt=0)]
NotNegative = Annotated[float, msgspec.Meta(ge=0)]


class Supervise(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a supervisor does by itself. Ages are in seconds, 0 = never."""

    interval: Positive = 5.0
    """seconds between two looks"""
    freeze_after: NotNegative = 300.0
    """how long a job has been idle when it is frozen (hot)"""
    pause_after: NotNegative = 900.0
    """how long a job has been idle when it is paused (warm); `JobSpec.pause_after` is the job's own"""
    cold_after: NotNegative = 86400.0
    """how long a job has been paused when all but its images goes (cold)"""
    cpu: NotNegative = 1.0
    """per cent of a processor, between two looks; a job that uses more isn't idle"""
    mode: Mode = "auto"
    """how idle jobs are paused; ``process`` leaves those alone whose processes can't be kept"""
    stall: NotNegative = 10.0
    """per cent of the last ten seconds in which some process of the host waited for memory (PSI): from there on the
    longest idle jobs are paused before their time; 0 = never"""
    available: NotNegative = 5.0
    """where the kernel has no PSI: the same below so many per cent of available memory"""
    sweep: NotNegative = 600.0
    """seconds between two times that what nobody needs is collected, and what crashed engines left is put right"""


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
    supervise: Supervise = Supervise()
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
