"""Writes docs/api.md from the CRDs: `python -m dev.api_reference docs/api.md`."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tunesmith import crd
from tunesmith.api.kind import Kind
from tunesmith.core.objects import GROUP, VERSION
from tunesmith.kinds import KINDS

Schema = Mapping[str, Any]

HEAD = f"""<!-- Written by `make generate` from the CRDs: do not edit. -->
# API reference: {GROUP}/{VERSION}

What each kind is for, and how they work together: [concepts.md](concepts.md). What to do for a condition's reason:
[troubleshooting.md](troubleshooting.md). `kubectl explain finetunejob.spec` tells the same as this page, for the version that is installed.

`[]` marks the items of a list, `{{}}` the values of a map. A field with * must be present where the block it stands in is.
Decimals are strings, durations are whole seconds in fields named `…Seconds`. The operator never writes a spec.
"""


def cell(text: str) -> str:
    """`text` as one cell of a Markdown table."""
    return " ".join(text.split()).replace("|", "\\|")


def type_of(schema: Schema) -> str:
    """The type in a word or two, with its bounds."""
    if "enum" in schema:
        return " \\| ".join(f"`{value}`" for value in schema["enum"])
    if schema.get("type") == "array":
        items = schema["items"].get("type", "object")
        return f"list of {items}" + (f", at most {schema['maxItems']}" if "maxItems" in schema else "")
    if "additionalProperties" in schema:
        return "map" + (f", at most {schema['maxProperties']}" if "maxProperties" in schema else "")
    word = str(schema.get("format") if schema.get("format") == "date-time" else schema.get("type", "any"))
    return word + bounds(schema)


def bounds(schema: Schema) -> str:
    """The limits of a number or a string."""
    if "minimum" in schema or "maximum" in schema:
        return f", {schema.get('minimum', '')}…{schema.get('maximum', '')}"
    return f", at most {schema['maxLength']} characters" if "maxLength" in schema else ""


def fields(schema: Schema, prefix: str = "") -> Iterator[str]:
    """A table row for each field at and below `schema`, in the order of the schema."""
    required = schema.get("required", ())
    for name, each in schema.get("properties", {}).items():
        path = f"{prefix}.{name}" if prefix else name
        default = f" Default in the schema: `{each['default']}`." if "default" in each else ""
        yield f"| `{path}`{' *' if name in required else ''} | {type_of(each)} | {cell(each.get('description', ''))}{default} |"
        yield from below(each, path)


def below(schema: Schema, path: str) -> Iterator[str]:
    """The rows of what an object, a list or a map at `path` holds."""
    yield from fields(schema, path)
    if "items" in schema:
        yield from below(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from below(schema["additionalProperties"], f"{path}{{}}")


def validations(schema: Schema, path: str = "") -> Iterator[str]:
    """A line for each rule (CEL) at and below `schema`, with the path that it is about."""
    for rule in schema.get("x-kubernetes-validations", ()):
        place = (path + rule.get("fieldPath", "")).lstrip(".") or "spec"
        yield f"- `{place}`: {rule['message']}"
    for name, each in schema.get("properties", {}).items():
        yield from validations(each, f"{path}.{name}")
    if "items" in schema:
        yield from validations(schema["items"], f"{path}[]")
    if isinstance(schema.get("additionalProperties"), Mapping):
        yield from validations(schema["additionalProperties"], f"{path}{{}}")


def part(title: str, schema: Schema) -> list[str]:
    """A heading and the table of a spec or a status."""
    return ["", f"### {title}", "", "| field | type | description |", "|---|---|---|", *fields(schema)]


def kind(each: Kind) -> list[str]:
    """The chapter of one kind."""
    version = crd.manifest(each)["spec"]["versions"][0]
    root = version["schema"]["openAPIV3Schema"]
    spec, status = (root["properties"][name] for name in ("spec", "status"))
    columns = ", ".join(f"`{column['name']}`" + (" (wide)" if column.get("priority") else "") for column in version["additionalPrinterColumns"])
    name = root["properties"]["metadata"]["properties"]["name"]
    lines = ["", f"## {each.name}", "", cell(root["description"]), ""]
    lines += [f"`metadata.name`: at most {name['maxLength']} characters, `{name['pattern']}`. Columns of `kubectl get`: {columns}."]
    lines += part(f"{each.name} spec", spec)
    return [*lines, "", "Rules that the API server enforces:", "", *validations(spec), *part(f"{each.name} status", status)]


def render() -> str:
    """The whole page."""
    return "\n".join([HEAD.rstrip(), *(line for each in KINDS.values() for line in kind(each))]) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Write the page to the file named."""
    if len(arguments) != 1:
        print("usage: python -m dev.api_reference FILE", file=sys.stderr)
        return 64
    Path(arguments[0]).write_text(render())
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
