"""Each variant differs from the recipe in what its name says and in nothing else."""

from benchmarks.reproduce.choices import VARIANTS, configurations
from benchmarks.reproduce.reproduce import Settings
from conclugen import PretrainConfig


def differing(one: PretrainConfig, other: PretrainConfig) -> set[str]:
    return set(one.differences(other)) | ({"optimizer.lr"} if one.optimizer.lr != other.optimizer.lr else set())


def test_each_variant_changes_one_choice() -> None:
    found = configurations(Settings(), ("video", "audio"))
    assert list(found) == list(VARIANTS)
    improved = found["improved"]
    assert improved == Settings().config("improved", ("video", "audio"))
    assert differing(found["temperature 0.1"], improved) == {"tasks.contrastive.temperature"}
    assert differing(found["no masked inputs"], improved) == {"model.feature_mask"}
    assert differing(found["learning rate 5e-4"], improved) == {"optimizer.lr"}
    assert list(found["contrast alone"].tasks.active) == ["contrastive"]
    assert list(found["without reconstruction"].tasks.active) == ["contrastive", "clustering"]
    for name, config in found.items():
        assert name == "improved" or differing(config, improved) or config.tasks != improved.tasks, name
