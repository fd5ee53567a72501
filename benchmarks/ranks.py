"""What the ranks run.

`kernel` executes this file in its ``__main__``, as a cell would be, so all of it is pickled by
value.
"""

import datetime
import os
import signal
import time


def mark(folder, label):
    """Writes the current time to a file of this rank's own.

    A file is the only output of a rank that every launcher keeps.
    """
    now = time.time()
    with open(os.path.join(folder, f"mark-{label}-{os.getpid()}"), "w") as file:
        file.write(repr(now))


def first_line(folder):
    """Notes the time of its first line, and returns."""
    mark(folder, "first")
    return os.getpid()


def crash_once(folder, how):
    """Rank 0 crashes in the first attempt, 0.3 s after it began, while the other rank sleeps."""
    attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
    mark(folder, f"attempt_{attempt}")
    if attempt != "0":
        return
    if os.environ["RANK"] != "0":
        time.sleep(60)
    time.sleep(0.3)
    mark(folder, "crash")
    if how == "SIGKILL":
        os.kill(os.getpid(), signal.SIGKILL)
    raise RuntimeError("the crash that the benchmark asked for")


def raise_beside_barrier(folder):
    """Rank 0 raises while the others wait for it in a gloo barrier."""
    import torch.distributed as dist

    dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=60))
    if os.environ["RANK"] == "0":
        time.sleep(0.3)
        mark(folder, "raised")
        raise RuntimeError("the error that the benchmark asked for")
    dist.barrier()


def big_tensor(folder, megabytes):
    """Returns a tensor whose every page is in memory, and notes the time before."""
    import torch

    tensor = torch.ones(megabytes * 2**20 // 4)
    mark(folder, "returned")
    return tensor


def many_lines(folder, count):
    """Prints lines as long as those of a training."""
    for step in range(count):
        print(f"rank {os.environ['RANK']} step {step:6d} loss 0.123456 lr 0.000100 tokens/s 12345")
