"""The few panels that a run's health is drawn as."""

from __future__ import annotations

from ray_jobs.training.health_panels import MOST, health_panels

CURVE = [(0, 0.1), (10, 0.4), (20, 0.5)]


def test_kinds_share_a_panel_the_most_telling_first_with_what_chance_gives() -> None:
    pairs = ("audio-text", "audio-video", "text-video")
    names = [f"recall@{k}/{pair}" for k in (1, 5, 10) for pair in pairs]
    names += [f"{kind}/{m}" for kind in ("effective_rank", "uniformity") for m in ("audio", "text", "video")]
    names += ["clusters/used", "clusters/perplexity", "own/one", "own/two", "neighbour_accuracy", "warnings"]
    history = dict.fromkeys(names, CURVE)
    panels = health_panels(
        history, {"recall@10/audio-text": 0.25, "recall@10/text-video": 0.2, "neighbour_accuracy": 0.3}
    )
    assert len(panels) == MOST == 6
    assert [list(panel.curves) for panel in panels] == [
        ["neighbour_accuracy"],
        list(pairs),
        ["audio", "text", "video"],
        ["audio", "text", "video"],
        ["clusters/used"],
        ["clusters/perplexity"],
    ]
    titles = [panel.title for panel in panels]
    assert titles[0] == "accuracy of neighbours' votes" and titles[-2:] == ["clusters used", "clusters perplexity"]
    assert not any("/" in title or "_" in title for title in titles)
    assert panels[0].chance == {"neighbour_accuracy": 0.3}
    assert panels[1].chance == {"audio-text": 0.25, "text-video": 0.2}
    assert not panels[2].chance and panels[1].curves["audio-text"] == CURVE


def test_corpora_of_a_mixture_share_the_panels() -> None:
    history = {f"{corpus}/recall@10/audio-video": CURVE for corpus in ("meld", "mosi")} | {"clusters/used": CURVE}
    recall, used = health_panels(history, {"meld/recall@10/audio-video": 0.1})
    assert list(recall.curves) == ["meld audio-video", "mosi audio-video"]
    assert recall.chance == {"meld audio-video": 0.1} and list(used.curves) == ["clusters/used"]
    assert health_panels({}, {}) == []
