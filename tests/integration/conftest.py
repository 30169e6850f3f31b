"""One control plane for the whole session, a namespace for each test."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dev.cluster.controlplane import ControlPlane
from tests.integration import kueue, rights
from tests.integration.meddler import Meddled, Meddler
from tests.integration.operators import Namespace, OperatorProcess
from tests.integration.schema_server import PLURALS, Server
from tunesmith.kinds import KINDS

_numbers = itertools.count()

UNSEEN = {
    # Checked by an admission plugin (OwnerReferencesPermissionEnforcement), not asked for by a request.
    *(rights.Right("tunesmith.dev", f"{kind.plural}/finalizers", "update") for kind in KINDS.values()),
}
ELSEWHERE = kueue.RIGHTS
"""Used in a control plane of the test's own, where that is looked at."""
FIRST = ("test_crash_plans", "test_chart", "test_attempts", "test_upgrade", "test_transitions", "test_operator_laws", "test_modeldeployment")
LAST = ("test_refusals", "test_replicas", "test_views", "test_progress")
USED = pytest.StashKey[set[rights.Right]]()
FORBIDDEN = pytest.StashKey[list[str]]()


@pytest.fixture(scope="session")
def control_plane(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ControlPlane]:
    """etcd, kube-apiserver, kube-controller-manager and kube-scheduler, without a node: tests set the states of pods themselves.

    Operators have the chart's rights. None may have asked for more, and when all tests have run, no right may be left that none of
    them made use of (`pytest_sessionfinish`).
    """
    state: Path = tmp_path_factory.mktemp("control-plane")
    # At its default limits the controller-manager, not what is tested, would decide how long a burst takes.
    fast = ["--kube-api-qps=1000", "--kube-api-burst=1000", "--concurrent-gc-syncs=20"]
    # Instead of 50 s, which tests/e2e/test_drills.py waits for.
    fast.append("--node-monitor-grace-period=20s")
    with ControlPlane(state, controller_manager_flags=fast) as running:
        yield running
        request.config.stash.setdefault(USED, set()).update(rights.used(running.audit_log))
        request.config.stash.setdefault(FORBIDDEN, []).extend(rights.forbidden(running.audit_log))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first, so that no worker is left with one of them when all else is done; those that look at times not beside them."""
    here = [item for item in items if item.path.parent == Path(__file__).parent]
    ranks = {name: rank for rank, name in enumerate(FIRST)} | {name: len(FIRST) + 1 + rank for rank, name in enumerate(LAST)}
    if len(here) == len(items):
        items.sort(key=lambda item: ranks.get(item.path.stem, len(FIRST)))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker of pytest-xdist saw: each has a control plane of its own."""
    seen = {rights.Right(*each) for each in getattr(node, "workeroutput", {}).get("rights", ())}
    node.config.stash.setdefault(USED, set()).update(seen)
    node.config.stash.setdefault(FORBIDDEN, []).extend(getattr(node, "workeroutput", {}).get("forbidden", ()))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a run in which an operator asked for what it may not, and a whole run in which none used a right that it has."""
    config, used, refused = session.config, session.config.stash.get(USED, set()), session.config.stash.get(FORBIDDEN, [])
    if hasattr(config, "workeroutput"):
        config.workeroutput |= {"rights": sorted(map(list, used)), "forbidden": refused}
        return
    if refused:
        print(f"\nFAILED: the chart does not grant what an operator asked for: {sorted(set(refused))}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    if _is_whole(session):
        # An apply that makes an object is allowed by both verbs, and written down as a patch.
        used |= {right._replace(verb="create") for right in used if right.verb == "patch"}
        if idle := rights.granted() - used - UNSEEN - ELSEWHERE:
            print(f"\nFAILED: the chart grants what no test saw the operator use: {sorted(idle)}")
            session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say which crash plans were tried."""
    for report in itertools.chain(*terminalreporter.stats.values()):
        for name, value in getattr(report, "user_properties", ()) if getattr(report, "when", "") == "call" else ():
            terminalreporter.write_line(f"{name}: {value}")


def _is_whole(session: pytest.Session) -> bool:
    """Whether every test of this folder was run and none failed."""
    option = session.config.option
    whole = [Path(argument).resolve() for argument in session.config.args] == [Path(__file__).parent]
    return whole and option.markexpr == "not long" and not (option.keyword or session.testsfailed)


@pytest.fixture
def unscheduled(control_plane: ControlPlane) -> Iterator[None]:
    """Without the scheduler: of a pod that a test has said to run, it would say that there is no node for it."""
    control_plane.stop_process("kube-scheduler")
    yield
    control_plane.start_process("kube-scheduler")


@pytest.fixture(scope="session")
def api(control_plane: ControlPlane) -> Server:
    """The API server as its administrator, with our CRDs."""
    return Server.with_kinds(control_plane)


@pytest.fixture
def new_namespace(api: Server) -> Callable[[], str]:
    """Makes namespaces."""

    def make() -> str:
        name = f"test-{next(_numbers)}"
        answer = api.send("POST", "/api/v1/namespaces", {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
        assert answer.code == 201, answer.body
        return name

    return make


@pytest.fixture
def namespace(new_namespace: Callable[[], str]) -> str:
    """A namespace of the test's own."""
    return new_namespace()


@pytest.fixture(scope="session")
def operator_process(control_plane: ControlPlane, api: Server, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OperatorProcess]:
    """The one operator of the session. Tests take `operator`, which is sure to run."""
    process = OperatorProcess(control_plane, tmp_path_factory.mktemp("operator"))
    yield process
    process.kill()


@pytest.fixture(scope="module")
def server(api: Server, operator_process: OperatorProcess) -> Iterator[Server]:
    """The API server without an operator: what is written there is the server's and the test's alone."""
    operator_process.stop()
    yield api
    for kind in PLURALS:
        api.send("DELETE", api.path(kind))


@pytest.fixture
def operator(operator_process: OperatorProcess) -> OperatorProcess:
    """The running operator; a test may end it, the next one finds it running again."""
    if not operator_process.running:
        operator_process.stop()
        operator_process.start()
    return operator_process


@pytest.fixture
def space(api: Server, namespace: str) -> Namespace:
    """A namespace with a claim `models`."""
    made = Namespace(api, namespace)
    made.claim("models")
    return made


@pytest.fixture
def meddled(operator_process: OperatorProcess, control_plane: ControlPlane, space: Namespace, tmp_path: Path) -> Iterator[Meddled]:
    """The operator behind a proxy; the session's own is down meanwhile."""
    operator_process.stop()
    with Meddler(control_plane) as meddler:
        made = Meddled(control_plane, meddler, space, tmp_path)
        made.process.start()
        made.wait_watches()
        yield made
        made.process.stop()
