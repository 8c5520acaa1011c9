"""Small labelled shards for tests of ablations: speakers, classes, modalities that share a signal, missing rows."""

from pathlib import Path

import numpy as np

from shards.packing.command import pack
from shards.packing.inputs import PackOptions
from shards.packing.labels import LabelSpec
from shards.planning.split import make_views


def write_labelled(
    folder: Path,
    modalities: tuple[str, ...] = ("video", "audio", "text"),
    speakers: int = 8,
    clips: int = 16,
    published: bool = False,
    missing: int = 0,
    seed: int = 0,
) -> Path:
    """`speakers` of `clips`, two classes in turn; the class and a latent show in every modality. published: views train
    and test, the last quarter of the speakers is tested. missing: rows without the last modality."""
    rng = np.random.default_rng(seed)
    count = speakers * clips
    emotion = np.tile([0, 1], count // 2)
    latent = rng.normal(size=(count, 2)) + 1.5 * emotion[:, None]
    speaker = np.repeat(np.arange(1, speakers + 1), clips)
    arrays = {m: (latent @ rng.normal(size=(2, 5)) + 0.5 * rng.normal(size=(count, 5))) for m in modalities}
    if missing:
        arrays[modalities[-1]][rng.choice(count, missing, replace=False)] = np.nan
    split = np.where(speaker > speakers - speakers // 4, "test", "train")
    folder.parent.mkdir(parents=True, exist_ok=True)
    source = folder.parent / f"{folder.name}.npz"
    np.savez(
        source,
        emotion=emotion,
        speaker=speaker,
        split=split,
        names=np.asarray(["calm", "happy"]),
        **{m: array.astype(np.float32) for m, array in arrays.items()},  # type: ignore[arg-type]
    )
    manifest, _ = pack(
        PackOptions(
            source=source,
            out=folder,
            columns={m: m for m in modalities},
            labels=[LabelSpec.parse("emotion:class:names=names")],
            group="speaker",
            meta={"split": "split"},
            max_shard_bytes=60_000,
        )
    )
    if published:
        for view in make_views(manifest, by="meta.split")[0]:
            view.save()
    return folder


TINY = {
    "representation_dim": 12,
    "projection_dim": 6,
    "reconstruction_hidden_dim": 8,
    "clusters": 3,
    "queue_batches": 1,
    "global_batch": 24,
    "epochs": 2,
}
