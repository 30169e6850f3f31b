"""Defects to be found: each function breaks the operator in whose process it is called."""

from __future__ import annotations

from tunesmith.core.objects import Object
from tunesmith.runtime.client import Cluster


def generate_names() -> None:
    """Have the server make up the names of headless Services, as many operators do: one whose creation was not heard of is then made again.

    (Of a Job that would not do: by its pods the operator knows that there is one.)
    """
    apply = Cluster.apply

    async def apply_with_generated_name(self: Cluster, obj: Object, live: Object | None) -> Object:
        if live is not None or obj["kind"] != "Service" or obj["spec"].get("clusterIP") != "None":
            return await apply(self, obj, live)
        name = obj["metadata"]["name"]
        metadata = {key: value for key, value in obj["metadata"].items() if key != "name"} | {"generateName": f"{name}-"}
        answer = await self.create({**obj, "metadata": metadata})
        return {**answer, "metadata": {**answer["metadata"], "name": name}}

    Cluster.apply = apply_with_generated_name  # type: ignore[method-assign]
