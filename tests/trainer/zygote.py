"""A process that has imported the trainer's libraries and forks what a pod runs, which saves a training a quarter of a minute of CPU.

A stage (bench.py), the torchrun that Train starts and the workers that torchrun starts are all started with the program that
ZYGOTE_PYTHON names. That is this file's client: it asks the zygote for a process, passes it the signals that it gets itself, and ends
as that process ends. Everything else is as in a pod: launcher, torchrun, gloo. (PYTHON_EXEC names another program for the workers alone.)

    zygote.py serve SOCKET      fork for those who ask, until standard input ends
    zygote.py ARGUMENTS         the client; $ZYGOTE names the socket
"""

import json
import os
import select
import signal
import socket
import sys


def serve(path):
    # What takes so long.
    import torch.distributed.run  # noqa: F401

    import tunesmith_trainer.training.loop  # noqa: F401

    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    print("ready", flush=True)
    children = {}  # pidfd -> (pid, connection)
    while True:
        connections = {connection.fileno(): pidfd for pidfd, (_, connection) in children.items()}
        for ready in select.select([0, server.fileno(), *children, *connections], [], [])[0]:
            if ready == 0:
                return
            if ready == server.fileno():
                connection = server.accept()[0]
                pid = fork(connection, server)
                children[os.pidfd_open(pid)] = (pid, connection)
                connection.sendall(f"{pid}\n".encode())
            elif ready in children:
                pid, connection = children.pop(ready)
                os.close(ready)
                status = os.waitpid(pid, 0)[1]
                try:
                    connection.sendall(f"{os.waitstatus_to_exitcode(status)}\n".encode())
                except OSError:
                    pass
                connection.close()
            elif connections.get(ready) in children:
                # The client was killed, and so is its process.
                pid, connection = children[connections[ready]]
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                os.close(connections[ready])
                del children[connections[ready]]
                connection.close()


def fork(connection, server):
    """Fork the process that a client asks for; returns its pid."""
    content, files = b"", []
    while not content.endswith(b"\n"):
        data, more, _, _ = socket.recv_fds(connection, 1 << 20, 3)
        content, files = content + data, files + more
    order = json.loads(content)
    pid = os.fork()
    if pid:
        for file in files:
            os.close(file)
        return pid
    status = 70
    try:
        for number, file in enumerate(files):
            os.dup2(file, number)
        connection.close()
        server.close()
        os.environ.clear()
        os.environ.update(order["environment"])
        os.chdir(order["folder"])
        run(order["arguments"])
        status = 0
    except SystemExit as end:
        status = end.code or 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def run(arguments):
    """Do what `python ARGUMENTS` would, for -u and -m MODULE."""
    import runpy

    from tests.trainer import faults

    # What the process starts comes from here, too; but where PYTHON_EXEC alone has torchrun's workers come from here.
    sys.executable = os.environ.get("ZYGOTE_PYTHON", sys.executable)
    if "RANK" in os.environ:
        faults.install()
    arguments = [argument for argument in arguments if argument != "-u"]
    assert arguments[0] == "-m", arguments
    if arguments[1] == "tunesmith_trainer":
        os.environ["LAUNCHER"] = str(os.getpid())
    sys.argv = arguments[1:]
    runpy.run_module(arguments[1], run_name="__main__", alter_sys=True)


def ask(arguments):
    """Be the client; returns the exit code."""
    zygote = socket.socket(socket.AF_UNIX)
    zygote.connect(os.environ["ZYGOTE"])
    order = {"arguments": arguments, "environment": dict(os.environ), "folder": os.getcwd()}
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM, signal.SIGINT})
    socket.send_fds(zygote, [b" "], [0, 1, 2])
    zygote.sendall(json.dumps(order).encode() + b"\n")
    answers = zygote.makefile()
    pid = int(answers.readline())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda number, _: os.kill(pid, number))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM, signal.SIGINT})
    code = int(answers.readline() or "70")
    if code < 0:
        signal.signal(-code, signal.SIG_DFL) if -code not in (signal.SIGKILL, signal.SIGSTOP) else None
        os.kill(os.getpid(), -code)
    return code


if __name__ == "__main__":
    if sys.argv[1] == "serve":
        serve(sys.argv[2])
    else:
        sys.exit(ask(sys.argv[1:]))
