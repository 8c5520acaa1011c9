"""An encoder of another package, and one of a user's own module: found, checked, refused in one line, and used."""

from __future__ import annotations

import dataclasses
import io
import json
import subprocess
import sys
import tarfile
from collections.abc import Iterator
from importlib.metadata import EntryPoint
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conclugen import encoders
from conclugen.common.options import OptionsError, save
from conclugen.encoders import registry
from conclugen.encoders.encoder import EncoderError, check_encoder, sequences_of
from ray_jobs import embed, extract_features
from ray_jobs.extraction.clip_features import Decoded
from ray_jobs.extraction.extract import choices_of
from ray_jobs.extraction.plan import Decoding, EncoderChoice
from ray_jobs.options.extract import EncoderOptions
from shards.clips.decode import decode_clip
from shards.clips.reader import ClipReader
from shards.format.manifest import Manifest
from shards.planning.view import View
from shards.reading.reader import Reader
from tests import installed
from tests.ray_jobs.embedding.test_embed import make_run
from tests.ray_jobs.extraction.extraction_loop import make_clips, make_plan, run_loop
from tests.shards.media.make_media import make_video, sine

PACKAGE = Path(__file__).parent
MODULE = """
from conclugen_tone import ToneEncoder
from dataclasses import replace

class Warm(ToneEncoder):
    def __init__(self, weights, mirror, device):
        super().__init__(weights, mirror, device)
        self.info = replace(self.info, name="warm", column="audio_warm")

ENCODERS = {"warm": Warm}
"""


@pytest.fixture
def tone(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The package, importable, its encoder registered."""
    monkeypatch.syspath_prepend(str(PACKAGE))
    found = registry.collect([EntryPoint("tone", "conclugen_tone:ToneEncoder", registry.GROUP)])
    monkeypatch.setattr(registry, "_registry", lambda: found)
    monkeypatch.setattr(registry, "_plugged", {})
    yield encoders.create("tone")


def test_it_is_used_like_any_other(tone: Any, tmp_path: Path) -> None:
    """At its own sampling rate, mean and deviation; features say who made them."""
    clips = make_clips(tmp_path / "clips", 1, 3)
    run_loop(make_plan(clips, tmp_path / "out", ("tone", "random-image", "random-audio")))
    manifest = Manifest.open(tmp_path / "out")
    assert manifest.modalities["audio"] == ("audio_tone", "random_audio")
    providers = {item["name"]: item["provider"] for item in manifest.info["features"]["encoders"]}
    assert providers == {"tone": "conclugen_tone:ToneEncoder", "random-image": "conclugen", "random-audio": "conclugen"}
    clip = ClipReader(clips).read(0, 0)
    samples = decode_clip(clip, (), sample_rate=8000).samples
    decoded = Decoded.of(clip, [tone.info.takes, encoders.create("random-audio").info.takes], Decoding())
    np.testing.assert_array_equal(decoded.samples[8000], samples)
    assert {key: len(x) for key, x in decoded.inputs((0.1, 0.6)).items()} == {"wave_8000": 4000, "wave_16000": 8000}
    (sequence,) = tone.encode_sequence([samples])
    steps = np.array([np.sqrt(np.mean(samples[i : i + 800] ** 2)) for i in range(0, len(samples), 800)])
    np.testing.assert_allclose(sequence[:, 0], steps, rtol=1e-5)
    expected = np.concatenate([sequence.mean(axis=0), sequence.std(axis=0)])
    np.testing.assert_allclose(tone.encode([samples])[0], expected, rtol=1e-5)


@pytest.mark.parametrize(("steps", "dtype"), [(7, np.float32), (8, np.float64)])
def test_its_sequences_are_kept_step_by_step(
    tone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int, dtype: type
) -> None:
    """A step is half as wide as the feature, which is mean and deviation; an odd and an even number of steps."""
    clips, own = make_clips(tmp_path / "clips", 1, 2), type(tone).encode_sequence
    sounds = {clip.key: decode_clip(clip, (), sample_rate=8000).samples for clip in ClipReader(clips).clips(0)}
    expected = {key: own(tone, [sound])[0][:steps] for key, sound in sounds.items()}
    monkeypatch.setattr(type(tone), "encode_sequence", lambda *of: [x[:steps].astype(dtype) for x in own(*of)])
    run_loop(make_plan(clips, tmp_path / "out", ("tone",), sequences=True))
    with tarfile.open(tmp_path / "out/sequences/clips-000000.tar") as tar:
        found = {one.name: np.load(io.BytesIO(tar.extractfile(one).read())) for one in tar}  # type: ignore[union-attr]
    assert list(found) == ["c0.audio_tone.npy", "c1.audio_tone.npy"]
    for key, sequence in expected.items():
        np.testing.assert_array_equal(found[f"{key}.audio_tone.npy"], sequence)
    manifest = Manifest.open(tmp_path / "out")
    features = Reader(manifest, View.everything(manifest)).read(0, 0, 2).features["audio"]
    pooled = [np.concatenate([x.mean(0), x.std(0)]) for x in expected.values()]
    np.testing.assert_allclose(features, pooled, rtol=1e-5)


def test_names_cost_no_import(monkeypatch: pytest.MonkeyPatch) -> None:
    found = registry.collect([EntryPoint("far", "no_such_module:Far", registry.GROUP)])
    monkeypatch.setattr(registry, "_registry", lambda: found)
    assert "far" in extract_features.known_encoders() and encoders.resolve(["far"]) == ("far",)
    with pytest.raises(ValueError, match=r"encoder 'far' of no_such_module:Far can't be used: ModuleNotFoundError"):
        encoders.create("far")


def test_own_names_and_doubles_are_refused() -> None:
    points = [
        EntryPoint(name, "math:sqrt", registry.GROUP) for name in ("prosody", "offline", "twice", "twice", "Odd:x")
    ]
    problems = {name.partition(" of ")[0]: line for name, line in registry.collect(points).problems.items()}
    assert "conclugen has an encoder of this name" in problems["prosody"]
    assert "'offline' is a set of encoders; rename it" in problems["offline"]
    assert "registered twice" in problems["twice"] and "small letters and digits" in problems["Odd:x"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"name": "tune"}, "name: found 'tune', expected 'tone', as it is registered"),
        ({"column": "a.b"}, "column: found 'a.b', expected at most 36 letters"),
        ({"width": 0}, "width: found 0, expected a number above 0"),
        ({"width": 3}, "width: found 3, expected an even number"),
        ({"pooling": "max"}, "pooling: found 'max', expected one of mean, meanstd$"),
        ({"stored_layers": 2}, "stored_layers: found 2, expected 0, or layers that are equally wide, pooled by mean"),
        ({"stored_layers": 4, "pooling": "mean", "width": 6}, "stored_layers: found 4, expected 0, or layers"),
        ({"stored_layers": -1, "pooling": "mean"}, "stored_layers: found -1, expected 0, or layers"),
        ({"takes": encoders.Takes("smell")}, "takes.kind: found 'smell', expected one of frames, wave, mel, text"),
        ({"takes": encoders.Takes("frames", 1.0)}, r"takes.size: found None, expected \(height, width\)"),
        ({"takes": encoders.Takes("wave", 0.5)}, "takes.rate: found 0.5, expected a whole number"),
        ({"digest": "x"}, "digest: found 'x', expected SHA-256"),
    ],
)
def test_an_encoder_that_is_not_properly_made(tone: Any, change: dict[str, Any], words: str) -> None:
    tone.info = dataclasses.replace(tone.info, **change)
    with pytest.raises(ValueError, match=words):
        check_encoder(tone, "tone")


@pytest.mark.parametrize("size", [64, (64,), [64, 64]])
def test_a_size_is_a_height_and_a_width(size: Any) -> None:
    with pytest.raises(ValueError, match=r"takes.size: must be \(height, width\), such as \(64, 64\), got "):
        encoders.Takes("frames", 4.0, size)


@pytest.mark.parametrize("shape", [(5, 3), (0, 2), (2,)])
def test_output_of_another_width_is_a_fault_and_no_feature(
    tone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shape: tuple[int, ...]
) -> None:
    """In the loop, in one call, and in the job's stages: nothing is stored, and the line names encoder and option."""
    monkeypatch.setattr(type(tone), "encode_sequence", lambda self, batch: [np.zeros(shape, np.float32)] * len(batch))
    told = r"encoder tone: gave vectors of shape .*its info says \(steps, 2\); fix it, or leave it out of --encoders"
    for call in (lambda: sequences_of(tone, [np.ones(9)]), lambda: tone.encode([np.ones(9)])):
        with pytest.raises(EncoderError, match=told):
            call()
    with pytest.raises(EncoderError, match=told):
        run_loop(make_plan(make_clips(tmp_path / "clips", 1, 2), tmp_path / "out", ("tone",)))
    assert not list((tmp_path / "out").glob("*.tar"))


def test_a_module_of_the_command_line(tone: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "my_encoders.py").write_text(MODULE)
    options = EncoderOptions(plugin=("my_encoders",))
    with pytest.raises(ValueError, match="encoder 'warm' comes from the module my_encoders: name it with --plugin my_"):
        choices_of(["warm"], EncoderOptions(), {"warm": "module my_encoders"})
    with pytest.raises(ValueError, match=r"comes from conclugen-cold 2\.0, which is not installed here: install it"):
        choices_of(["cold"], options, {"cold": "conclugen-cold 2.0"})
    with pytest.raises(ValueError, match="encoder 'hf-image:/tmp/x': what features are made with has a name, and no"):
        choices_of(["hf-image:/tmp/x"], options, {})
    (choice,) = choices_of(["warm"], options)
    assert choice == EncoderChoice("warm", plugin="my_encoders") and choice.provider == "module my_encoders"
    monkeypatch.setattr(registry, "_plugged", {})  # as in an actor, which was given the choice alone
    assert choice.create("cpu").info.column == "audio_warm"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (None, "module 'bad_plugin' can't be imported: ModuleNotFoundError"),
        ("1 / 0", "module 'bad_plugin' can't be imported: ZeroDivisionError"),
        ("", "bad_plugin.ENCODERS is None, expected a mapping from names to factories"),
        ("ENCODERS = {'x': 3}", r"bad_plugin.ENCODERS is \{'x': 3\}, expected a mapping"),
        ("ENCODERS = {'prosody': print}", "names 'prosody', which conclugen has; choose another name"),
        ("ENCODERS = {'paper': print}", "names 'paper', which a set has; choose another name"),
    ],
)
def test_modules_that_do_not_serve(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str | None, words: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    if text is not None:
        (tmp_path / "bad_plugin.py").write_text(text)
    with pytest.raises(ValueError, match=f"plugin: .*{words}"):
        choices_of(["prosody"], EncoderOptions(plugin=("bad_plugin",)))
    sys.modules.pop("bad_plugin", None)


@pytest.mark.parametrize("command", [extract_features.COMMAND, embed.COMMAND])
def test_files_name_no_modules(tmp_path: Path, command: Any, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "job.yaml").write_text("plugin: [os]\n")
    with pytest.raises(OptionsError, match=r"job\.yaml: plugin: names code to import, which files may not; .*--plugin"):
        command.parse(["--config", str(tmp_path / "job.yaml")])
    with pytest.raises(SystemExit):
        command.parse(["--plugin", "os", "--print-config"])
    assert "plugin:" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["job.yaml", "job.json"])
def test_a_saved_job_names_no_modules_and_can_be_read(tmp_path: Path, name: str) -> None:
    job = extract_features.ExtractJob(data="clips", output=tmp_path / "out", plugin=("os",))
    save(job, tmp_path / name)
    read = extract_features.COMMAND.parse(["--config", str(tmp_path / name)])
    assert read == dataclasses.replace(job, plugin=())


@pytest.mark.slow  # four processes, three of them with a Ray of their own
@pytest.mark.timeout(900)
def test_it_goes_through_the_jobs(tmp_path: Path) -> None:
    """Actors, resume and `embed`, as a user starts them; the vectors are those of the loop."""
    (tmp_path / "my_encoders.py").write_text(MODULE)
    environment = installed.environment(PACKAGE, tmp_path / "site")
    clips, out = make_clips(tmp_path / "clips", 2, 12, pictures=25), tmp_path / "features"

    def job(module: str, *arguments: str, status: int = 0) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", module, *arguments]
        done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=400)
        assert done.returncode == status, f"{done.stdout[-2000:]}\n{done.stderr[-3000:]}"
        return done

    encoders = ["--encoders", "tone", "warm", "random-image", "--plugin", "my_encoders"]
    job("ray_jobs.extract_features", "--data", clips.folder, "--output", str(out), *encoders)
    manifest = Manifest.open(out)
    made = {path.name: path.read_bytes() for path in out.glob("*.tar")}
    (out / "reports/clips-000001.json").unlink()  # as a killed job leaves it
    assert (
        "1 from an earlier start"
        in job("ray_jobs.extract_features", "--data", clips.folder, "--output", str(out), *encoders).stdout
    )
    assert {path.name: path.read_bytes() for path in out.glob("*.tar")} == made
    providers = {item["name"]: item["provider"] for item in manifest.info["features"]["encoders"]}
    assert providers == {"tone": "conclugen-tone 0.1", "warm": "module my_encoders", "random-image": "conclugen"}

    make_run(tmp_path, "run", ("video", "audio"))
    video = make_video(tmp_path / "new.mp4", 50, (48, 64), sound=sine(2.0, 44_100, 1))
    arguments = ["--run", "run", "--output", str(tmp_path / "runs"), str(video)]
    told = job("ray_jobs.embed", *arguments, status=2).stderr
    assert "encoder 'warm' comes from the module my_encoders: name it with --plugin my_encoders" in told
    assert "1 of 1 clips" in job("ray_jobs.embed", *arguments, "--plugin", "my_encoders").stdout
    assert json.loads((tmp_path / "runs/run/config.json").read_text())
