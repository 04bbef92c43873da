"""One process under TensorFlow for all exports that torch's tests make.

Each starts a process of its own, which imports TensorFlow and Keras for
seconds. Here a process that has imported both forks for each.
"""

import atexit
import functools
import json
import os
import socket
import subprocess
import sys
import traceback
import types


class Export:
    """In the place of `subprocess.Popen`, as `export._child` calls it."""

    def __init__(self, command, env, stdout, stderr, encoding, errors):
        module = command.index("-m") + 1
        job = {"arguments": command[module + 1 :], "environment": env}
        read, write = os.pipe()
        files = [write, stderr.fileno()]
        socket.send_fds(_server(), [json.dumps(job).encode()], files)
        os.close(write)
        self.stdout = open(read, encoding=encoding, errors=errors)

    def __enter__(self):
        return self

    def __exit__(self, *error):
        self.stdout.close()
        self.returncode = int(_server().recv(64))


# In the place of the module `subprocess`.
process = types.SimpleNamespace(Popen=Export, PIPE=subprocess.PIPE)


@functools.cache
def _server():
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    path = os.pathsep.join(map(str, sys.path))
    child = subprocess.Popen(
        [sys.executable, __file__, str(theirs.fileno())],
        env={**os.environ, "KERAS_BACKEND": "tensorflow", "PYTHONPATH": path},
        pass_fds=[theirs.fileno()],
    )
    theirs.close()

    def end():
        ours.close()
        child.wait()

    atexit.register(end)
    return ours


def serve(connection):
    """Until the tests end, and with them the other end."""
    while True:
        job, files, *_ = socket.recv_fds(connection, 2**20, 2)
        if not job:
            return
        child = os.fork()
        if child == 0:
            run(json.loads(job), files)
        for file in files:
            os.close(file)
        _, status = os.waitpid(child, 0)
        connection.send(str(os.waitstatus_to_exitcode(status)).encode())


def run(job, files):
    """One export, in the fork; never returns."""
    for file, number in zip(files, (1, 2), strict=True):
        os.dup2(file, number)
        os.close(file)
    os.environ.update(job["environment"])
    sys.path[:] = job["environment"]["PYTHONPATH"].split(os.pathsep)
    sys.argv[1:] = job["arguments"]
    status = 0
    try:
        _convert.main()
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    from keras_linattn.export import _convert

    serve(socket.socket(fileno=int(sys.argv[1])))
