"""Configurations: presets, strict reading, identity, refusals by name."""

import dataclasses
import json

import pytest

from conclugen import PretrainConfig, presets
from conclugen.fields import leaves
from conclugen.training.model import Model

WIDTHS = {"video": 6, "audio": 5, "text": 4, "video_3d": 3}


@pytest.mark.parametrize("recipe", ["paper", "improved"])
@pytest.mark.parametrize("name", [*presets.PRESETS, "generative"])
def test_round_trip_through_json(name: str, recipe: str) -> None:
    config = presets.build(name, recipe)
    assert PretrainConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


def test_presets_are_the_published_variants() -> None:
    found = {
        name: (config.modalities, tuple(config.tasks.active))
        for name in presets.PRESETS
        for config in [presets.build(name)]
    }
    three = ("video", "audio", "text")
    assert found == {
        "conclugen": (three, ("contrastive", "clustering", "reconstruction")),
        "contrast_cluster": (three, ("contrastive", "clustering")),
        "contrast_generative": (three, ("contrastive", "reconstruction")),
        "contrast_only": (three, ("contrastive",)),
        "contrast_only_video_audio": (("video", "audio"), ("contrastive",)),
        "contrast_only_video_text": (("video", "text"), ("contrastive",)),
        "generative_only": (three, ("reconstruction",)),
        "simclr": (("video_3d",), ("simclr",)),
    }
    assert presets.build("generative") == presets.build("generative_only")


def test_only_the_heads_of_active_tasks_exist() -> None:
    def parts(name: str) -> set[str]:
        small = {"representation_dim": 8, "projection_dim": 4, "reconstruction_hidden_dim": 4}
        model = Model(presets.build(name, "paper", model=small, global_batch=4), WIDTHS)
        return {".".join(n.split(".")[:2]) for n, _ in model.named_parameters()}

    heads = {"heads.video", "heads.audio", "heads.text"}
    projection = {"projection.hidden", "projection.norm", "projection.output"}
    assert parts("generative_only") == heads | {"tasks.reconstruction"}
    assert parts("contrast_only") == heads | projection
    assert parts("contrast_cluster") == heads | projection | {"tasks.clustering"}
    assert parts("simclr") == {"heads.video_3d"} | projection


def test_overrides_change_only_what_they_name() -> None:
    base = presets.build("conclugen")
    config = presets.build(
        "conclugen",
        seed=3,
        model={"representation_dim": 64},
        tasks={"clustering": {"weight": 0.25}},
        modalities=["audio", "text"],
    )
    assert config.tasks.clustering is not None and base.tasks.clustering is not None
    assert config.tasks.clustering == dataclasses.replace(base.tasks.clustering, weight=0.25)
    assert config.model == dataclasses.replace(base.model, representation_dim=64)
    assert config.modalities == ("audio", "text") and config.seed == 3
    assert config.tasks.reconstruction == base.tasks.reconstruction
    assert presets.build("simclr", modalities="video").tasks.simclr.modality == "video"  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: presets.build("conclugn"), ["preset", "'conclugn'", "did you mean 'conclugen'", "simclr"]),
        (lambda: presets.build("conclugen", "improvd"), ["recipe", "'improvd'", "did you mean 'improved'", "paper"]),
        (lambda: presets.build("conclugen", sead=1), ["'sead'", "did you mean 'seed'"]),
        (
            lambda: presets.build("conclugen", model={"representation_dmi": 1}),
            ["model.representation_dmi", "representation_dim"],
        ),
        (lambda: presets.build("conclugen", tasks={"contrastiv": {}}), ["'contrastiv'", "did you mean 'contrastive'"]),
        (
            lambda: presets.build("contrast_only", tasks={"clusterng": None}),
            ["'clusterng'", "mean 'clustering'"],
        ),
        (
            lambda: presets.build("conclugen", tasks={"clustering": {"weigth": 1.0}}),
            ["tasks.clustering.weigth", "'weight'"],
        ),
        (lambda: presets.build("conclugen", modalities=("video",)), ["modalities", "two or more"]),
        (lambda: presets.build("conclugen", modalities=("a", "a")), ["modalities", "distinct"]),
        (lambda: presets.build("conclugen", precision="float16"), ["precision", "'float16'", "bfloat16"]),
        (lambda: presets.build("conclugen", global_batch="many"), ["global_batch", "'many'", "a whole number"]),
        (
            lambda: presets.build("conclugen", tasks={"clustering": {"weight": float("nan")}}),
            ["tasks.clustering.weight", "nan"],
        ),
        (lambda: presets.build("conclugen", clip_norm=0.0), ["clip_norm", "above 0"]),
        (
            lambda: presets.build("conclugen", "paper", model={"own_width_modalities": ["audoi"]}),
            ["model.own_width_modalities", "'audoi'", "did you mean 'audio'", "video, audio, text"],
        ),
        (
            lambda: presets.build("simclr", model={"feature_mask": 0.2}),
            ["model.feature_mask", "0.2", "tasks.simclr.mask"],
        ),
        (lambda: PretrainConfig.from_dict({"tasks": {}}), ["tasks", "one or more"]),
        (lambda: PretrainConfig.from_dict({"modalities": "video"}), ["modalities", "list"]),
        (lambda: PretrainConfig.from_dict({"seed": True}), ["seed", "True", "a whole number"]),
        (lambda: PretrainConfig.from_dict({"class_path": "os.system"}), ["'class_path'"]),
    ],
)
def test_refusals_name_field_value_and_remedy(call, words: list[str]) -> None:
    with pytest.raises(ValueError) as error:
        call()
    for word in words:
        assert word in str(error.value)


def test_a_recipe_sets_nothing_that_has_no_effect_on_the_preset() -> None:
    assert presets.build("conclugen", "paper").model.own_width_modalities == ("audio",)
    assert presets.build("contrast_only_video_text", "paper").model.own_width_modalities == ()
    assert presets.build("contrast_only").model.feature_mask > 0 == presets.build("simclr").model.feature_mask


def test_data_that_cannot_serve_a_preset_is_refused() -> None:
    config = presets.build("contrast_only_video_text")
    with pytest.raises(
        ValueError, match=r"preset 'contrast_only_video_text' needs modality 'text'.*video \(35\), audio \(9\)"
    ):
        config.check_serves({"video": 35, "audio": 9})
    config.check_serves({"video": 35, "text": 9})
    second = presets.build("simclr", tasks={"simclr": {"second_view": "video_3d_b"}})
    with pytest.raises(ValueError, match="'video_3d_b'"):
        second.check_serves({"video_3d": 4})
    with pytest.raises(ValueError, match="width"):
        second.check_serves({"video_3d": 4, "video_3d_b": 5})


def test_identity_ignores_what_may_change() -> None:
    base = presets.build("conclugen")
    same = presets.build(
        "conclugen", epochs=7, optimizer={"lr": 3e-4}, tasks={"clustering": {"weight": 0.1}}, clip_norm=None
    )
    assert base.identity_digest() == same.identity_digest() and base.differences(same) == {}
    other = presets.build("conclugen", seed=1, model={"representation_dim": 64})
    assert base.identity_digest() != other.identity_digest()
    assert base.differences(other) == {"seed": (127, 1), "model.representation_dim": (4096, 64)}
    fewer = presets.build("contrast_cluster")
    assert base.differences(fewer)["tasks.reconstruction.cross_modal"] == (False, None)


def test_every_field_has_a_kind() -> None:
    kinds = {kind for _, kind, _ in leaves(presets.build("conclugen"))}
    assert kinds == {"identity", "schedulable", "free"}
    names = {name for name, kind, _ in leaves(presets.build("conclugen")) if kind == "schedulable"}
    assert {"epochs", "clip_norm", "optimizer.lr", "tasks.contrastive.weight"} <= names


@pytest.mark.parametrize(("world", "expected"), [(1, 10), (2, 5), (3, 4), (4, 3), (16, 1)])
def test_local_batch(world: int, expected: int) -> None:
    assert presets.build("conclugen", global_batch=10).local_batch(world) == expected


def test_tasks_of_equal_inputs_share_one_pass_and_others_have_their_own() -> None:
    config = presets.build("conclugen", global_batch=4, tasks={"simclr": {"modality": "video"}})
    model = Model(config, WIDTHS)
    assert model.shared_tasks == ["contrastive", "clustering", "reconstruction"]
    assert set(model.streams) == {"modalities", "simclr"}
    assert [len(model.streams[name].views) for name in ("modalities", "simclr")] == [3, 2]


def test_what_only_training_reads_is_left_out_and_nothing_else() -> None:
    """A stored second view is not in labelled shards: drawn masks take its place."""
    config = presets.build("simclr", modalities=("v",), global_batch=4, tasks={"simclr": {"second_view": "v2"}})
    config.check_serves({"v": 5, "v2": 5})
    plain = config.without_training_views()
    plain.check_serves({"v": 5})
    assert plain == config.changed({"tasks": {"simclr": {"second_view": None}}}) != config
    untouched = presets.build("conclugen")
    assert untouched.without_training_views() == untouched
