"""Words for a configuration that cannot be used: key paths, what was found, what was expected, did-you-mean.

1. pydantic reports several errors for one value of a union type; they are grouped by the key they belong to.
2. What a key expects is read from the JSON schema of its model, so that it is written down once, as its type.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NoReturn, get_args, get_origin

from pydantic import BaseModel, ValidationError

from dmt_plugin.core.errors import ConfigError
from dmt_plugin.core.words import did_you_mean, listing, shown


def refuse(source: str, problems: Sequence[str]) -> NoReturn:
    """Raise one ``ConfigError`` for all problems found in ``source``."""
    if len(problems) == 1:
        raise ConfigError(f"{source}: {problems[0]}")
    raise ConfigError("\n  ".join([f'{source}: {len(problems)} problems in the "dmt" section', *problems]))


def near_miss(key: object) -> bool:
    """Whether a top-level key was probably meant to be "dmt"."""
    if not isinstance(key, str) or key == "dmt":
        return False
    bare = "".join(letter for letter in key.lower() if letter.isalnum())
    return bare.startswith(("dmt", "disaggregatedmultitower")) or _one_slip(bare, "dmt")


def one_of(value: object, known: Iterable[str]) -> str:
    """Say that ``value`` is none of the ``known`` words, with a did-you-mean."""
    words = list(known)
    return f"found {shown(value)}{did_you_mean(value, words)}, expected {listing(words)}"


def say_problems(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """Turn a pydantic error into one line per key: path, what was found, what was expected."""
    by_key: dict[str, tuple[tuple[str, ...], list[Any]]] = {}
    for detail in error.errors():
        path = _key_path(model, detail["loc"])
        by_key.setdefault(".".join(path), (path, []))[1].append(detail)
    lines = []
    for key, (path, details) in by_key.items():
        text = _say(path, details[0], model)
        # A check over several keys may name the one it is about by itself.
        lines.append(text if text.startswith("dmt.") else f"dmt.{key}: {text}")
    return lines


def _say(path: tuple[str, ...], detail: Any, model: type[BaseModel]) -> str:
    if detail["type"] == "value_error":
        return str(detail["ctx"]["error"])
    if detail["type"] == "extra_forbidden":
        return _unknown_key(path, model)
    if detail["type"] == "invalid_key":
        return f"the key {shown(detail['input'])} is not a string, expected {shown(shown(detail['input']))}"
    parent, annotation = _place(path, model)
    # Of a union, pydantic hands over the value itself once per branch: the first will do.
    value = detail["input"]
    if detail["loc"][-1] == "[key]":
        return f"the key {shown(value)} is not a string, expected {shown(shown(value))}"
    if (section := _section(annotation)) is not None:
        inner = next(iter(section.model_fields))
        return f'found {shown(value)}, expected an object such as {{"{inner}": ...}}'
    if (entry := _entry(annotation)) is not None:
        inner = next(iter(entry.model_fields))
        return f'found {shown(value)}, expected an object such as {{"0": {{"{inner}": ...}}}}'
    schema = parent.model_json_schema()["properties"][path[-1]]
    return f"found {shown(value)}{did_you_mean(value, schema.get('enum', []))}, expected {_expected(schema)}"


def _unknown_key(path: tuple[str, ...], model: type[BaseModel]) -> str:
    parent, _ = _place(path, model)
    key = path[-1]
    guess = did_you_mean(key, list(parent.model_fields))
    if guess:
        return f"unknown key{guess}"
    for section, field in model.model_fields.items():
        if key in getattr(field.annotation, "model_fields", {}):
            return f'unknown key here; there is "dmt.{section}.{key}"'
        if key == section:
            return f'unknown key here; there is "dmt.{section}"'
    return f"unknown key; the keys here are {', '.join(parent.model_fields)}"


def _key_path(model: type[BaseModel], location: Sequence[Any]) -> tuple[str, ...]:
    # pydantic appends the branch of a union to the location: keep only what is a key.
    path: list[str] = []
    annotation: Any = model
    for part in location:
        section, entry = _section(annotation), _entry(annotation)
        if (section is None and entry is None) or part == "[key]":
            break
        path.append(str(part))
        if section is None:  # the name is the user's own
            annotation = entry
            continue
        field = section.model_fields.get(str(part))
        annotation = field.annotation if field is not None else None
    return tuple(path)


def _place(path: tuple[str, ...], model: type[BaseModel]) -> tuple[type[BaseModel], Any]:
    """The section that the last key of ``path`` belongs to, and what that key holds."""
    parent: type[BaseModel] = model
    annotation: Any = None
    here: Any = model
    for name in path:
        section = _section(here)
        if section is None:  # a name that the user gave: an entry of an object of sections
            here = annotation = _entry(here)
            continue
        field = section.model_fields.get(name)
        parent, annotation = section, field.annotation if field is not None else None
        here = annotation
    return parent, annotation


def _section(annotation: Any) -> type[BaseModel] | None:
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def _entry(annotation: Any) -> type[BaseModel] | None:
    """The section that an object with names of the user's own holds under each of them."""
    return _section(get_args(annotation)[1]) if get_origin(annotation) is dict else None


def _expected(schema: Mapping[str, Any]) -> str:
    if "anyOf" in schema:
        return " or ".join(_expected(branch) for branch in schema["anyOf"])
    if "enum" in schema:
        return listing(schema["enum"])
    if "const" in schema:
        return json.dumps(schema["const"])
    kinds = {"integer": "a whole number", "number": "a finite number", "boolean": "true or false"}
    kinds |= {"string": "a string", "null": "null", "object": "an object", "array": "a list"}
    text = kinds[schema["type"]]
    if isinstance(schema.get("additionalProperties"), Mapping):
        text += f" each of whose entries is {_expected(schema['additionalProperties'])}"
    if "items" in schema:
        text += f" each of whose entries is {_expected(schema['items'])}"
    limits = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}
    said = [f"{words} {_number(schema[key])}" for key, words in limits.items() if key in schema]
    return f"{text}{' of ' if 'minimum' in schema else ' ' if said else ''}{' and '.join(said)}"


def _number(value: float) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _one_slip(word: str, target: str) -> bool:
    """Whether one insertion, deletion, replacement or swap of neighbours turns ``word`` into ``target``."""
    letters = set(target) | set(word)
    spots = range(len(word) + 1)
    slips = {word[:i] + word[i + 1 :] for i in spots}
    slips |= {word[:i] + letter + word[i + 1 :] for i in spots for letter in letters}
    slips |= {word[:i] + letter + word[i:] for i in spots for letter in letters}
    slips |= {word[:i] + word[i + 1 : i + 2] + word[i : i + 1] + word[i + 2 :] for i in spots}
    return target in slips
