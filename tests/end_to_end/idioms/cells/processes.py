# %% a pool of processes
from multiprocessing import Pool
def square(x):
    return x * x
def work():
    with Pool(2) as pool:
        return pool.map(square, range(4))
#= [0, 1, 4, 9]

# %% a pool that is spawned, with a cell's function
import multiprocessing as mp
def cube(x):
    return x ** 3
def work():
    with mp.get_context("spawn").Pool(1) as pool:
        return pool.map(cube, [2, 3])
#= kernel: —
#= rank: [8, 27]
#= ranks: 1

# %% a process and a queue
import multiprocessing as mp
def child(queue, n):
    queue.put(n * 2)
def work():
    queue = mp.Queue()
    process = mp.Process(target=child, args=(queue, 4))
    process.start()
    found = queue.get()
    process.join()
    return found, process.exitcode
#= (8, 0)

# %% threads
from concurrent.futures import ThreadPoolExecutor, as_completed
def work():
    with ThreadPoolExecutor(2) as pool:
        return sorted(future.result() for future in as_completed([pool.submit(pow, 2, n) for n in range(3)]))
#= [1, 2, 4]

# %% processes, by concurrent.futures
from concurrent.futures import ProcessPoolExecutor
def half(x):
    return x / 2
def work():
    with ProcessPoolExecutor(1) as pool:
        return list(pool.map(half, [2, 4]))
#= [1.0, 2.0]

# %% joblib
from joblib import Parallel, delayed
def work():
    return Parallel(n_jobs=2, prefer="threads")(delayed(abs)(n) for n in (-1, -2))
#= [1, 2]

# %% a program
import subprocess
import sys
def work():
    done = subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True, check=True)
    return done.stdout.strip()
#= "42"

# %% a fork
import os
def work():
    read, write = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(write, b"child")
        os._exit(0)
    os.waitpid(pid, 0)
    return os.read(read, 5).decode()
#= kernel: —
#= rank: "child"

# %% memory that processes share
from multiprocessing import shared_memory
def work():
    block = shared_memory.SharedMemory(create=True, size=8)
    try:
        block.buf[0] = 7
        again = shared_memory.SharedMemory(name=block.name)
        found = again.buf[0]
        again.close()
        return found
    finally:
        block.close()
        block.unlink()
#= 7

# %% a manager's dict
import multiprocessing as mp
def work():
    with mp.Manager() as manager:
        table = manager.dict(a=1)
        table["b"] = 2
        return dict(table)
#= {"a": 1, "b": 2}

# %% a thread with a lock and an event
import threading
def work():
    lock, done, seen = threading.Lock(), threading.Event(), []
    def run():
        with lock:
            seen.append(threading.current_thread().name)
        done.set()
    threading.Thread(target=run, name="loader", daemon=True).start()
    return done.wait(60), seen
#= (True, ["loader"])

# %% a value of each thread's own
import threading
def work():
    local = threading.local()
    local.x = 1
    return hasattr(local, "x")
#= True

# %% signals that a library takes and gives back
import signal
def work():
    old = signal.signal(signal.SIGUSR1, lambda *args: None)
    signal.signal(signal.SIGUSR1, old)
    return signal.getsignal(signal.SIGUSR1) == old
#= True

# %% a signal of one's own: save before the queue takes the machine away
import os
import signal
def work():
    got = []
    old = signal.signal(signal.SIGUSR2, lambda number, frame: got.append(number))
    os.kill(os.getpid(), signal.SIGUSR2)
    signal.signal(signal.SIGUSR2, old or signal.SIG_DFL)
    return got == [signal.SIGUSR2]
#= True

# %% an alarm
import signal
import time
class Late(Exception): ...
def late(number, frame):
    raise Late
def work():
    old = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 0.01)
    try:
        time.sleep(60)
    except Late:
        return "woken"
    finally:
        signal.signal(signal.SIGALRM, old)
#= "woken"

# %% something to do at exit
import atexit
def work():
    goodbye = atexit.register(lambda: None)
    atexit.unregister(goodbye)
    return callable(goodbye)
#= True

# %% temporary files
import os
import tempfile
def work():
    with tempfile.TemporaryDirectory() as folder, tempfile.NamedTemporaryFile("w+", dir=folder) as file:
        file.write("x")
        file.flush()
        return os.path.getsize(file.name)
#= 1

# %% the umask and the directory of the notebook
import os
os.umask(0o027)
def work():
    mask = os.umask(0o027)
    os.umask(mask)
    return oct(mask)
#= "0o27"
#= then: os.umask(0o022)

# %% an import by name, inside
def work():
    import importlib
    return importlib.import_module("json").dumps([1])
#= "[1]"

# %% a module beside the notebook
from pathlib import Path
Path("helper_of_idioms.py").write_text("FACTOR = 3\ndef scale(x):\n    return FACTOR * x\n")
import helper_of_idioms
from helper_of_idioms import scale as scaled
def work():
    return scaled(2), helper_of_idioms.FACTOR
#= (6, 3)
