"""Where a run, a sweep or an ablation is tracked: the one place that says so.

Each job writes the destination into its own folder (`tracking.json`) when it starts. Whatever is added later - an
evaluation, a report, records that a server missed - asks `uri_of_run`, and so do the runs nested below the folder,
which have no such file of their own. All of it thus stays one parent with its children on one server.

A folder may come from somebody else. Then its files must not decide where this user's results and credentials go.
"""

from __future__ import annotations

import os
from pathlib import Path

from conclugen.common import paths, uris
from conclugen.common.atomic import write_json
from conclugen.common.reading import read_mapping
from ray_jobs.tracking.mlflow_environment import check_tracking_uri, default_tracking_uri

FILE = "tracking.json"
_LONGEST = 4096  # bytes of such a file; no URI is longer
_LONGEST_CONFIG = 16 << 20
_LEVELS = 3  # a trial lies two folders below its sweep: <sweep>/trials/<trial>


def remember(folder: str | Path, given: str | None) -> str:
    """Write where a folder is tracked, for all that is added to it later. Returns the URI to use.

    given: what the user asked for; None: what `uri_of_run` finds, so that a job that continues stays on its server.
    Raises ValueError as `uri_of_run` does.
    """
    folder = paths.absolute(folder, "run").resolve()
    uri = uri_of_run(folder, given)
    stored = None if uri == default_tracking_uri(folder.parent) else uris.public(uri)
    write_json(folder / FILE, {"tracking_uri": stored})
    return uri


def uri_of_run(folder: str | Path, given: str | None = None) -> str:
    """Where the run in `folder` is tracked, or the sweep or ablation that it is nested under.

    given: what the user asked for; it is taken as it is. Without it, the destination that the folder names is used only
    where it is the default store beside the folder, or what the user's MLFLOW_TRACKING_URI says.

    Raises ValueError naming any other destination and how to confirm it, or a file that can't be read.
    """
    if given is not None:
        return check_tracking_uri(given)
    folder = paths.absolute(folder, "run").resolve()
    owner, stored = _nearest(folder)
    default = default_tracking_uri(owner.parent)
    if stored is None or stored == default:
        return default
    mine = os.environ.get("MLFLOW_TRACKING_URI")
    if mine is not None and uris.public(mine) == stored:
        return check_tracking_uri(mine)
    raise ValueError(
        f"{owner}: this folder says that it is tracked at {uris.public(stored)}. If that is your server, confirm it by "
        f"--tracking_uri {uris.public(stored)}, or set MLFLOW_TRACKING_URI to it; nothing was sent"
    )


def _nearest(folder: Path) -> tuple[Path, str | None]:
    """The folder that says where this one is tracked (itself, or one it is nested in), and what it says."""
    for owner in (folder, *list(folder.parents)[: _LEVELS - 1]):
        file = owner / FILE
        if os.path.lexists(file):  # a pipe or a broken link is not a reason to look elsewhere
            return owner, _read(file)
        if (owner / "config.json").is_file():  # a run of version 0.1, which kept it there
            return owner, _read(owner / "config.json", "run")
    return folder, None


def _read(file: Path, section: str | None = None) -> str | None:
    try:
        content = read_mapping(file, _LONGEST if section is None else _LONGEST_CONFIG)
        part = content if section is None else content.get(section, {})
        stored = part.get("tracking_uri")
        if not (stored is None or isinstance(stored, str)):
            raise ValueError(f"tracking_uri: must be text or null, got {stored!r:.80}")
    except (OSError, ValueError, AttributeError) as error:
        raise ValueError(
            f"{file}: does not say where the folder is tracked ({error}); give --tracking_uri, or start the job again "
            "under its name, which writes the file again"
        ) from error
    return stored
