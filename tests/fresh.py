"""Run Python code in processes as fresh as new ones, by fork from one that has imported torch, which takes seconds.

Each line of standard input is a request: ``{"code", "arguments", "environment", "folder", "output", "errors"}``; a
variable whose value is null is removed. The answer is the exit code (-9: killed). No parallel loop runs here,
so that a child starts with no threads.
"""

import json
import os
import sys
import traceback

import numpy  # noqa: F401
import torch._dynamo  # noqa: F401 (every optimizer imports it)

import ssdd_ext  # noqa: F401


def become(request):
    """Run the code in this new process."""
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    for number, name in ((1, "output"), (2, "errors")):
        os.dup2(os.open(request[name], os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
    for name, value in request["environment"].items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    os.chdir(request["folder"])
    sys.argv = ["-c", *request["arguments"]]
    code = 1
    try:
        exec(compile(request["code"], "<test>", "exec"), {"__name__": "__main__"})
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


if __name__ == "__main__":
    for line in sys.stdin:
        pid = os.fork()
        if pid == 0:
            become(json.loads(line))
        print(json.dumps(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])), flush=True)
