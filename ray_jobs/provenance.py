"""Where results come from: the data sets and encoders behind a folder of features, and how a paper cites them."""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from conclugen.common.tables import tex_name
from conclugen.encoders import registry
from ray_jobs.extraction.plan import recipe_of
from shards import adapters

ENCODERS, DATA_SETS = "encoders", "data_sets"
"""Tags of a run: names, a space between them."""
DIGEST = "digest."
"""Before a data set's name, the tag with the digest of its manifest."""
STAMP = "Of rendered faces: these numbers say nothing about people."
_HUB = "https://huggingface.co/"
_ANY_TEXT = "text"  # the encoder whose model is the user's choice
METHOD = """@inproceedings{halawa2024conclugen,
  title = {Multi-Task Multi-Modal Self-Supervised Learning for Facial Expression Recognition},
  author = {Halawa, Marah and Blume, Florian and Bideau, Pia and Maier, Martin and Abdel Rahman, Rasha and Hellwich,
            Olaf},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition Workshops (CVPRW)},
  year = {2024},
  eprint = {2404.10904},
  archiveprefix = {arXiv},
}"""


def stamp_of(*infos: Mapping[str, Any]) -> str:
    """What results must say that are of a model, or of data, with these infos; empty where nothing."""
    return STAMP if any(info.get("rendered") for info in infos) else ""


def origins(infos: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Tags that name what features were made of and with, as their manifests' infos say; of unknown origin none."""
    encoders: dict[str, None] = {}
    sets: dict[str, None] = {}
    for info in infos:
        with contextlib.suppress(ValueError):
            recipe = recipe_of(info)
            encoders |= dict.fromkeys(map(_named, recipe.encoders if recipe is not None else ()))
        if isinstance(name := info.get("set"), str) and name:
            sets["-".join(name.split())] = None
    rendered = "yes" if any(info.get("rendered") for info in infos) else ""
    found = {ENCODERS: " ".join(encoders), DATA_SETS: " ".join(sets), "rendered": rendered}
    return {name: text for name, text in found.items() if text}


def _named(encoder: Mapping[str, Any]) -> str:
    """Its name; of the one that takes any text model, that of the model on its hub."""
    name, source = str(encoder["name"]), str(encoder.get("source", ""))
    return f"hf-text:{source.removeprefix(_HUB)}" if name == _ANY_TEXT and source.startswith(_HUB) else name


def bibliography(tags: Mapping[str, str]) -> str:
    """BibTeX of the method, and of what `origins` named: published works where they are known here, else an entry with
    the name and where it is had."""
    entries = {METHOD: None}
    for name in tags.get(ENCODERS, "").split():
        entries[_of_encoder(name)] = None
    for name in tags.get(DATA_SETS, "").split():
        entries[_of_set(name)] = None
    return "\n\n".join(filter(None, entries)) + "\n"


def _of_encoder(name: str) -> str:
    cited: Any = None
    offer = registry.offers().get(registry.entry_of(name))
    if offer is not None:
        with contextlib.suppress(Exception):  # a package of somebody else's, or one whose libraries are not here
            cited = getattr(sys.modules[offer.load().__module__], "BIBTEX", None)
    if isinstance(cited, Mapping) and isinstance(cited.get(name), str):
        return str(cited[name])
    if name.startswith("random-"):
        return ""
    family, colon, model = name.partition(":")
    model = model.partition("@")[0]
    where = f",\n  howpublished = {{\\url{{https://huggingface.co/{_url(model)}}}}}" if _is_hub(family, model) else ""
    return f"@misc{{{_key(name)},\n  title = {{{{{tex_name(model if colon else name)}}}}}{where},\n}}"


def _of_set(name: str) -> str:
    adapter = adapters.known().get(name.lower().removeprefix("cmu-"))
    if adapter is not None:
        with contextlib.suppress(Exception):  # a package of somebody else's, or one whose libraries are not here
            if adapter.bibtex is not None:
                return adapter.bibtex
    return f"@misc{{{_key(name)},\n  title = {{{{{tex_name(name)}}}}},\n  note = {{data set}},\n}}"


def _is_hub(family: str, model: str) -> bool:
    return family.startswith("hf-") and re.fullmatch(r"[\w.-]+/[\w.-]+", model) is not None


def _url(model: str) -> str:
    return model.replace("%", r"\%").replace("#", r"\#")


def _key(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unnamed"
