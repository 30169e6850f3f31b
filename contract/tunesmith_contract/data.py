"""Where rows come from and which are dropped."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from tunesmith_contract.base import URI, Block, Decimal, Name, OneOf, rule, rules

Format = Literal["Messages", "Alpaca", "PromptCompletion", "Text"]


class DataSource(Block):
    """A JSON Lines file or a folder of them, and the shape of their rows."""

    uri: URI = Field(description="`pvc://<claim>/<path>`: a JSON Lines file, or a folder of them, on a PersistentVolumeClaim of this namespace.")
    format: Format = Field(
        description="Messages: `messages`, `tools`. Alpaca: `instruction`, `input`, `output`. "
        "PromptCompletion: `prompt`, `completion`. Text: `text`. docs/data.md has all keys."
    )


class Dataset(DataSource):
    """One training dataset."""

    name: Name = Field(description="Unique in the list; shown in status and errors.")


class Validation(OneOf):
    """Held-out rows for the evaluation loss during training."""

    fraction: Decimal | None = Field(
        None,
        description="Share of the training rows held out, above 0 and below 0.5.",
        json_schema_extra=rules(rule("double(self) > 0.0 && double(self) < 0.5", "must be above 0 and below 0.5")),
    )
    dataset: DataSource | None = Field(None, description="A dataset of its own.")


class Preparation(Block):
    """Filters applied to the training rows."""

    min_tokens: int | None = Field(None, ge=1, le=1048576, description="Rows with fewer tokens are dropped.")
    drop_patterns: Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=32)] | None = Field(
        None, description="Rows whose text matches one of these Python regular expressions are dropped."
    )
