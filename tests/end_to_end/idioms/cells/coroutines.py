# %% asyncio.run
import asyncio
async def fetch(n):
    await asyncio.sleep(0)
    return n
async def main():
    return await asyncio.gather(*(fetch(n) for n in range(3)))
def work():
    return asyncio.run(main())
#= kernel: raises RuntimeError: asyncio.run() cannot be called from a running event loop
#= rank: [0, 1, 2]

# %% a queue between coroutines
import asyncio
async def produce(queue):
    for n in range(3):
        await queue.put(n)
    await queue.put(None)
async def consume():
    queue, found = asyncio.Queue(), []
    task = asyncio.create_task(produce(queue))
    while (n := await queue.get()) is not None:
        found.append(n)
    await task
    return found
def work():
    return asyncio.run(consume())
#= kernel: raises RuntimeError
#= rank: [0, 1, 2]

# %% a time-out
import asyncio
async def slow():
    try:
        await asyncio.wait_for(asyncio.sleep(60), 0.01)
    except asyncio.TimeoutError:
        return "too slow"
def work():
    return asyncio.run(slow())
#= kernel: raises RuntimeError
#= rank: "too slow"

# %% a thread, waited for by a coroutine
import asyncio
async def in_thread():
    return await asyncio.to_thread(sum, [1, 2])
def work():
    return asyncio.run(in_thread())
#= kernel: raises RuntimeError
#= rank: 3

# %% an asynchronous generator and context manager
import asyncio
import contextlib
@contextlib.asynccontextmanager
async def opened():
    yield 5
async def numbers(n):
    for i in range(n):
        yield i
async def both():
    async with opened() as value:
        return [value + i async for i in numbers(2)]
def work():
    return asyncio.run(both())
#= kernel: raises RuntimeError
#= rank: [5, 6]

# %% a coroutine on a loop of one's own, in a thread
import asyncio
import threading
def work():
    found = []
    thread = threading.Thread(target=lambda: found.append(asyncio.run(asyncio.sleep(0, "done"))))
    thread.start()
    thread.join()
    return found
#= ["done"]

# %% a context variable
import contextvars
step = contextvars.ContextVar("step", default=0)
def work():
    token = step.set(4)
    value = step.get()
    step.reset(token)
    return value, step.get()
#= (4, 0)
