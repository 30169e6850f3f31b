"""Trainings of several processes, one after another, forked from one process that has imported torch and its friends once.

Run by the zygote (zygote.py) as `python -m tests.trainer.trainings PLAN`: a JSON list of `{"stage": <stage file>, "folder": <for logs and outcomes>,
"root": <the store>, "processes": <number>, "stopAt": <step in which the last process gets SIGTERM, or null>, "untouched":
<whether the libraries are left as they are>}`. An import takes ten times as long as a training here; all else is as under
torchrun: the worker's own main, a process group of its own, outcome files.
"""

import json
import os
import signal
import sys
import traceback
from pathlib import Path

from dev.cluster.ports import free_port


def main(plan):
    """Run every training of the plan to its end."""
    import deepspeed.runtime.zero.stage3  # noqa: F401

    import tunesmith_trainer.training.loop  # noqa: F401

    for play in plan:
        port = free_port()
        children = [start(play, rank, port) for rank in range(play["processes"])]
        for child in children:
            os.waitpid(child, 0)


def start(play, rank, port):
    """Fork one process of a training; returns its process id."""
    child = os.fork()
    if child:
        return child
    folder = Path(play["folder"])
    log = os.open(folder / f"log-{rank}", os.O_CREAT | os.O_WRONLY | os.O_TRUNC)
    os.dup2(log, 1)
    os.dup2(log, 2)
    size = str(play["processes"])
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    os.environ |= {"TORCHELASTIC_USE_AGENT_STORE": "True", "TORCHELASTIC_RESTART_COUNT": "0"}
    os.environ |= {"TUNESMITH_SCRATCH": str(folder), "TUNESMITH_REPORTS": str(folder)}
    os.environ |= {"TUNESMITH_STAGE_FILE": play["stage"], "TUNESMITH_PVC_ROOT": play["root"]}
    code = 1
    try:
        if play.get("stopAt") and rank == play["processes"] - 1:
            stop_at(play["stopAt"])
        from tunesmith_trainer.training import strategy, worker

        meeting = be_launcher(port) if rank == 0 else None
        if play.get("untouched"):
            strategy.prepare_libraries = lambda *_: None
        code = worker.main()
        del meeting
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        os._exit(code)


def be_launcher(port):
    """Do in the first process what its launcher and torchrun do before it starts: claim the run, and open the store to meet at."""
    from torch.distributed import TCPStore

    from tunesmith_contract.stages import TrainInput
    from tunesmith_trainer import runner, store
    from tunesmith_trainer.training import fence

    parsed = runner.parse(TrainInput, runner.read_file())
    os.environ["TUNESMITH_LAUNCH"] = fence.claim(parsed, store.path_of(parsed.run_uri)).launch
    return TCPStore("127.0.0.1", port, is_master=True, wait_for_workers=False)


def stop_at(step):
    """Have this process be told to stop after a step, as by a node that is drained."""
    from tunesmith_trainer.training import loop

    class Stopping(loop.ProgressReport):
        def on_step_begin(self, args, state, control, **_):
            if state.global_step == step - 1:
                os.kill(os.getpid(), signal.SIGTERM)

    loop.ProgressReport = Stopping


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
