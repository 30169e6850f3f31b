"""Defects to be found: each function breaks the operator in whose process it is called."""

from __future__ import annotations

from tunesmith.cluster import Cluster
from tunesmith.values import Object


def generate_names() -> None:
    """Have the server make up the names of ConfigMaps, as many operators do: one whose creation was not heard of is then made again.

    (Of a Job that would not do: by its pods the operator knows that there is one.)
    """
    post = Cluster._post

    async def post_with_generated_name(self: Cluster, obj: Object) -> Object | None:
        name = obj["metadata"]["name"]
        if obj["kind"] != "ConfigMap":
            return await post(self, obj)
        metadata = {key: value for key, value in obj["metadata"].items() if key != "name"} | {"generateName": f"{name}-"}
        answer = await post(self, {**obj, "metadata": metadata})
        return answer and {**answer, "metadata": {**answer["metadata"], "name": name}}

    Cluster._post = post_with_generated_name  # type: ignore[method-assign]
