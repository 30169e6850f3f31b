"""What all models of the contract are made of, the scalar types that they share, and CEL rules for the API server.

Names are snake_case in Python and camelCase in JSON. An unknown key is refused, so that a misspelt setting never trains silently with a
default. A field's default is filled in where a spec leaves it out (`filled`), and stands in the CRD's description.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from functools import cache
from types import UnionType
from typing import Annotated, Any, ClassVar, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetJsonSchemaHandler, model_validator
from pydantic.alias_generators import to_camel
from pydantic.fields import FieldInfo
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

Rule = dict[str, str | bool]
DNS_LABEL = r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$"

Positive = Annotated[int, Field(ge=1)]
Natural = Annotated[int, Field(ge=0)]
Name = Annotated[str, Field(pattern=DNS_LABEL, min_length=1, max_length=40)]
Decimal = Annotated[str, Field(pattern=r"^[0-9]+(\.[0-9]+)?([eE][-+]?[0-9]{1,3})?$", min_length=1, max_length=32)]
Digest = Annotated[str, Field(pattern=r"^sha256:[0-9a-f]{64}$")]
SnakeCase = Annotated[str, Field(max_length=64, pattern=r"^[a-z][a-z0-9_]*$")]
Overrides = Annotated[dict[SnakeCase, Annotated[str, Field(max_length=512)]], Field(max_length=32)]


def rule(expression: str, message: str, field_path: str = "", reason: str = "FieldValueInvalid") -> Rule:
    """One `x-kubernetes-validations` entry (KEP-2876). `field_path` (".a.b") is where the server reports the error."""
    entry: Rule = {"rule": expression, "message": message, "reason": reason}
    return entry | ({"fieldPath": field_path} if field_path else {})


def rules(*entries: Rule) -> dict[str, Any]:
    """The `json_schema_extra` of a model or a field that carries CEL rules."""
    return {"x-kubernetes-validations": list(entries)}


def union(*members: str) -> Rule:
    """Exactly one of `members` is present."""
    present = " + ".join(f"(has(self.{member}) ? 1 : 0)" for member in members)
    return rule(f"{present} == 1", "must have exactly one of " + ", ".join(f"`{member}`" for member in members))


URI = Annotated[
    str,
    Field(
        pattern=r"^pvc://[a-z0-9]([-a-z0-9.]*[a-z0-9])?(/[A-Za-z0-9._@+=-]+)*$",
        max_length=512,
        description="`pvc://<claim>/<path>`: a path on a PersistentVolumeClaim of this namespace.",
        json_schema_extra=rules(rule("!self.contains('..')", "must not contain `..`")),
    ),
]


def json_name(name: str) -> str:
    """The JSON key of a Python field: `run_uri` is `runURI`, `max_steps` is `maxSteps`, `uri` stays."""
    camel = to_camel(name)
    return camel.removesuffix("Uri") + "URI" if camel.endswith("Uri") else camel


def decided(description: str, **bounds: Any) -> Any:
    """A field whose default depends on other fields: absent in a spec the operator decides it, and a stage's input always has it."""
    return Field(None, description=description, json_schema_extra={"decided": True}, **bounds)


def since(version: int) -> Any:
    """An optional field of an input that contract versions before `version` do not have."""
    return Field(None, json_schema_extra={"since": version})


def in_file() -> Any:
    """An optional field of a result that the result file alone has to keep: the status does not record it."""
    return Field(None, json_schema_extra={"inFile": True})


def mark(field: FieldInfo, name: str) -> Any:
    """What `decided`, `since` or `in_file` say of a field; None where they do not."""
    return field.json_schema_extra.get(name) if isinstance(field.json_schema_extra, dict) else None


class Block(BaseModel):
    """Base of all that crosses a boundary."""

    model_config = ConfigDict(alias_generator=json_name, populate_by_name=True, extra="forbid", frozen=True)

    def dump(self) -> dict[str, Any]:
        """The block as JSON has it: camelCase, absent members left out."""
        return self.model_dump(by_alias=True, exclude_none=True, mode="json")


class OneOf(Block):
    """A choice: exactly one of its fields is present, but for those in `beside`. Its CEL rule for the API server is written from its fields."""

    beside: ClassVar[tuple[str, ...]] = ()

    @classmethod
    def members(cls) -> tuple[str, ...]:
        """The fields that are chosen from, by their names in Python."""
        return tuple(name for name in cls.model_fields if name not in cls.beside)

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        present = [name for name in self.members() if getattr(self, name) is not None]
        if len(present) != 1:
            raise ValueError(f"exactly one of {', '.join(map(json_name, self.members()))} must be given, got {len(present)}")
        return self

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """As any model's, with the rule of the choice first."""
        written = handler.resolve_ref_schema(handler(schema))
        members = (cls.model_fields[name].alias or name for name in cls.members())
        written["x-kubernetes-validations"] = [union(*members), *written.get("x-kubernetes-validations", ())]
        return written


def filled(block: type[Block], given: Mapping[str, Any]) -> dict[str, Any]:
    """`given`, a block of a spec in JSON, with the defaults of its fields and of those of the blocks in it."""
    defaults, inner = _defaults(block)
    return copy.deepcopy(defaults) | {name: filled(inner[name], value) if name in inner else value for name, value in given.items()}


@cache
def _defaults(block: type[Block]) -> tuple[dict[str, Any], dict[str, type[Block]]]:
    """JSON defaults of a block, and the blocks of its fields that are one."""
    fields = {field.alias or name: field for name, field in block.model_fields.items()}
    inner = {name: found[0] for name, field in fields.items() if (found := [each for each in _types(field.annotation) if issubclass(each, Block)])}
    defaults = {name: field.default for name, field in fields.items() if not field.is_required() and field.default is not None}
    return defaults, inner


def _types(annotation: Any) -> list[type]:
    """The classes of which a field's annotation makes a choice: `int | None` has int and NoneType; a list or a map has none."""
    choices = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    return [each for each in choices if isinstance(each, type)]


def written(value: Any, keep: Callable[[FieldInfo], bool]) -> Any:
    """A block as JSON, without absent fields and those for which `keep` is false, at every depth."""
    if isinstance(value, list):
        return [written(item, keep) for item in value]
    if not isinstance(value, Block):
        return value
    known = {name: field for name, field in type(value).model_fields.items() if getattr(value, name) is not None and keep(field)}
    return {field.alias or name: written(getattr(value, name), keep) for name, field in known.items()}


def left_out(value: Any, path: str) -> Iterator[str]:
    """The JSON paths of the settings that a block leaves to a default, its field's or a decided one."""
    if isinstance(value, list):
        for number, item in enumerate(value):
            yield from left_out(item, f"{path}[{number}]")
    if not isinstance(value, Block):
        return
    for name, field in type(value).model_fields.items():
        place, given = f"{path}.{field.alias or name}", getattr(value, name)
        if mark(field, "decided") if given is None else name not in value.model_fields_set:
            yield place
        yield from left_out(given, place)
