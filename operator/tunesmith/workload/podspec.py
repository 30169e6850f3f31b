"""Pods and the objects around them: what all our workloads share (docs/DESIGN.md sections 3 and 5).

Every pod passes Pod Security "restricted", holds no credential but the progress token, and carries its orders in annotations, which the
kubelet gives it as files. (A ConfigMap would be one more object for each attempt to make, watch, put right and remove, and could be there
without its Job or miss beside it. Once a Job has begun its template cannot change.)
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any

from tunesmith.api.blocks import CPU, GPU_RESOURCE, MEMORY, SHARED_MEMORY
from tunesmith.core.errors import InvalidSpec
from tunesmith.core.objects import API_VERSION, CONTAINER, GROUP, LABEL_KIND, LABEL_NAME, LABEL_UID, MANAGED_BY, VERSION, Config, Object

USER = 65532
MAX_CLAIMS = 8
STAGE_FOLDER, STAGE_FILE, CA_FILE = "/etc/tunesmith", "stage.json", "ca.crt"
ANNOTATIONS = {STAGE_FILE: f"{GROUP}/orders", CA_FILE: f"{GROUP}/progress-ca"}
"""Of a pod: where each of its files stands."""
TOKEN_FOLDER = f"/var/run/secrets/{GROUP}"
TOKEN_SECONDS = 3600
UNREACHABLE_SECONDS = 300
"""How long a pod stays on a node that does not answer: Kubernetes' own default. A kubelet that is restarted takes no model from its clients."""
TRAINING_UNREACHABLE_SECONDS = 10
"""The same of a training pod: every second of it is a second in which its peers wait, and the next attempt cannot start."""
UNREACHABLE_TAINTS = ("node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")

JOB_LABEL = "batch.kubernetes.io/job-name"
_PVC = "pvc://"
_FREE_FIELDS = frozenset(("overrides", "nodeSelector"))
"""Maps whose keys are the user's."""


@dataclass(frozen=True)
class Workload:
    """What differs between our pods."""

    image: str
    command: Sequence[str]
    input: Mapping[str, Any]
    """The content of stage.json; the claims it names are mounted, those of its `runURI` and `outputURI` writable."""
    resources: Mapping[str, Any]
    """`Resources` of the spec, as JSON."""
    scheduling: Mapping[str, Any] = field(default_factory=dict)
    """`Scheduling` of the spec, as JSON."""
    grace_period_seconds: int = 30
    unreachable_seconds: int = UNREACHABLE_SECONDS
    """How long its pods stay on a node that does not answer, where the user says nothing of it."""
    progress_path: str = ""
    """Path at the progress endpoint that the pods report to; empty: they do not report and get no token."""
    container: Mapping[str, Any] = field(default_factory=dict)
    """Further fields of the container (ports, probes)."""


def claims(*values: Any) -> list[str]:
    """Names of the PersistentVolumeClaims that are named by URIs: those given, and those in the URI fields of JSON values; sorted.

    Only fields that hold URIs count. A pattern or an engine's setting that looks like one is what a user wrote for another purpose:
    it must not have a volume mounted.
    """
    return sorted({uri.removeprefix(_PVC).split("/")[0] for value in values for uri in _uris(value) if uri.startswith(_PVC)})


def _uris(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for name, item in value.items():
            if name not in _FREE_FIELDS and (not isinstance(item, str) or name in ("uri", "includePath") or name.endswith("URI")):
                yield from _uris(item)
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from () if isinstance(item, str) else _uris(item)


def mounted(*values: Any) -> list[str]:
    """`claims`, where they are no more than a pod mounts."""
    named = claims(*values)
    if len(named) > MAX_CLAIMS:
        raise InvalidSpec("TooManyVolumes", f"{len(named)} PersistentVolumeClaims are named, a pod mounts at most {MAX_CLAIMS}: {', '.join(named)}")
    return named


def child_metadata(owner: Object, name: str, labels: Mapping[str, str]) -> Object:
    """Metadata of a child that garbage collection removes with its owner."""
    meta = owner["metadata"]
    reference = {
        "apiVersion": API_VERSION,
        "kind": owner["kind"],
        "name": meta["name"],
        "uid": meta["uid"],
        "controller": True,
        "blockOwnerDeletion": True,
    }
    return {"name": name, "namespace": meta["namespace"], "labels": owner_labels(owner) | dict(labels), "ownerReferences": [reference]}


def owner_labels(owner: Object) -> dict[str, str]:
    """Labels of every child and of its pods: the watches select on them."""
    return MANAGED_BY | {LABEL_KIND: owner["kind"], LABEL_NAME: owner["metadata"]["name"], LABEL_UID: owner["metadata"]["uid"]}


def headless_service(metadata: Object, selector: Mapping[str, str], port: int) -> Object:
    """DNS names for the pods of a Job. They are published before the pods are ready, because ready is what they become by meeting."""
    spec = {
        "clusterIP": "None",
        "publishNotReadyAddresses": True,
        "selector": dict(selector),
        "ports": [{"name": "rendezvous", "port": port, "protocol": "TCP", "targetPort": port}],
    }
    return {"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": spec}


def stage_job(metadata: Object, workload: Workload, config: Config, nodes: int = 0, avoid: Sequence[str] = ()) -> Object:
    """A stage's Job. `nodes` > 0: an Indexed Job of so many pods, each on a node of its own, that meet by the Service of the same name.

    Its pods go to none of the nodes `avoid`, if any other can take them.
    One attempt is one Job: it never retries by itself (docs/DESIGN.md section 3, Attempts).
    """
    name = metadata["name"]
    spec: Object = {"restartPolicy": "Never"}
    affinity = (_apart(name) if nodes > 1 else {}) | (_elsewhere(avoid) if avoid else {})
    spec |= ({"subdomain": name} if nodes > 1 else {}) | ({"affinity": affinity} if affinity else {})
    template = pod_template(metadata["labels"], workload, config, spec)
    shape = {"completionMode": "Indexed", "completions": nodes, "parallelism": nodes} if nodes else {"completions": 1, "parallelism": 1}
    return {"apiVersion": "batch/v1", "kind": "Job", "metadata": metadata, "spec": shape | {"backoffLimit": 0, "template": template}}


def pod_template(labels: Mapping[str, str], workload: Workload, config: Config, spec: Mapping[str, Any]) -> Object:
    """Pods with one container and its orders; `spec`: further fields of theirs.

    An object takes 256 KiB of annotations: the longest orders that the CRDs let in are two thirds of that.
    """
    files = {STAGE_FILE: json.dumps(workload.input, sort_keys=True, separators=(",", ":"), ensure_ascii=False)}
    if _reports(workload, config) and config.progress_ca:
        files[CA_FILE] = config.progress_ca
    annotations = {ANNOTATIONS[name]: text for name, text in files.items()}
    return {"metadata": {"labels": dict(labels), "annotations": annotations}, "spec": _pod_spec(workload, config, files) | dict(spec)}


def _pod_spec(workload: Workload, config: Config, files: Iterable[str]) -> Object:
    spec = {
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "fsGroupChangePolicy": "OnRootMismatch",
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "terminationGracePeriodSeconds": workload.grace_period_seconds,
        "containers": [_container(workload, config)],
        "volumes": _volumes(workload, config, files),
    }
    if config.image_pull_secrets:
        spec["imagePullSecrets"] = [{"name": name} for name in config.image_pull_secrets]
    return spec | _scheduling(workload)


def memory_bytes(quantity: str) -> int:
    """The bytes of a quantity as the spec takes it (`80Gi`, `1.5G`, `4294967296`)."""
    number = quantity.rstrip("mkKMGTPi")
    suffix = quantity.removeprefix(number)
    power = "KMGTP".find(suffix[:1].upper()) + 1 if suffix else 0
    if suffix == "m":
        return int(Decimal(number) / 1000)
    return int(Decimal(number) * (1024 if suffix.endswith("i") else 1000) ** power)


def container_resources(resources: Mapping[str, Any]) -> Object:
    """Requests and limits from the spec's `Resources`."""
    memory = resources.get("memory", MEMORY)
    limits: Object = {"memory": memory}
    if resources.get("gpus"):
        limits[resources.get("gpuResource", GPU_RESOURCE)] = str(resources["gpus"])
    return {"requests": {"cpu": resources.get("cpu", CPU), "memory": memory}, "limits": limits}


def _container(workload: Workload, config: Config) -> Object:
    return {
        "name": CONTAINER,
        "image": workload.image,
        "imagePullPolicy": config.image_pull_policy,
        "command": list(workload.command),
        "env": _environment(workload, config),
        "resources": container_resources(workload.resources),
        "securityContext": {"allowPrivilegeEscalation": False, "readOnlyRootFilesystem": True, "capabilities": {"drop": ["ALL"]}},
        # Not FallbackToLogsOnError: a result is a result, and log lines in status would carry what users train on.
        "terminationMessagePolicy": "File",
        "volumeMounts": _mounts(workload, config),
    } | dict(workload.container)


def _environment(workload: Workload, config: Config) -> list[Object]:
    values = {
        "HOME": "/home/tunesmith",
        "HF_HUB_OFFLINE": "1",
        "TMPDIR": "/tmp",
        "TORCH_EXTENSIONS_DIR": "/tmp/torch_extensions",
        "TRITON_CACHE_DIR": "/tmp/triton",
    }
    if _reports(workload, config):
        values |= {
            "KUBEFLOW_TRAINER_SERVER_URL": config.progress_url + workload.progress_path,
            "KUBEFLOW_TRAINER_SERVER_CA_CERT": f"{STAGE_FOLDER}/{CA_FILE}",
            "KUBEFLOW_TRAINER_SERVER_TOKEN": f"{TOKEN_FOLDER}/token",
        }
    node = {"name": "TUNESMITH_NODE", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "spec.nodeName"}}}
    # As many threads as CPUs were asked for, rounded up: left alone, each pod would start one for every CPU of its node.
    threads = {"name": "OMP_NUM_THREADS", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1"}}}
    return [*({"name": name, "value": value} for name, value in values.items()), node, threads]


def _reports(workload: Workload, config: Config) -> bool:
    return bool(config.progress_url and workload.progress_path)


def progress_path(owner: Object) -> str:
    """Where the pods of that object report to at the progress endpoint."""
    meta = owner["metadata"]
    return f"/apis/{GROUP}/{VERSION}/namespaces/{meta['namespace']}/{owner['kind'].lower()}s/{meta['name']}/status"


def _mounts(workload: Workload, config: Config) -> list[Object]:
    writable = claims(*(workload.input[name] for name in ("runURI", "outputURI") if name in workload.input))
    mounts: list[Object] = [
        {"name": "stage", "mountPath": STAGE_FOLDER, "readOnly": True},
        {"name": "tmp", "mountPath": "/tmp"},
        {"name": "home", "mountPath": "/home/tunesmith"},
        {"name": "shm", "mountPath": "/dev/shm"},
    ]
    for number, claim in enumerate(mounted(workload.input)):
        mount = {"name": f"claim-{number}", "mountPath": f"/mnt/pvc/{claim}"}
        mounts.append(mount if claim in writable else mount | {"readOnly": True})
    if _reports(workload, config):
        mounts.append({"name": "token", "mountPath": TOKEN_FOLDER, "readOnly": True})
    return mounts


def _volumes(workload: Workload, config: Config, files: Iterable[str]) -> list[Object]:
    # With its version, which the server would fill in: the list is compared as a whole.
    items = [{"path": name, "fieldRef": {"apiVersion": "v1", "fieldPath": f"metadata.annotations['{ANNOTATIONS[name]}']"}} for name in files]
    memory = {"medium": "Memory", "sizeLimit": workload.resources.get("sharedMemory", SHARED_MEMORY)}
    volumes: list[Object] = [
        {"name": "stage", "downwardAPI": {"items": items}},
        {"name": "tmp", "emptyDir": {}},
        {"name": "home", "emptyDir": {}},
        {"name": "shm", "emptyDir": memory},
    ]
    # The volume itself stays writable for the kubelet, which may have to set the group of its files; the mounts say who may write.
    for number, claim in enumerate(mounted(workload.input)):
        volumes.append({"name": f"claim-{number}", "persistentVolumeClaim": {"claimName": claim}})
    if _reports(workload, config):
        token = {"audience": GROUP, "expirationSeconds": TOKEN_SECONDS, "path": "token"}
        volumes.append({"name": "token", "projected": {"sources": [{"serviceAccountToken": token}]}})
    return volumes


def _scheduling(workload: Workload) -> Object:
    """Of the tolerations that match a taint the first one counts. So ours come first: one that matches every taint (`operator: Exists`) would
    keep a pod on a dead node for ever. A user who names the very taint knows better."""
    scheduling = workload.scheduling
    given = sorted(scheduling.get("tolerations", ()), key=lambda toleration: not any(_names(toleration, taint) for taint in UNREACHABLE_TAINTS))
    ours = [
        {"key": taint, "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": workload.unreachable_seconds}
        for taint in UNREACHABLE_TAINTS
        if not any(_names(toleration, taint) for toleration in given)
    ]
    taken = {name: scheduling[name] for name in ("priorityClassName", "nodeSelector") if scheduling.get(name)}
    return taken | {"tolerations": [*ours, *given]}


def _names(toleration: Mapping[str, Any], taint: str) -> bool:
    return toleration.get("key") == taint and toleration.get("effect", "NoExecute") == "NoExecute"


def patience(scheduling: Mapping[str, Any]) -> timedelta:
    """For how long the user wants pods to stay on a node that does not answer; zero where he names no time."""
    named = (each for each in scheduling.get("tolerations", ()) if any(_names(each, taint) for taint in UNREACHABLE_TAINTS))
    return timedelta(seconds=max((int(each.get("tolerationSeconds", 0)) for each in named), default=0))


def _apart(job: str) -> Object:
    term = {"labelSelector": {"matchLabels": {JOB_LABEL: job}}, "topologyKey": "kubernetes.io/hostname"}
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def _elsewhere(nodes: Sequence[str]) -> Object:
    """A preference: where nothing else fits, the scheduler takes one of these nodes by itself.

    All of them stand in one term, so that it gives a bad node none of its 200 points. A term for each would give half of them to a bad node
    where there are two, and the image that is there already with the CPU that is free outweighs the other half (tests/integration/test_attempts.py).
    """
    fields = [{"key": "metadata.name", "operator": "NotIn", "values": [node]} for node in nodes]
    term = {"weight": 100, "preference": {"matchFields": fields}}
    return {"nodeAffinity": {"preferredDuringSchedulingIgnoredDuringExecution": [term]}}
