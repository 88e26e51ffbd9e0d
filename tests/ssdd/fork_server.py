"""Start the program's processes by fork from one process that has imported it once, which takes seconds.

Each line of standard input is a request: ``{"size", "port", "arguments", "environment", "output"}``, and optionally
``file_size``, the largest file in bytes; ``clock``, the seconds that the wall clock is off by; ``die``, ``[rank, n]``:
this process is killed right before its n-th change of a file or folder; ``changes``, a file that gets the number of
these changes. The answers are two lines: the process ids, and, when all have ended, their exit codes (-9: killed).
Several processes get the variables that ``torchrun`` sets, and like ``torchrun`` this process holds their store. Unlike
``torchrun`` it ends none of them.
"""

import gc
import json
import os
import resource
import signal
import sys
import time
import traceback

import matplotlib.backends.backend_agg
import matplotlib.figure  # noqa: F401
import PIL.Image
import sklearn.datasets
import sklearn.linear_model  # noqa: F401
import torch._dynamo  # noqa: F401 (every optimizer imports it)
import torch.distributed
import torch.profiler

import ssdd.cli
import ssdd.cli.distill
import ssdd.cli.study
import ssdd.distillation
import ssdd.report
import ssdd.studies
from ssdd.config import with_settings

CHANGES = {"os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod"}
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT


def watch_changes(die_at, file):
    """Count the changes of files and folders from here on; end this process right before one of them."""
    counter = os.open(file, os.O_WRONLY | os.O_CREAT) if file else None
    done = 0

    def hook(event, arguments):
        nonlocal done
        if event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
            done += 1
            if done == die_at:
                os.kill(os.getpid(), signal.SIGKILL)
            if counter is not None:
                os.pwrite(counter, str(done).encode(), 0)

    sys.addaudithook(hook)


def become(request, rank):
    """Run the program in this new process."""
    output = os.open(request["output"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(output, 1)
    os.dup2(output, 2)
    os.environ.update(request["environment"])
    if limit := request.get("file_size"):  # as on a full disk: a longer file cannot be written
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    if offset := request.get("clock"):  # somebody has set the clock
        now = time.time
        time.time = lambda: now() + offset
    rank_to_die, die_at = request.get("die", (None, 0))
    counted = request.get("changes") if rank == 0 else None
    if rank == rank_to_die or counted:
        watch_changes(die_at if rank == rank_to_die else 0, counted)
    if request["size"] > 1:
        os.environ |= {
            "RANK": str(rank),
            "LOCAL_RANK": str(rank),
            "WORLD_SIZE": str(request["size"]),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(request["port"]),
            "TORCHELASTIC_USE_AGENT_STORE": "True",
        }
    sys.argv = ["ssdd", *request["arguments"]]
    code = 1
    try:
        ssdd.cli.main()
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def serve():
    PIL.Image.init()
    ssdd.cli.parsers(["distill"])
    with_settings(ssdd.preset("digits"), {"distill.lr": "0.1"})
    gc.collect()
    gc.freeze()  # what is imported is never collected, so that the children leave these pages alone
    for line in sys.stdin:
        request = json.loads(line)
        pids = []
        for rank in range(request["size"]):
            pids.append(os.fork())
            if pids[-1] == 0:
                become(request, rank)
        print(json.dumps(pids), flush=True)
        store = None
        if request["size"] > 1:  # after the forks, as it has a thread
            store = torch.distributed.TCPStore("127.0.0.1", request["port"], is_master=True, wait_for_workers=False)
        codes = [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in pids]
        del store
        print(json.dumps(codes), flush=True)


if __name__ == "__main__":
    serve()
