"""schema: the JSON Schema of recipes, for editors; made from the code, with the options of every plug."""

from __future__ import annotations

import inspect
from importlib import metadata
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from edgeopt.core import registry
from edgeopt.core.checks import NAME_PATTERN
from edgeopt.core.errors import EdgeoptError
from edgeopt.core.recipe import Recipe
from edgeopt.core.target import Need, Target, shipped

DIALECT = "https://json-schema.org/draft/2020-12/schema"
# What a gate judges: exactly one of these stands in it.
_GATES = ("score", "latency", "speedup", "size", "memory", "throughput")


def schema() -> dict[str, Any]:
    """The schema of one recipe file: shorthand forms, and the options of passes, scores and data sources."""
    plugs = {room: _plugs(room) for room in ("passes", "scores", "datasets")}
    models: list[type[BaseModel]] = list(dict.fromkeys([Recipe, Target, *(cls for room in plugs.values() for cls in room.values())]))
    refs, shared = models_json_schema([(model, "validation") for model in models], ref_template="#/$defs/{model}")
    defs: dict[str, Any] = shared["$defs"]
    own = {model: refs[model, "validation"]["$ref"].rpartition("/")[2] for model in models}
    recipe = defs.pop(own[Recipe])
    defs["Pass"] = _by_name(plugs["passes"], own, defs)
    defs["Score"] = _by_name(plugs["scores"], own, defs)
    defs["Source"] = {"anyOf": [_source(name, defs[own[cls]], cls) for name, cls in plugs["datasets"].items()]}
    defs["TargetUse"] = _target(defs[own[Target]])
    written_out: list[type[BaseModel]] = [Target, *plugs["datasets"].values()]
    for cls in written_out:
        defs.pop(own[cls], None)
    _shorthand(recipe, defs)
    defs.pop("PlugUse", None)
    return {"$schema": DIALECT, "title": "edgeopt recipe", **_tidy(recipe), "$defs": {name: _tidy(defs[name]) for name in sorted(defs)}}


def _plugs(room: str) -> dict[str, type[BaseModel]]:
    """The plugs that a recipe may name; those of other packages too, where they can be loaded."""
    found = {}
    for name in dict.fromkeys([*registry.names(room), *(entry.name for entry in metadata.entry_points(group=f"edgeopt.{room}"))]):
        try:
            cls = registry.load(room, name)
        except EdgeoptError:
            continue
        if room != "passes" or cls.accepts:  # imports stand under `model`
            found[name] = cls
    return found


def _about(cls: type[BaseModel]) -> str:
    """The first sentence of a docstring."""
    return " ".join(inspect.cleandoc(cls.__doc__ or "").split("\n\n")[0].split())


def _by_name(plugs: dict[str, type[BaseModel]], own: dict[type[BaseModel], str], defs: dict[str, Any]) -> dict[str, Any]:
    """`name`, `{name: {option: value}}`, and `{name: source}` where the plug has a source."""
    words: list[dict[str, Any]] = []
    entries = {}
    for name, cls in plugs.items():
        about = _about(cls)
        if not defs[own[cls]].get("required"):
            words.append({"const": name, "description": about})
        forms: list[dict[str, Any]] = [{"$ref": f"#/$defs/{own[cls]}"}]
        if not defs[own[cls]].get("required"):
            forms.append({"type": "null"})
        if "source" in cls.model_fields:
            forms.append(defs[own[cls]]["properties"]["source"])
        entries[name] = {"anyOf": forms, "description": about}
    mapping = {"type": "object", "properties": entries, "additionalProperties": False, "minProperties": 1, "maxProperties": 1}
    return {"anyOf": [*words, mapping]}


def _source(name: str, options: dict[str, Any], cls: type[BaseModel]) -> dict[str, Any]:
    """`{kind: source, option: value}`."""
    rest = {key: value for key, value in options["properties"].items() if key not in ("source", name)}
    properties = {name: options["properties"]["source"], **rest}
    required = [name, *(key for key in options.get("required", []) if key != "source")]
    return {"type": "object", "description": _about(cls), "properties": properties, "required": required, "additionalProperties": False}


def _target(target: dict[str, Any]) -> dict[str, Any]:
    """A name, a file, `{name: {need: built}}`, or `{extends: name, field: value}`."""
    need = {"enum": list(get_args(Need)), "default": "measured", "description": "what the target must reach"}
    used = {"type": "object", "properties": {"need": need}, "additionalProperties": False}
    fields = {name: value for name, value in target["properties"].items() if name != "edgeopt_target"}
    sweep = {"type": "array", "items": fields["batch"], "minItems": 1, "uniqueItems": True}
    fields["batch"] = {"anyOf": [fields["batch"], sweep], "description": "samples per inference; a list makes a target of each"}
    extends = {"anyOf": [{"enum": shipped()}, {"type": "string"}], "description": "the target whose other fields are taken"}
    inline = {
        "type": "object",
        "properties": {"extends": extends, "need": need, **fields},
        "required": ["extends"],
        "additionalProperties": False,
    }
    by_name = {
        "type": "object",
        "propertyNames": {"not": {"const": "extends"}},
        "additionalProperties": used,
        "minProperties": 1,
        "maxProperties": 1,
    }
    return {
        "anyOf": [{"enum": shipped()}, {"type": "string", "description": "a target's file, below the recipe's folder"}, by_name, inline]
    }


def _shorthand(recipe: dict[str, Any], defs: dict[str, Any]) -> None:
    """Put in what recipes may write instead of the full form, and what pydantic's validators demand."""
    properties = recipe["properties"]
    passes = {"anyOf": [{"type": "array", "items": {"$ref": "#/$defs/Pass"}}, {"type": "null"}]}
    properties["variants"] = {
        "type": "object",
        "description": "name → the passes in order; the one without passes is the reference",
        "minProperties": 1,
        "patternProperties": {NAME_PATTERN: passes},
        "additionalProperties": False,
    }
    properties["scores"] = properties["scores"] | {"items": {"$ref": "#/$defs/Score"}}
    properties["targets"] = properties["targets"] | {"items": {"$ref": "#/$defs/TargetUse"}}
    for split, value in defs["Data"]["properties"].items():
        kept = {key: item for key, item in value.items() if key == "description"}
        source = {"$ref": "#/$defs/Source"}
        defs["Data"]["properties"][split] = kept | (source if split in defs["Data"]["required"] else {"anyOf": [source, {"type": "null"}]})
    for owner, fields in (("Model", ("onnx", "pt2", "keras")), ("TorchModel", ("weights",))):
        for name in fields:
            defs[owner]["properties"][name]["anyOf"].append({"type": "string", "description": "path relative to the recipe"})
    defs["Model"] |= {"minProperties": 1, "maxProperties": 1}
    defs["Gate"]["oneOf"] = [{"required": [name]} for name in _GATES]
    defs["Gate"]["dependentRequired"] = {
        "latency": ["max_ms"],
        "max_ms": ["latency"],
        "max_drop": ["score"],
        "min": ["score"],
        "max": ["score"],
    }


def _tidy(value: Any) -> Any:
    """Without pydantic's titles, which repeat the keys, and with docstrings on one line."""
    if isinstance(value, list):
        return [_tidy(item) for item in value]
    if not isinstance(value, dict):
        return value
    tidied = {}
    for key, item in value.items():
        if key == "title" and isinstance(item, str):
            continue
        if key == "description" and isinstance(item, str):
            item = " ".join(inspect.cleandoc(item).split("\n\n")[0].split())
        # Names of properties are the user's, never keywords to be tidied away.
        tidied[key] = {name: _tidy(inner) for name, inner in item.items()} if key in ("properties", "$defs") else _tidy(item)
    return tidied
