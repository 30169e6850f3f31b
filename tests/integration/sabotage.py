"""Defects to be found: each function breaks the operator in whose process it is called."""

from __future__ import annotations

from tunesmith.cluster import Cluster
from tunesmith.values import Object


def generate_names() -> None:
    """Have the server make up the names of Jobs, as most operators do: one whose creation was not heard of is then made again."""
    create = Cluster.create

    async def create_with_generated_name(self: Cluster, obj: Object) -> Object:
        name = obj["metadata"]["name"]
        metadata = {key: value for key, value in obj["metadata"].items() if key != "name"} | {"generateName": f"{name}-"}
        answer = await create(self, {**obj, "metadata": metadata})
        return {**answer, "metadata": {**answer["metadata"], "name": name}}

    Cluster.create = create_with_generated_name  # type: ignore[method-assign]
