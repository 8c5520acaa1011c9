"""Models of Hugging Face, small and random, saved with their preprocessors: beside the library's own by hand."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from conclugen import encoders
from conclugen.encoders import hub_models
from conclugen.encoders import hugging_face as hf
from conclugen.encoders.encoder import differences
from conclugen.encoders.hf_frames import windows
from conclugen.encoders.weights import WeightsError

transformers = pytest.importorskip("transformers", reason="the extra `offline` is not installed")

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
}
SPEECH = SMALL | {
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 3, 3),
    "conv_stride": (5, 8, 8),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
PATCHES = SMALL | {"image_size": 32, "patch_size": 8}
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "one", "two", "three", "four"]
SQUARE = {"height": 32, "width": 32}
TEXT_SIDE = SMALL | {"vocab_size": 20, "max_position_embeddings": 16}


def make(kind: str, folder: Path, seed: int = 0) -> Path:
    """A random model of a kind, and its preprocessor, as the library saves them; weights in several files."""
    t, c = transformers, dict[str, Any]
    torch.manual_seed(sum(kind.encode()) + seed)
    model: Any
    before: Any
    if kind in ("wav2vec2", "wavlm"):
        name = {"wav2vec2": "Wav2Vec2", "wavlm": "WavLM"}[kind]
        model = getattr(t, f"{name}Model")(getattr(t, f"{name}Config")(**SPEECH))
        before = t.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=False)
    elif kind == "hubert":  # as the large ones are: normalised by layers, with a mask
        layered = {"feat_extract_norm": "layer", "do_stable_layer_norm": True}
        model = t.HubertModel(t.HubertConfig(**SPEECH, **layered))
        before = t.Wav2Vec2FeatureExtractor(do_normalize=True, return_attention_mask=True)
    elif kind == "whisper":
        sizes = c(d_model=32, encoder_layers=2, decoder_layers=1, encoder_ffn_dim=48, decoder_ffn_dim=48)
        heads = c(encoder_attention_heads=2, decoder_attention_heads=2, num_mel_bins=16, max_source_positions=100)
        tokens = c(vocab_size=20, pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1)
        model = t.WhisperModel(t.WhisperConfig(**sizes, **heads, **tokens))
        before = t.WhisperFeatureExtractor(feature_size=16, chunk_length=2)
    elif kind == "audio-spectrogram-transformer":
        model = t.ASTModel(t.ASTConfig(**SMALL, num_mel_bins=32, max_length=128))
        before = t.ASTFeatureExtractor(num_mel_bins=32, max_length=128)
    elif kind == "clap":
        swin = c(depths=[1, 1], num_attention_heads=[2, 2], patch_size=2, patch_stride=2, patch_embeds_hidden_size=16)
        audio = c(spec_size=64, num_mel_bins=16, window_size=4, hidden_size=32, num_hidden_layers=2)
        model = t.ClapModel(t.ClapConfig(audio_config=c(**swin, **audio), text_config=TEXT_SIDE, projection_dim=8))
        before = t.ClapFeatureExtractor(feature_size=16, max_length_s=2, truncation="rand_trunc")
    elif kind == "vit":
        model, before = t.ViTModel(t.ViTConfig(**PATCHES)), t.ViTImageProcessor(size=SQUARE)
    elif kind == "dinov2":
        model = t.Dinov2Model(t.Dinov2Config(**PATCHES))
        before = t.BitImageProcessor(size={"shortest_edge": 40}, crop_size=SQUARE)
    elif kind == "clip":
        model = t.CLIPModel(t.CLIPConfig(text_config=TEXT_SIDE, vision_config=PATCHES, projection_dim=8))
        before = t.CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    elif kind == "siglip":
        model = t.SiglipModel(t.SiglipConfig(text_config=TEXT_SIDE, vision_config=PATCHES))
        before = t.SiglipImageProcessor(size=SQUARE)
    elif kind in ("videomae", "timesformer"):
        name = {"videomae": "VideoMAE", "timesformer": "Timesformer"}[kind]
        model = getattr(t, f"{name}Model")(getattr(t, f"{name}Config")(**PATCHES, num_frames=4))
        before = t.VideoMAEImageProcessor(size={"shortest_edge": 32}, crop_size=SQUARE)
    else:
        folder.mkdir(parents=True)
        (folder / "vocab.txt").write_text("\n".join(WORDS))
        model = t.BertModel(t.BertConfig(**SMALL, vocab_size=len(WORDS), max_position_embeddings=16))
        before = t.BertTokenizer(str(folder / "vocab.txt"), model_max_length=16)
    model.save_pretrained(folder, max_shard_size="40KB")
    before.save_pretrained(folder)
    (folder / "README.md").write_text("---\ntags: [x]\nlicense: apache-2.0\n---\n# A model\n")
    return folder


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Kind -> folder, made when it is first asked for."""
    root = tmp_path_factory.mktemp("models")
    return lambda kind: root / kind if (root / kind).exists() else make(kind, root / kind)


def inputs(encoder: encoders.Encoder) -> list[Any]:
    """Three clips of unlike length, of one window."""
    rng, takes = np.random.default_rng(7), encoder.info.takes
    if takes.kind == "text":
        return ["one two three", "four", "two two"]
    if takes.kind == "wave":
        return [rng.standard_normal(int(takes.rate * s)).astype(np.float32) * 0.1 for s in (0.7, 0.3, 1.0)]
    lengths = (4, 4, 8) if encoder.info.name.startswith("hf-video") else (3, 1, 2)
    return [rng.integers(0, 256, (n, *takes.size, 3), dtype=np.uint8) for n in lengths]  # type: ignore[misc]


def network_of(kind: str, folder: Path) -> Any:
    """The part of the model, by the library's own class."""
    t = transformers
    load = {
        "wav2vec2": lambda: t.Wav2Vec2Model.from_pretrained(folder),
        "hubert": lambda: t.HubertModel.from_pretrained(folder),
        "wavlm": lambda: t.WavLMModel.from_pretrained(folder),
        "whisper": lambda: t.WhisperModel.from_pretrained(folder).encoder,
        "audio-spectrogram-transformer": lambda: t.ASTModel.from_pretrained(folder),
        "clap": lambda: t.ClapModel.from_pretrained(folder).audio_model,
        "vit": lambda: t.ViTModel.from_pretrained(folder),
        "dinov2": lambda: t.Dinov2Model.from_pretrained(folder),
        "clip": lambda: t.CLIPVisionModel.from_pretrained(folder),
        "siglip": lambda: t.SiglipVisionModel.from_pretrained(folder),
        "videomae": lambda: t.VideoMAEModel.from_pretrained(folder),
        "timesformer": lambda: t.TimesformerModel.from_pretrained(folder),
        "bert": lambda: t.BertModel.from_pretrained(folder),
    }
    return load[kind]().eval()


def by_hand(kind: str, folder: Path, item: Any, rate: float) -> Callable[[int | None], np.ndarray]:
    """Layer (None: the last output) -> the vector of a clip, by the library's own preprocessor and network."""
    network = network_of(kind, folder)
    if kind == "bert":
        given = transformers.AutoTokenizer.from_pretrained(folder)(item, return_tensors="pt")
    elif kind in hf.KINDS["hf-audio"]:
        extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
        given = extractor(item, sampling_rate=int(rate), return_tensors="pt")
    else:
        given = transformers.AutoImageProcessor.from_pretrained(folder)(list(item), return_tensors="pt")
        if kind in hf.KINDS["hf-video"]:
            given["pixel_values"] = given["pixel_values"].reshape(-1, 4, 3, 32, 32)
    with torch.inference_mode():
        output = network(**given, output_hidden_states=True)

    def vector(layer: int | None) -> np.ndarray:
        hidden = output.last_hidden_state if layer is None else output.hidden_states[layer]
        if kind == "clap":  # (1, width, bands, time)
            return hidden[0].mean((1, 2)).numpy()
        if kind == "whisper":  # 100 steps of 20 ms
            return hidden[0, : -(-len(item) // 320)].mean(0).numpy()
        if kind == "audio-spectrogram-transformer":
            bands, times = (32 - 16) // 10 + 1, (128 - 16) // 10 + 1
            frames = (len(item) - 400) // 160 + 1  # of 25 ms, every 10 ms
            grid = hidden[0, 2:].reshape(bands, times, -1)
            return grid[:, [at for at in range(times) if at * 10 < frames]].mean((0, 1)).numpy()
        if kind in ("siglip", "videomae"):
            return hidden.mean(1).mean(0).numpy()
        if kind in ("vit", "dinov2", "clip", "timesformer"):
            return hidden[:, 0].mean(0).numpy()
        return hidden[0].mean(0).numpy()

    return vector


FAMILY = {kind: family for family, kinds in hf.KINDS.items() for kind in kinds} | {"bert": "hf-text"}


@pytest.mark.parametrize("kind", FAMILY)
def test_it_is_the_library_s_own_arithmetic_for_any_batch_and_layer(kind: str, models: Callable[[str], Path]) -> None:
    folder = models(kind)
    assert len(list(folder.glob("*.safetensors"))) > 1  # sharded
    name = f"{FAMILY[kind]}:{folder}"
    encoder = encoders.create(name)
    clips = inputs(encoder)
    together = encoder.encode(clips)
    expected = [by_hand(kind, folder, item, encoder.info.takes.rate) for item in clips]
    assert np.abs(together).max() > 1e-3 and np.ptp(together, axis=0).max() > 1e-4  # something, and of the clip
    for clip, vector, own in zip(clips, together, expected, strict=True):
        np.testing.assert_allclose(vector, own(None), atol=1e-5)
        np.testing.assert_allclose(encoder.encode([clip])[0], vector, atol=1e-5)
    first, mean = encoders.create(f"{name}@layer=1"), expected[0](1)
    np.testing.assert_allclose(first.encode(clips[:1])[0], mean, atol=1e-5)
    assert first.info.layers == "1" and first.info.column != encoder.info.column
    if kind != "clap":  # whose layers are of unlike widths
        mean = (expected[0](1) + expected[0](2)) / 2
        np.testing.assert_allclose(encoders.create(f"{name}@layers=1-2").encode(clips[:1])[0], mean, atol=1e-5)
        every = encoders.create(f"{name}@layers=all")
        info = every.info
        assert (info.layers, info.stored_layers, info.width) == ("0-2", 3, 3 * first.info.width)
        block = every.encode(clips)[0].reshape(3, -1)
        for layer in (0, 1, 2):
            np.testing.assert_allclose(block[layer], expected[0](layer), atol=1e-5)
    info = encoder.info
    assert (info.name, info.licence, info.width) == (f"{FAMILY[kind]}:{kind}", "apache-2.0", together.shape[1])


@pytest.mark.parametrize("kind", ["wavlm", "whisper", "audio-spectrogram-transformer", "clap"])
def test_long_and_short_sound(kind: str, models: Callable[[str], Path]) -> None:
    """Longer than a window: the windows' own steps, joined. Shorter than a step: one vector, finite."""
    encoder = encoders.create(f"hf-audio:{models(kind)}")
    window = encoder._part.window  # type: ignore[attr-defined]
    samples = np.random.default_rng(3).standard_normal(window + 8000).astype(np.float32)
    parts = [encoder.encode_sequence([part])[0] for part in (samples[:window], samples[window:])]
    np.testing.assert_allclose(encoder.encode_sequence([samples])[0], np.concatenate(parts), atol=1e-5)
    short = encoder.encode([np.ones(1, np.float32)])
    assert short.shape == (1, encoder.info.width) and np.isfinite(short).all()


@pytest.mark.parametrize("kind", ["vit", "wav2vec2", "bert", "timesformer"])
def test_pooling(kind: str, models: Callable[[str], Path]) -> None:
    name = f"{FAMILY[kind]}:{models(kind)}"
    plain, both = encoders.create(name), encoders.create(f"{name}@pool=meanstd")
    clip = inputs(plain)[0]
    sequence = plain.encode_sequence([clip])[0]
    assert both.info.width == 2 * plain.info.width and both.info.pooling == "meanstd"
    wanted = np.concatenate([sequence.mean(0), sequence.std(0)])
    np.testing.assert_allclose(both.encode([clip])[0], wanted, atol=1e-5)
    if kind == "bert":
        first = encoders.create(f"{name}@pool=first").encode([clip])[0]
        np.testing.assert_allclose(first, sequence[0], atol=1e-5)
    if kind == "vit":
        patches = encoders.create(f"{name}@pool=mean").encode([clip])[0]
        network, processor = network_of(kind, models(kind)), transformers.AutoImageProcessor
        pixels = processor.from_pretrained(models(kind))(list(clip), return_tensors="pt")
        with torch.inference_mode():
            hidden = network(**pixels).last_hidden_state
        np.testing.assert_allclose(patches, hidden[:, 1:].mean((0, 1)).numpy(), atol=1e-5)


@pytest.mark.parametrize("kind", FAMILY)
def test_precision_is_chosen_by_name(kind: str, models: Callable[[str], Path]) -> None:
    """No device chooses it: another precision is another name, column and identity."""
    name = f"{FAMILY[kind]}:{models(kind)}"
    whole, half = encoders.create(name), encoders.create(f"{name}@dtype=bfloat16")
    assert (whole.dtype, half.dtype) == (torch.float32, torch.bfloat16)  # type: ignore[attr-defined]
    assert half.info.name == f"{whole.info.name}@dtype=bfloat16" and half.info.column != whole.info.column
    assert half.info.digest == whole.info.digest and half.info.identity() != whole.info.identity()
    # So that features made when the device chose the precision, which said nothing of it, are others than both.
    said = [info.preprocessing.rpartition("; ")[2] for info in (whole.info, half.info)]
    assert said == ["computed in float32", "computed in bfloat16"]
    clips = inputs(whole)
    exact, rough = whole.encode(clips), half.encode(clips)
    assert 1e-5 < np.abs(rough - exact).max() < 0.1 * np.abs(exact).max()


def test_windows_of_frames() -> None:
    assert [part.tolist() for part in windows(2, 4)] == [[0, 0, 1, 1]]
    assert [part.tolist() for part in windows(9, 4)] == [[0, 1, 2, 3], [4, 5, 6, 7], [5, 6, 7, 8]]
    assert [part.tolist() for part in windows(4, 4)] == [[0, 1, 2, 3]]


@pytest.mark.parametrize(
    ("family", "kind", "options", "words"),
    [
        ("hf-audio", "vit", "", "of the kind 'vit', allowed for hf-audio: wav2vec2, .*; give hf-image:"),
        ("hf-image", "wavlm", "", "of the kind 'wavlm', allowed for hf-image: vit, .*; give hf-audio:"),
        ("hf-image", "videomae", "", "allowed for hf-image: vit.*; give hf-video:"),
        ("hf-video", "bert", "", "of the kind 'bert', allowed for hf-video: videomae, timesformer$"),
        ("hf-text", "vit", "", "of the kind 'vit', expected one that takes text; give hf-image:"),
        ("hf-audio", "wavlm", "@layer=3", "@layer: 3 does not exist, the model has the layers 0 to 2"),
        ("hf-text", "bert", "@layers=1-9", "@layers: 9 does not exist, the model has the layers 0 to 2"),
        ("hf-audio", "clap", "@layers=all", r"@layers: these layers have the shapes .*; choose @layer=N"),
        ("hf-audio", "wavlm", "@layers=all@pool=meanstd", "@pool is 'meanstd', allowed with @layers=all: mean, first"),
        ("hf-audio", "clap", "@layers=0-1", r"@layers: these layers have the shapes .*; choose @layer=N"),
        ("hf-audio", "wavlm", "@pool=first", "@pool=first: a wavlm has no class token, allowed: mean, meanstd"),
        ("hf-image", "siglip", "@pool=first", "@pool=first: a siglip has no class token"),
        ("hf-audio", "wavlm", "@fps=3", "@fps is an option of hf-image and hf-video; leave it out"),
        ("hf-audio", "wavlm", "@layer=x", "@layer is 'x', expected a number, such as 9"),
        ("hf-audio", "wavlm", "@layers=6-2", "@layers is '6-2', expected two numbers, the lower first"),
        ("hf-audio", "wavlm", "@layer=1@layers=1-2", "@layer and @layers are both given; give one"),
        ("hf-audio", "wavlm", "@pool=max", "@pool is 'max', allowed: mean, meanstd, first"),
        (
            "hf-audio",
            "wavlm",
            "@lair=1",
            "the option @lair is unknown, allowed: revision, layer, layers, pool, fps, dtype",
        ),
        ("hf-audio", "wavlm", "@layer=1@layer=2", "the option @layer is given twice"),
        ("hf-image", "vit", "@revision=main", "@revision is of a hub's models, and .* is a folder; leave it out"),
        (
            "hf-text",
            "bert",
            "@dtype=half",
            "@dtype is 'half', allowed: bfloat16; without it the network computes in fl",
        ),
        ("hf-image", "vit", "@fps=0", "@fps is '0', expected frames a second, above 0"),
    ],
)
def test_what_does_not_serve_is_told_in_one_line(
    models: Callable[[str], Path], family: str, kind: str, options: str, words: str
) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        encoders.create(f"{family}:{models(kind)}{options}")
    assert "\n" not in str(caught.value) and str(caught.value).startswith(f"encoder {family}:")


def test_pickles_and_code_are_never_loaded(models: Callable[[str], Path], tmp_path: Path) -> None:
    folder = shutil.copytree(models("vit"), tmp_path / "vit")
    tensors = {"x": torch.zeros(2)}
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    torch.save(tensors, folder / "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"its weights are pytorch_model\.bin, a pickle, which is never loaded"):
        encoders.create(f"hf-image:{folder}")


def test_a_pickle_beside_safetensors_is_passed_over() -> None:
    """Many models of a hub are published in both forms. Without any weights, the loader says what is missing."""
    for files in (["model.safetensors", "pytorch_model.bin"], ["x-00001-of-00002.safetensors", "x.bin"], ["a.json"]):
        hub_models._refuse_pickles(files)
    with pytest.raises(OSError, match=r"^its weights are a\.bin, a pickle, which is never loaded"):
        hub_models._refuse_pickles(["b.bin", "a.bin", "model.safetensors.txt"])


@pytest.mark.parametrize("kind", ["vit", "wavlm", "bert"])
def test_code_of_a_model_is_never_run(kind: str, models: Callable[[str], Path], tmp_path: Path) -> None:
    """A kind that the library knows is the library's own, whatever code its files name; another one is refused."""
    folder = shutil.copytree(models(kind), tmp_path / kind)
    code = f"open({str(tmp_path / 'executed')!r}, 'w').close()\nclass C: pass\n"
    (folder / "evil.py").write_text(code)
    named = {"preprocessor_config.json": "AutoFeatureExtractor", "tokenizer_config.json": "AutoTokenizer"}
    if kind == "vit":
        named["preprocessor_config.json"] = "AutoImageProcessor"
    changed = 0
    for file, auto in {"config.json": "AutoModel", **named}.items():
        if (folder / file).exists():
            content = json.loads((folder / file).read_text())
            both = ["evil.C", "evil.C"] if auto == "AutoTokenizer" else "evil.C"
            (folder / file).write_text(json.dumps(content | {"auto_map": {"AutoConfig": "evil.C", auto: both}}))
            changed += 1
    assert changed == 2
    own, other = (encoders.create(f"{FAMILY[kind]}:{place}") for place in (models(kind), folder))
    clips = inputs(own)
    np.testing.assert_array_equal(other.encode(clips), own.encode(clips))
    content = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(content | {"model_type": "nobody-knows"}))
    with pytest.raises(WeightsError, match=rf"encoder {FAMILY[kind]}:{kind}: the folder .* has no model that can be"):
        encoders.create(f"{FAMILY[kind]}:{folder}")
    assert not (tmp_path / "executed").exists()
    exec(code, {})  # noqa: S102 - the code of this test, which would have left its mark
    assert (tmp_path / "executed").exists()


def test_weights_that_lack_a_tensor(models: Callable[[str], Path], tmp_path: Path) -> None:
    """The library draws it at random, with a warning; features would be half made. One that nothing reads may lack."""
    from safetensors.torch import load_file, save_file

    folder = shutil.copytree(models("vit"), tmp_path / "vit")
    tensors: dict[str, torch.Tensor] = {}
    for path in folder.glob("*.safetensors"):
        tensors |= load_file(path)
        path.unlink()
    (folder / "model.safetensors.index.json").unlink()
    whole = encoders.create(f"hf-image:{models('vit')}")
    clip = inputs(whole)[0]
    for lacking in ("pooler", "encoder", "layernorm"):
        kept = {name: tensor for name, tensor in tensors.items() if lacking not in name}
        assert len(kept) < len(tensors)
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        if lacking == "pooler":
            np.testing.assert_array_equal(encoders.create(f"hf-image:{folder}").encode([clip]), whole.encode([clip]))
        else:
            with pytest.raises(WeightsError, match=r"its weights lack the tensor .*: they are not whole, or another"):
                encoders.create(f"hf-image:{folder}")
    (folder / "model.safetensors").write_bytes(b"\xff" * 100)
    with pytest.raises(WeightsError, match=r"encoder hf-image:vit: the folder .*has no model that can be loaded"):
        encoders.create(f"hf-image:{folder}")


def text_model(kind: str, folder: Path) -> Path:
    """A random text model of a kind beside BERT's vocabulary of words; XLNet's puts its class token last."""
    t, c = transformers, dict[str, Any]
    torch.manual_seed(3)
    folder.mkdir(parents=True)
    (folder / "vocab.txt").write_text("\n".join(WORDS))
    model: Any
    if kind == "opt":
        sizes = c(word_embed_proj_dim=32, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=2)
        model = t.OPTModel(t.OPTConfig(**sizes, vocab_size=len(WORDS), max_position_embeddings=16, pad_token_id=0))
    elif kind == "bart":
        sizes = c(d_model=32, encoder_layers=2, decoder_layers=1, encoder_ffn_dim=48, decoder_ffn_dim=48)
        heads = c(encoder_attention_heads=2, decoder_attention_heads=2, max_position_embeddings=16)
        model = t.BartModel(t.BartConfig(**sizes, **heads, vocab_size=len(WORDS), pad_token_id=0))
    elif kind in ("t5", "t5-encoder"):
        sizes = c(d_model=32, d_kv=16, d_ff=48, num_layers=2, num_heads=2)
        model = (t.T5Model if kind == "t5" else t.T5EncoderModel)(
            t.T5Config(**sizes, vocab_size=len(WORDS), pad_token_id=0, decoder_start_token_id=0)
        )
    else:
        sizes = c(d_model=32, n_layer=2, n_head=2, d_inner=48)
        model = t.XLNetModel(t.XLNetConfig(**sizes, vocab_size=len(WORDS)))
    model.save_pretrained(folder)
    t.BertTokenizer(str(folder / "vocab.txt"), model_max_length=16).save_pretrained(folder)
    return folder


@pytest.mark.parametrize("kind", ["bart", "t5", "t5-encoder", "xlnet", "opt"])
def test_other_text_models(kind: str, tmp_path: Path) -> None:
    """Of an encoder and a decoder the encoder alone; no limit of positions; layers as the library counts them."""
    folder = text_model(kind, tmp_path / kind)
    own = transformers.T5EncoderModel if kind == "t5-encoder" else transformers.AutoModel
    network = own.from_pretrained(folder).eval()
    network = network.get_encoder() if kind in ("bart", "t5") else network
    given = transformers.AutoTokenizer.from_pretrained(folder)("one two three", return_tensors="pt")
    given.pop("token_type_ids", None)
    with torch.inference_mode():
        output = network(**given, output_hidden_states=True)
    for option, hidden in (("", output.last_hidden_state), ("@layer=1", output.hidden_states[1])):
        vector = encoders.create(f"hf-text:{folder}{option}").encode(["one two three"])[0]
        np.testing.assert_allclose(vector, hidden[0].mean(0).numpy(), atol=1e-5)
    with pytest.raises(ValueError, match="@layer: 7 does not exist, the model has the layers 0 to 2"):
        encoders.create(f"hf-text:{folder}@layer=7")


def test_a_class_token_that_is_not_first(tmp_path: Path) -> None:
    folder = text_model("xlnet", tmp_path / "xlnet")
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    single = tokenizer["post_processor"].get("single")
    assert tokenizer["post_processor"]["type"] == "TemplateProcessing" and len(single) == 3
    tokenizer["post_processor"]["single"] = [single[1], single[2], single[0]]
    path.write_text(json.dumps(tokenizer))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    as_it_is = {"tokenizer_class": "PreTrainedTokenizerFast"}  # BERT's own would put it first again
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | as_it_is))
    with pytest.raises(ValueError, match="@pool=first: its class token is not the first one, allowed: mean, meanstd"):
        encoders.create(f"hf-text:{folder}@pool=first")


def test_a_decoder_that_is_used_is_not_spared(tmp_path: Path) -> None:
    """Every tensor of OPT is named `decoder.`; BART's decoder is not used."""
    from safetensors.torch import load_file, save_file

    for kind, refused in (("opt", True), ("bart", False)):
        folder = text_model(kind, tmp_path / kind)
        tensors = load_file(folder / "model.safetensors")
        kept = {name: x for name, x in tensors.items() if "decoder.layers.0.fc1" not in name}
        assert len(kept) == len(tensors) - 2
        save_file(kept, folder / "model.safetensors", {"format": "pt"})
        if refused:
            with pytest.raises(
                WeightsError, match=r"its weights lack the tensor decoder\.layers\.0\.fc1\.bias and 1 more"
            ):
                encoders.create(f"hf-text:{folder}")
        else:
            encoders.create(f"hf-text:{folder}")


def test_where_a_model_is_found(models: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A folder, a mirror, `--weights`: one name, and the model of that place; what is given goes first."""
    mine, theirs = models("vit"), make("vit", tmp_path / "mirror/someone/vit", seed=1)
    mirror = str(tmp_path / "mirror")
    by_folder, mirrored = (encoders.create(f"hf-image:{place}").info for place in (mine, theirs))
    assert by_folder.digest != mirrored.digest
    for name, given, expected in (
        ("vit", {"weights": str(mine)}, by_folder),
        ("vit", {"mirror": str(theirs.parent)}, mirrored),
        ("someone/vit", {"mirror": mirror}, mirrored),
        ("someone/vit", {"mirror": str(theirs.parent)}, mirrored),
        ("someone/vit", {"mirror": mirror, "weights": str(mine)}, by_folder),
        ("vit", {"mirror": mirror, "weights": "someone/vit"}, mirrored),
    ):
        info = encoders.create(f"hf-image:{name}", **given).info
        assert info.digest == expected.digest, given
        assert info.name == f"hf-image:{name}"
        assert name != "vit" or info.column == by_folder.column
    assert encoders.create("hf-image:vit", weights=str(mine)).info.identity() == by_folder.identity()
    monkeypatch.chdir(tmp_path)  # a folder that is there is no name on a hub
    for name, given in (("mirror/someone/vit", None), ("vit", "mirror/someone/vit")):
        info = encoders.create(f"hf-image:{name}", given).info
        assert (info.name, info.digest, info.source) == ("hf-image:vit", mirrored.digest, "folder vit")
    make("bert", tmp_path / "sub/bert")
    assert encoders.create("text", "sub/bert").info.source == "bert"
    for name in ("text", "hf-image:someone/vit"):
        told = rf"mirror: s3://b/m is a URL, and the files of .* are read from a folder; .* --weights {name}=FOLDER"
        with pytest.raises(ValueError, match=told):
            encoders.create(name, mirror="s3://b/m")
    assert encoders.create("text", "sub/bert", mirror="s3://b/m").info.name == "text"
    for name in ("hf-image:", "hf-image:MODEL"):
        with pytest.raises(ValueError, match="names no model; give hf-image:NAME of a hub, or hf-image:FOLDER"):
            encoders.create(name)
    with pytest.raises(ValueError, match="did you mean 'hf-image:MODEL'"):
        encoders.create("hf-image")


class Hub:
    """A hub's cache on disk, and what the hub would answer."""

    def __init__(self, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.cache, self.asked = cache, list[tuple[str, Any]]()
        self.offers: dict[str, tuple[str, Path]] = {}  # model -> (commit, folder with its files)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(cache))
        monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda _, *given, **more: self._info(*given, **more))
        monkeypatch.setattr("huggingface_hub.snapshot_download", self._download)

    def keep(
        self, model: str, commit: str, folder: Path, ref: str = "main", patterns: tuple[str, ...] = ("*",)
    ) -> Path:
        """As a download leaves it: snapshots named by their commits, and a file for each branch that was asked for."""
        home = self.cache / f"models--{model.replace('/', '--')}"
        snapshot = home / "snapshots" / commit
        snapshot.mkdir(parents=True, exist_ok=True)
        for path in sorted({path for pattern in patterns for path in folder.glob(pattern)}):
            shutil.copy(path, snapshot)
        (home / "refs").mkdir(exist_ok=True)
        (home / "refs" / ref).write_text(commit)
        return snapshot

    def _info(self, model: str, *, revision: str | None, timeout: float) -> Any:
        self.asked.append((model, revision))
        if model not in self.offers:
            raise RuntimeError("connection refused")
        commit, folder = self.offers[model]
        siblings = [SimpleNamespace(rfilename=path.name) for path in folder.iterdir()]
        return SimpleNamespace(sha=commit, siblings=[*siblings, SimpleNamespace(rfilename="onnx/model.safetensors")])

    def _download(self, model: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        self.asked.append((model, sorted(allow_patterns)))
        commit, folder = self.offers[model]
        return str(self.keep(model, commit, folder, revision or "main", tuple(allow_patterns)))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Hub:
    return Hub(tmp_path / "hub", monkeypatch)


def test_what_was_downloaded_is_used_by_its_commit(hub: Hub, models: Callable[[str], Path], tmp_path: Path) -> None:
    """The commit travels with the features; a branch that moved is another model. Nothing is asked of the hub."""
    first, second = "a" * 40, "b" * 40
    old, new = models("vit"), make("vit", tmp_path / "new", seed=1)
    hub.keep("owner/vit", first, old)
    info = encoders.create("hf-image:owner/vit").info
    assert (info.revision, info.licence, info.source) == (first, "apache-2.0", "https://huggingface.co/owner/vit")
    hub.keep("owner/vit", second, new)
    hub.keep("owner/vit", first, old, ref="v1")
    found = {
        name: encoders.create(f"hf-image:owner/vit{name}").info for name in ("", "@revision=v1", f"@revision={first}")
    }
    assert [info.revision for info in found.values()] == [second, first, first]
    digests = [encoders.create(f"hf-image:{place}").info.digest for place in (new, old, old)]
    assert [info.digest for info in found.values()] == digests and digests[0] != digests[1]
    assert not hub.asked
    for revision in ("../../x", "/x", "a/../b", ""):
        with pytest.raises(ValueError, match=r"@revision is .*, expected a branch, tag or commit of a hub"):
            encoders.create(f"hf-image:owner/vit@revision={revision}")


def test_what_is_fetched_of_a_hub(hub: Hub, models: Callable[[str], Path], tmp_path: Path) -> None:
    """The weights that are read, once, and the card; never pickles. What was begun is made whole."""
    folder = shutil.copytree(models("vit"), tmp_path / "vit")
    for name in ("pytorch_model.bin", "modeling.py", "flax_model.msgpack"):
        (folder / name).write_text("x")
    commit = "c" * 40
    hub.keep("owner/vit", commit, folder, patterns=("config.json",))
    hub.offers["owner/vit"] = (commit, folder)
    info = encoders.create("hf-image:owner/vit").info
    assert (info.revision, info.licence) == (commit, "apache-2.0")
    assert info.digest == encoders.create(f"hf-image:{models('vit')}").info.digest
    fetched = sorted(path.name for path in models("vit").iterdir())
    assert hub.asked == [("owner/vit", None), ("owner/vit", fetched)]
    encoders.create("hf-image:owner/vit")
    assert len(hub.asked) == 2  # it is there
    for path in folder.glob("*.safetensors*"):
        path.unlink()
    hub.offers["owner/old"] = (commit, folder)
    told = (
        r"the model owner/old: its weights are pytorch_model\.bin, a pickle, .*save_pretrained.* --weights hf-image:own"
    )
    with pytest.raises(WeightsError, match=told):
        encoders.create("hf-image:owner/old")
    assert hub.asked[2:] == [("owner/old", None)]  # nothing was downloaded


def test_a_hub_that_is_blocked_is_asked_once(hub: Hub) -> None:
    told = r"'nobody/vit' cannot be loaded: the hub .*connection refused.*--weights hf-image:nobody/vit=FOLDER.*--mirr"
    with pytest.raises(WeightsError, match=told):
        encoders.create("hf-image:nobody/vit@revision=abc@layer=1")
    assert hub.asked == [("nobody/vit", "abc")]


def test_columns_are_names_that_shards_allow() -> None:
    names = ["a", "b" * 80, "owner/model-1", "owner/model_1", "ümläut", "x@layer=3"]
    columns = [hub_models.Request.parse("hf-audio", name).column("audio") for name in names]
    assert len(set(columns)) == len(names) and all(len(column) <= 36 and column.isascii() for column in columns)


def test_licences(tmp_path: Path) -> None:
    def stated(text: str) -> str:
        (tmp_path / "README.md").write_text(text)
        return hub_models.licence(hub_models.Found("hf-audio", str(tmp_path), folder=str(tmp_path)))

    assert (
        stated("---\nlicense: mit\n---\n") == "mit" and stated("---\na: b\nlicense: 'cc-by-nc-4.0'\n") == "cc-by-nc-4.0"
    )
    assert stated("---\ntags: [x]\n---\n# Body\nlicense: of the data set is mit\n") == "as its model card states"
    assert stated("---\nlicense:\n- mit\n---\n") == "as its model card states"
    assert stated("# no head\nlicense: mit\n") == stated("") == "as its model card states"


@pytest.mark.parametrize(
    ("name", "old", "new", "same"),
    [
        ("hf-text:roberta", "float32 alone", "float32 alone; computed in float32", True),
        ("hf-text:roberta@layer=9", "x", "x; computed in float32", True),
        ("hf-text:roberta@dtype=bfloat16", "x", "x; computed in bfloat16", True),
        ("hf-text:roberta", "x", "x; computed in bfloat16", False),
        ("hf-text:roberta", "x", "y; computed in float32", False),
        ("hf-audio:wav2vec2", "x", "x; computed in float32", False),  # a GPU computed it in bfloat16, and did not say
        ("prosody", "x", "x; computed in float32", False),
    ],
)
def test_text_models_that_named_no_arithmetic_computed_as_they_do_now(
    name: str, old: str, new: str, same: bool
) -> None:
    before, now = ({"name": name, "digest": "d", "preprocessing": text} for text in (old, new))
    assert (differences(before, now) == []) is same and (differences(now, before) == []) is same
    if not same:
        (difference,) = differences(before, now)
        assert difference[0] == "preprocessing"
