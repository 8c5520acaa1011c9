"""RAVDESS and CMU-MOSI as `.npz` files of frozen features: modalities, speakers, protocol and raw baselines."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.reproduce import protocols
from conclugen.evaluation.features import MODES
from conclugen.evaluation.protocol import Protocol
from shards import group_id

PROTOCOL_FILE = "ravdess_protocol.json"
_RAVDESS_AIMS = {
    "inductive": {0.03: 0.55, 0.1: 0.64, 1.0: 0.72},
    "speaker_normalised": {0.03: 0.72, 0.1: 0.80, 1.0: 0.87},
}


@dataclass(frozen=True)
class DataSet:
    """Features, rows and protocol of one set.

    features: modality -> (N, D). parts: name -> modalities whose representation is judged by itself as well. values
    (N,): a continuous label that is scored besides, or None. group (N,): number of the speaker or video, as a batch
    carries it. baselines: name of a system of raw features -> its modalities; the first is the one that recipes are
    compared with. digest: of the files. note: what a reader of its tables must know. aims: mode -> label fraction ->
    accuracy that `improved` was to reach, set before anything was measured.
    """

    title: str
    protocol: Protocol
    features: Mapping[str, NDArray[np.float32]]
    group: NDArray[np.int64]
    modes: tuple[str, ...]
    baselines: Mapping[str, tuple[str, ...]]
    digest: str
    note: str
    aims: Mapping[str, Mapping[float, float]]
    parts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    values: NDArray[np.float64] | None = None


def read_ravdess(folder: Path, protocol_file: Path | None = None, design_draws: int | None = None) -> DataSet:
    """RAVDESS: 35 action units, 347 numbers of audio, 8 emotions; folds and labels as the protocol file lists them, or
    the one fold that choices are made on, with so many draws of labels."""
    listing = find_protocol(folder, protocol_file)
    arrays, digest = _read(folder / "ravdess_features.npz")
    rows = (listing, arrays["actor"], arrays["emotion"], arrays["emotion_names"].tolist())
    protocol = protocols.ravdess_design(*rows, design_draws) if design_draws else protocols.ravdess(*rows)
    features = {
        "video": arrays["visual_au35"],
        "audio": np.concatenate([arrays["audio_egemaps88"], arrays["audio_mfcc259"]], axis=1),
    }
    return DataSet(
        "RAVDESS, eight emotions",
        protocol,
        _complete(features),
        arrays["actor"].astype(np.int64),
        MODES,
        {"raw features": ("video", "audio")},
        hashlib.sha256(f"{digest} {listing.read_text()}".encode()).hexdigest(),
        "Actors 1 to 20 are tested, in four folds of five; actors 21 to 24, which design choices were made on, only "
        "train. One interval covers all 20 test actors.",
        {} if design_draws else _RAVDESS_AIMS,
    )


def read_mosi(folder: Path, draws: int) -> DataSet:
    """CMU-MOSI: three modalities, sentiment positive or not, the published split, `draws` seeded draws of labels."""
    arrays, digest = _read(folder / "mosi_features.npz")
    features = {
        "video": arrays["visual_cnn100"],
        "audio": arrays["audio_opensmile73"],
        "text": arrays["text_minilm384"],
    }
    videos = protocols.videos(arrays["ids"])
    return DataSet(
        "CMU-MOSI, sentiment positive or not",
        protocols.mosi(arrays["ids"], arrays["positive"], arrays["split"], draws=draws),
        _complete(features),
        np.asarray([group_id(str(video)) for video in videos], dtype=np.int64),
        ("inductive",),
        {"raw features, text alone": ("text",), "raw features, all modalities": ("video", "audio", "text")},
        digest,
        "The published split, one fold: there is no deviation over folds. `visual_cnn100` was fitted with the labels "
        "of the whole training part, so a system with video has seen more labels than its column says; text alone, "
        "the one to beat, has not. The rows `text alone` of a recipe are the representation of its text head, learned "
        "beside the others and judged by itself.",
        {},
        {"text alone": ("text",)},
        arrays["sentiment"].astype(np.float64),
    )


def find_protocol(folder: Path, given: Path | None = None) -> Path:
    """The file of folds and draws. Raises ValueError naming every place looked at when there is none."""
    places = [folder / PROTOCOL_FILE, folder.parent / "reference" / PROTOCOL_FILE]
    if given is not None:
        places.insert(0, given)
    for place in places:
        if place.is_file():
            return place
    looked = ", ".join(str(place) for place in places)
    flag = "--protocol" if given is not None else "--protocol (not given)"
    raise ValueError(f"{flag}: no protocol file of RAVDESS; looked at {looked}; name one: --protocol FILE")


def _read(path: Path) -> tuple[dict[str, NDArray[np.generic]], str]:
    if not path.is_file():
        raise ValueError(f"--data: {path} is missing; name the folder that holds it")
    with np.load(path, allow_pickle=False) as stored:
        return {name: stored[name] for name in stored.files}, hashlib.sha256(path.read_bytes()).hexdigest()


def _complete(features: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.float32]]:
    complete = {name: np.asarray(array, dtype=np.float32) for name, array in features.items()}
    for name, array in complete.items():
        rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
        if len(rows):
            raise ValueError(f"features of {name}: row {rows[0]} holds NaN or infinity; expected complete rows")
    return complete
