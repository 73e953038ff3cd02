"""Forks of the test process, which need not import torch again."""

import functools
import gc
import os
import socket
import sys
import traceback


class Forked:
    """A fork of this process that runs `work`: as killable as a process of its own, without its imports.

    Its returncode is that of `subprocess.Popen`: an exit's code, 1 after an exception, or minus the signal
    that killed it.

    Args:
        work: a function without arguments.
        output: file that takes what is printed.
    """

    def __init__(self, work, output=None):
        self.output = output
        self.returncode = None
        sys.stdout.flush()
        self.pid = os.fork()
        if not self.pid:
            # What tests before have left, such as process groups, would look for threads that are not here.
            gc.freeze()
            code = 1
            try:
                if output is not None:
                    sys.stdout = sys.stderr = output.open("w", buffering=1)
                    for stream in (1, 2):
                        os.dup2(sys.stdout.fileno(), stream)
                work()
                code = 0
            except SystemExit as error:
                code = error.code or 0
                if isinstance(code, str):
                    print(code)
                    code = 1
            except BaseException:
                traceback.print_exc()
            finally:
                os._exit(code)

    def poll(self, options=os.WNOHANG):
        if self.returncode is None:
            ended, status = os.waitpid(self.pid, options)
            self.returncode = os.waitstatus_to_exitcode(status) if ended else None
        return self.returncode

    def wait(self):
        return self.poll(0)

    def communicate(self):
        """Wait; return what was printed."""
        self.wait()
        return self.output.read_text()

    def send_signal(self, number):
        os.kill(self.pid, number)


def fork_pair(work, outputs=(None, None)):
    """Run `work` in two forks, as ranks 0 and 1."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    meeting = {"WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}

    def as_rank(rank):
        os.environ.update(meeting, RANK=str(rank))
        work()

    return [Forked(functools.partial(as_rank, rank), outputs[rank]) for rank in (0, 1)]


def finish_pair(work):
    """Run `work` as ranks 0 and 1, which must end well."""
    assert [process.wait() for process in fork_pair(work)] == [0, 0]
