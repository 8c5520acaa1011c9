"""Where results come from: the data sets and encoders behind a folder of features, and how a paper cites them."""

from __future__ import annotations

import contextlib
import importlib.metadata
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import yaml

from conclugen.common.plugins import OWN
from conclugen.common.revision import CLONE
from conclugen.common.tables import tex_name
from conclugen.encoders import registry
from ray_jobs.extraction.plan import recipe_of
from shards import adapters

ENCODERS, DATA_SETS = "encoders", "data_sets"
"""Tags of a run: names, a space between them."""
DIGEST = "digest."
"""Before a data set's name, the tag with the digest of its manifest."""
STAMP = "Of rendered faces: these numbers say nothing about people."
_CITATION = "CITATION.cff"
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
    """BibTeX of the method, of this software, and of what `origins` named: published works where they are known here,
    else an entry with the name and where it is had."""
    entries = {METHOD: None, _of_this(): None}
    for name in tags.get(ENCODERS, "").split():
        entries[_of_encoder(name)] = None
    for name in tags.get(DATA_SETS, "").split():
        entries[_of_set(name)] = None
    return "\n\n".join(filter(None, entries)) + "\n"


def _of_this() -> str:
    """The software itself as its CITATION.cff has it; nothing where that is not there."""
    try:
        about = yaml.safe_load(_citation())
        authors = [_author(person) for person in about["authors"]]
        fields = {"title": f"{{{tex_name(str(about['title']))}}}", "author": " and ".join(authors)}
        fields |= {"year": str(about["date-released"])[:4]} if "date-released" in about else {}
        fields |= {name: str(about[name]) for name in ("doi", "url") if name in about}
        fields["note"] = tex_name(f"Software, version {about['version']}")
    except (OSError, yaml.YAMLError, KeyError, TypeError):  # somebody's own installation, without it or changed
        return ""
    return "\n".join([f"@misc{{{OWN},", *(f"  {name} = {{{text}}}," for name, text in fields.items()), "}"])


def _author(person: Mapping[str, Any]) -> str:
    if "name" in person:  # not a person, so that no part of it is a family name
        return f"{{{tex_name(str(person['name']))}}}"
    return tex_name(f"{person['family-names']}, {person['given-names']}")


def _citation() -> str:
    """CITATION.cff of the clone, or else of what is installed. KeyError where neither has it."""
    with contextlib.suppress(OSError):
        return CLONE.with_name(_CITATION).read_text("utf-8")
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        if (text := importlib.metadata.distribution(OWN).read_text(f"licenses/{_CITATION}")) is not None:
            return text
    raise KeyError(_CITATION)


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
