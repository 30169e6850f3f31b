import itertools
import json
import ssl
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from types import SimpleNamespace

import pytest

from dev.cluster.ports import free_port
from tests.trainer import bench
from tunesmith_trainer import train
from tunesmith_trainer.errors import StageError

pytestmark = pytest.mark.timeout(600)


def test_a_drained_pod_makes_both_save_at_one_step_and_end_as_interrupted(story):
    assert [code for code, _ in story.drained] == [75, 75], story.drained
    assert {result["outcome"] for _, result in story.drained} == {"Interrupted"}
    (step,) = {result["globalStep"] for _, result in story.drained}
    assert 0 < step < 300
    assert story.drained[0][1]["checkpoint"]["step"] == step
    assert story.saved_steps[-1] == f"step-{step}" or f"step-{step}" in story.saved_steps


def test_the_next_attempt_goes_on_from_the_saved_step(story):
    codes = [code for code, _ in story.ended]
    assert codes == [0, 0], story.ended
    result = story.ended[0][1]
    assert result["resumedFromStep"] == story.drained[0][1]["globalStep"]
    assert (result["globalStep"], result["worldSize"]) == (300, 2)
    assert result["checkpoint"]["uri"].endswith("/checkpoints/attempt-2/step-300")


def test_each_step_is_in_the_loss_curve_once_and_the_loss_falls(story):
    losses = {line["step"]: line["loss"] for line in story.metrics if "loss" in line}
    assert [line["step"] for line in story.metrics if "loss" in line] == list(range(1, 301))
    # With a frozen random head there is not much to win.
    assert sum(losses[step] for step in range(291, 301)) < 0.95 * sum(losses[step] for step in range(1, 11))
    assert story.ended[0][1]["evalLoss"] > 0


def test_the_first_pod_alone_writes_the_result(story):
    follower = story.ended[1][1]
    assert follower["outcome"] == "Succeeded"
    assert "checkpoint" not in follower
    written = json.loads((story.folder / "results" / "train.json").read_text())
    assert written == story.ended[0][1]


def test_only_the_newest_checkpoints_are_kept(story):
    complete = [path.parent.name for path in story.folder.glob("checkpoints/*/*/manifest.json")]
    assert sorted(complete) == ["step-280", "step-300"]


def test_a_finished_training_answers_at_once(story):
    code, result = story.store.run(story.train[1])
    assert (code, result) == (0, story.ended[0][1])


@pytest.mark.parametrize(
    ("rate", "steps", "validation", "what"),
    [("1e30", 3, None, "the gradient"), ("1e30", 1, {"fraction": "0.1"}, "the validation loss"), ("1e39", 1, None, "a weight")],
)
def test_a_training_that_diverges_has_failed_for_good(store, zygote, rate, steps, validation, what):
    blocks = {"training": bench.training(learningRate=rate, maxSteps=steps), "validation": validation}
    prepared = store.run(bench.prepare_input(**blocks))[1]
    pod = store.start(bench.train_input(prepared, free_port(), **blocks), **zygote)
    code, result = pod.wait()
    assert (code, result["reason"]) == (65, "Diverged"), result
    assert f"{what} is not finite at step" in result["message"]


def test_a_pod_that_never_appears_is_told(monkeypatch):
    with pytest.raises(StageError, match=r"nobody\.invalid did not come") as caught:
        train.wait_for_names(["localhost", "nobody.invalid"], seconds=0.1)
    assert (caught.value.reason, caught.value.exit_code) == ("PeerUnavailable", 69)


def test_all_pods_are_waited_for_as_long_as_an_autoscaler_may_take_and_only_then_have_five_minutes_to_meet(monkeypatch):
    asked = []
    unknown = ["job-1.job"] * 900  # seconds: longer than the five minutes

    def look_up(host, port):
        asked.append(host)
        if host in unknown:
            unknown.remove(host)
            raise OSError("not known yet")

    clock = iter(range(10_000))
    monkeypatch.setattr(train.socket, "getaddrinfo", look_up)
    monkeypatch.setattr(train.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(train.time, "sleep", lambda seconds: None)
    train.wait_for_names(train.names_of("job-0.job", 3), train.ASSEMBLY_SECONDS)
    assert list(dict.fromkeys(asked)) == ["job-0.job", "job-1.job", "job-2.job"]
    assert len(asked) == 903
    assert train.names_of("127.0.0.1", 2) == ["127.0.0.1"]


@pytest.mark.parametrize("index", [0, 1])
def test_a_pod_whose_peer_never_comes_has_met_with_no_bug(store, zygote, index):
    prepared = store.run(bench.prepare_input())[1]
    pod = store.start(bench.train_input(prepared, free_port(), nodes=2), index, **zygote, TUNESMITH_RENDEZVOUS_SECONDS="5")
    code, result = pod.wait()
    assert (code, result["reason"]) == (69, "PeerUnavailable"), result
    assert "another pod of the attempt did not come" in result["message"]


@pytest.mark.parametrize("endpoint", ["host", "host:", ":29500", "host:port"])
def test_an_endpoint_needs_a_host_and_a_port(endpoint):
    with pytest.raises(StageError, match="not host:port"):
        train.split_endpoint(endpoint)


def test_a_failure_of_a_worker_goes_before_its_peers_echo(tmp_path):
    def outcome(reason):
        return json.dumps({"failure": {"reason": reason, "message": reason, "details": {}}})

    (tmp_path / "outcome-0000.json").write_text(outcome("PeerUnavailable"))
    (tmp_path / "outcome-0001.json").write_text(outcome("InternalError"))
    with pytest.raises(StageError, match="InternalError"):
        train.Launcher(SimpleNamespace(rendezvous=SimpleNamespace(processes_per_node=2)), tmp_path, tmp_path, None).answer()


def test_a_checkpoint_that_is_damaged_is_passed_over(tmp_path):
    from tunesmith_trainer import store
    from tunesmith_trainer.training import checkpoint

    for attempt, step in ((1, 10), (2, 20), (2, 30)):
        folder = checkpoint.attempt_folder(tmp_path, attempt) / f"step-{step}"
        folder.mkdir(parents=True)
        (folder / "optimizer.pt").write_text(str(step))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNESMITH_PVC_ROOT", str(tmp_path))
        store.write_manifest(tmp_path / "checkpoints/attempt-1/step-10")
        store.write_manifest(tmp_path / "checkpoints/attempt-2/step-20")
    (tmp_path / "checkpoints/attempt-2/step-20/optimizer.pt").write_text("21")
    assert checkpoint.newest(tmp_path).name == "step-10"


@pytest.fixture
def operator(tmp_path, monkeypatch):
    """A server that speaks the operator's side of KEP-2779's protocol, over TLS."""
    import subprocess

    key, certificate = tmp_path / "key.pem", tmp_path / "cert.pem"
    subject = ["-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-keyout", key, "-out", certificate]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    (tmp_path / "token").write_text("secret\n")
    received = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self):
            body = self.rfile.read(int(self.headers["Content-Length"]))
            received.append((self.headers["Authorization"], json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, *_):
            pass

    server = HTTPServer(("localhost", 0), Handler)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    server.socket = context.wrap_socket(server.socket, server_side=True)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", f"https://localhost:{server.server_port}/progress")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_CA_CERT", str(certificate))
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", str(tmp_path / "token"))
    yield received
    server.shutdown()
    server.server_close()


def play(monkeypatch, steps, seconds_a_step, interrupted_at=None, resumed_from=0, published=lambda: None):
    """Tell a ProgressReport of a training, on a clock of its own."""
    from tunesmith_trainer.training import progress

    clock = itertools.count(0, seconds_a_step)
    now = next(clock)
    monkeypatch.setattr(progress.time, "monotonic", lambda: now)
    report = progress.ProgressReport(published)
    state = SimpleNamespace(global_step=resumed_from, max_steps=steps, epoch=0.0, is_world_process_zero=True)
    report.on_train_begin(None, state, None)
    for step in range(resumed_from + 1, (interrupted_at or steps) + 1):
        now = next(clock)
        state.global_step = step
        report.on_log(None, state, None, logs={"loss": 2.0 / step})
        report.on_step_end(None, state, None)
    report.on_train_end(None, state, None)


def test_progress_arrives_at_the_operator_not_too_often(operator, monkeypatch):
    play(monkeypatch, steps=100, seconds_a_step=1)
    assert {authorization for authorization, _ in operator} == {"Bearer secret"}
    assert len(operator) == 22
    middle = operator[10][1]["trainerStatus"]
    assert (middle["progressPercentage"], middle["estimatedRemainingSeconds"]) == (50, 50)
    assert {"name": "loss", "value": "0.04"} in middle["metrics"]
    assert operator[-1][1]["trainerStatus"]["progressPercentage"] == 100


def test_a_training_reports_by_our_callback_alone(operator, store, zygote):
    prepared = store.run(bench.prepare_input())[1]
    code, result = store.start(bench.train_input(prepared, free_port()), **zygote).wait()
    assert code == 0, result
    reports = [body["trainerStatus"] for _, body in operator]
    figures = [{metric["name"]: metric["value"] for metric in report["metrics"]} for report in reports]
    # transformers' own reports first without a step, last without one, and figures to the last digit.
    assert [("current_step" in each, len(each.get("loss", "")) <= 12) for each in figures] == [(True, True)] * len(reports)
    assert [report["progressPercentage"] for report in reports][:: len(reports) - 1] == [0, 100]


def test_a_report_names_the_newest_checkpoint_once_there_is_one(operator, monkeypatch):
    saved = iter([None, None, 30, 30, 60])
    play(monkeypatch, steps=16, seconds_a_step=5, published=lambda: next(saved, 90))
    figures = [{metric["name"]: metric["value"] for metric in body["trainerStatus"]["metrics"]} for _, body in operator]
    assert [each.get("last_checkpoint_step") for each in figures][:6] == [None, None, "30", "30", "60", "90"]


def test_a_training_that_goes_on_reports_first_from_where(operator, monkeypatch):
    play(monkeypatch, steps=100, seconds_a_step=1, resumed_from=40)
    assert operator[0][1]["trainerStatus"]["progressPercentage"] == 40
    # Its time is reckoned by its own steps.
    assert operator[1][1]["trainerStatus"]["estimatedRemainingSeconds"] == 55


def test_an_interrupted_training_does_not_report_that_it_is_done(operator, monkeypatch):
    play(monkeypatch, steps=100, seconds_a_step=1, interrupted_at=30)
    assert operator[-1][1]["trainerStatus"]["progressPercentage"] == 30


def test_an_operator_out_of_reach_is_logged_and_no_more(monkeypatch, capsys):
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_URL", "https://localhost:9/progress")
    monkeypatch.setenv("KUBEFLOW_TRAINER_SERVER_TOKEN", "/nowhere")
    play(monkeypatch, steps=2, seconds_a_step=1)
    assert "progress was not reported" in capsys.readouterr().out
