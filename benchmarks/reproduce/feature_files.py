"""RAVDESS, CMU-MOSI and MELD's development part as `.npz` files of frozen features: modalities, speakers, protocol."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from benchmarks.reproduce import protocols
from conclugen.evaluation.config import MODES
from conclugen.evaluation.protocol import Protocol
from shards import group_id

PROTOCOL_FILE = "ravdess_protocol.json"
Measure = Literal["accuracy", "uar"]


@dataclass(frozen=True)
class DataSet:
    """Features, rows and protocol of one table.

    Attributes:
        title: Of the table.
        short: The same in a few words.
        protocol: Its name is that of the table.
        features: Modality -> (N, D); those that are pretrained on together.
        group: (N,) number of the speaker or video, as a batch carries it: whom negatives are of.
        modes: Normalisations, a table each.
        digest: Of the files.
        note: What a reader of its tables must know.
        judged: Modalities whose features and representations are judged; empty: all.
        values: (N,) a continuous label that is scored besides.
        measure: The score that systems are compared by.
        units: What the protocol's groups are, in the plural.
    """

    title: str
    protocol: Protocol
    features: Mapping[str, NDArray[np.float32]]
    group: NDArray[np.int64]
    modes: tuple[str, ...]
    digest: str
    note: str
    short: str
    judged: tuple[str, ...] = ()
    values: NDArray[np.float64] | None = None
    measure: Measure = "accuracy"
    units: str = "speakers"

    @property
    def shown(self) -> tuple[str, ...]:
        """The modalities that are judged."""
        return self.judged or tuple(self.features)


def read_ravdess(
    folder: Path,
    protocol_file: Path | None = None,
    draws: int = 5,
    draw_seed: int | None = None,
    design_draws: int | None = None,
) -> DataSet:
    """RAVDESS: 35 action units, 347 numbers of audio, 8 emotions; folds as the protocol file lists them, labels as it
    lists them or drawn from a seed; or the one fold that choices are made on, with so many draws of labels."""
    listing = find_protocol(folder, protocol_file)
    arrays, digest = _read(folder / "ravdess_features.npz")
    rows = (listing, arrays["actor"], arrays["emotion"], arrays["emotion_names"].tolist())
    protocol = protocols.ravdess_design(*rows, design_draws) if design_draws else protocols.ravdess(*rows)
    if draw_seed is not None:
        protocol = protocol.drawn(protocol.fractions, draws, draw_seed)
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
        hashlib.sha256(f"{digest} {listing.read_text()}".encode()).hexdigest(),
        "Livingstone & Russo 2018; 35 numbers of video (action units) and 347 of audio (eGeMAPS, MFCC statistics). "
        "Actors 1 to 20 are tested, in four folds of five; actors 21 to 24, which design choices were made on, only "
        "train.",
        "RAVDESS",
    )


def read_mosi(folder: Path, draws: int, table: str = "mosi_audio_text", seed: int = protocols.DRAW_SEED) -> DataSet:
    """CMU-MOSI: sentiment positive or not, the published split, seeded draws of labels.

    table: `mosi_audio_text`; `mosi_text`, in which text is judged by itself, its head having learned beside audio; or
    `mosi_all`, with the visual features that know the training labels.
    """
    arrays, digest = _read(folder / "mosi_features.npz")
    features = {"audio": arrays["audio_opensmile73"], "text": arrays["text_minilm384"]}
    if table == "mosi_all":
        features = {"video": arrays["visual_cnn100"]} | features
    videos = protocols.videos(arrays["ids"])
    protocol = protocols.mosi(arrays["ids"], arrays["positive"], arrays["split"], draws=draws, seed=seed)
    what, note = {
        "mosi_audio_text": ("audio and text", "73 numbers of audio (openSMILE) and 384 of text (MiniLM)."),
        "mosi_text": (
            "text alone",
            "The raw rows see the 384 numbers of text alone; the heads learned beside audio, and the text head is "
            "judged by itself.",
        ),
        "mosi_all": (
            "all three modalities",
            "Warning: `visual_cnn100` was fitted with the labels of the whole training part. A system with video has "
            "seen more labels than its column says, and block weights that are chosen on training rows trust it too "
            "much. The table is here because others use all three; read the two above.",
        ),
    }[table]
    return DataSet(
        f"CMU-MOSI, sentiment positive or not, {what}",
        replace(protocol, name=table),
        _complete(features),
        np.asarray([group_id(str(video)) for video in videos], dtype=np.int64),
        ("inductive",),
        digest,
        f"Zadeh et al. 2016. {note} The published split: one fold, 31 videos are tested.",
        f"MOSI {what}",
        ("text",) if table == "mosi_text" else (),
        arrays["sentiment"].astype(np.float64),
        units="videos",
    )


def read_meld(folder: Path, draws: int, seed: int = protocols.DRAW_SEED) -> DataSet:
    """MELD's development part: three modalities, 7 emotions, folds over dialogues; negatives are of one speaker."""
    arrays, digest = _read(folder / "meld_dev_features.npz")
    features = {
        "video": arrays["visual_au105"],
        "audio": arrays["audio_mel300"],
        "text": arrays["text_minilm384"],
    }
    rows = (arrays["dialogue"], arrays["emotion"], arrays["emotion_names"].tolist())
    return DataSet(
        "MELD, development part, seven emotions",
        protocols.meld(*rows, draws=draws, seed=seed),
        _complete(features),
        np.asarray([group_id(str(speaker)) for speaker in arrays["speaker"]], dtype=np.int64),
        ("inductive",),
        digest,
        "Poria et al. 2019; television dialogues, not the official split: four folds over the 114 dialogues of the "
        "development part. The same speakers are in training and test. Nearly half of the rows are neutral, and 22 "
        "are disgust: classes weigh the same in every loss, and unweighted average recall (UAR) chooses and compares. "
        "The official test is not part of this page.",
        "MELD dev",
        measure="uar",
        units="dialogues",
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
