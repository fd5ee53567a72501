# %% a decorator that counts
import functools
def counted(fn):
    @functools.wraps(fn)
    def inner(*args):
        inner.calls += 1
        return fn(*args)
    inner.calls = 0
    return inner
@counted
def step(x):
    return x + 1
def work():
    return step(1), step(2), step.calls
#= (2, 3, 2)

# %% a decorator with arguments, retrying
import functools
def retry(times, on=(ValueError,)):
    def wrap(fn):
        @functools.wraps(fn)
        def inner(*args):
            for left in reversed(range(times)):
                try:
                    return fn(*args, left)
                except on:
                    if not left:
                        raise
        return inner
    return wrap
@retry(3)
def flaky(left):
    if left > 1:
        raise ValueError
    return f"{left} left"
def work():
    return flaky()
#= "1 left"

# %% a decorator of a class
def with_repr(cls):
    cls.__repr__ = lambda self: f"{cls.__name__}({', '.join(f'{k}={v}' for k, v in vars(self).items())})"
    return cls
@with_repr
class Point:
    def __init__(self, x):
        self.x = x
def work():
    return repr(Point(1))
#= "Point(x=1)"

# %% a descriptor
class Positive:
    def __set_name__(self, owner, name):
        self.name = "_" + name
    def __get__(self, instance, owner=None):
        return getattr(instance, self.name)
    def __set__(self, instance, value):
        if value <= 0:
            raise ValueError("must be positive")
        setattr(instance, self.name, value)
class Settings:
    lr = Positive()
def work():
    settings = Settings()
    settings.lr = 0.5
    try:
        settings.lr = 0
    except ValueError as error:
        return settings.lr, str(error)
#= (0.5, "must be positive")

# %% a timer as a context manager
import time
class Timer:
    def __enter__(self):
        self.start = time.perf_counter()
        return self
    def __exit__(self, *exc):
        self.elapsed = time.perf_counter() - self.start
def work():
    with Timer() as timer:
        pass
    return timer.elapsed >= 0
#= True

# %% match
def kind(message):
    match message:
        case {"loss": float(loss)} if loss < 1:
            return "good"
        case [first, *rest]:
            return len(rest)
        case _:
            return None
def work():
    return kind({"loss": 0.5}), kind([1, 2, 3]), kind("x")
#= ("good", 2, None)

# %% the walrus, and a dict of lambdas
ops = {"double": lambda x: 2 * x, "square": lambda x: x * x}
def work():
    return [y for name in sorted(ops) if (y := ops[name](3)) > 5]
#= [6, 9]

# %% names that a class body, a comprehension and a default need
SIZE = 2
class Grid:
    cells = [SIZE * i for i in range(3)]
    def at(self, i, scale=SIZE):
        return self.cells[i] * scale
def work():
    return Grid().at(2)
#= 8

# %% a counter that lives in a global
count = 0
def bump():
    global count
    count += 1
    return count
def work():
    bump()
    return bump()
#= 2

# %% super, multiple inheritance and class methods
class A:
    def hello(self):
        return ["A"]
class B(A):
    def hello(self):
        return ["B", *super().hello()]
class C(A):
    def hello(self):
        return ["C", *super().hello()]
class D(B, C):
    @classmethod
    def make(cls):
        return cls()
def work():
    return D.make().hello()
#= ["B", "C", "A"]

# %% one function for each type
from functools import singledispatch, singledispatchmethod
@singledispatch
def to_list(x):
    return [x]
@to_list.register
def _(x: list):
    return x
class Show:
    @singledispatchmethod
    def show(self, x):
        return "?"
    @show.register
    def _(self, x: int):
        return "int"
def work():
    return to_list(1), to_list([2]), Show().show(3)
#= ([1], [2], "int")

# %% cached functions and properties
import functools
@functools.lru_cache(maxsize=None)
def fib(n):
    return n if n < 2 else fib(n - 1) + fib(n - 2)
class Stats:
    def __init__(self, values):
        self.values = values
    @functools.cached_property
    def mean(self):
        return sum(self.values) / len(self.values)
def work():
    return fib(30), Stats([1, 3]).mean
#= (832040, 2.0)

# %% partial methods
from functools import partialmethod
class Lamp:
    def set(self, on):
        return "on" if on else "off"
    turn_on = partialmethod(set, True)
def work():
    return Lamp().turn_on()
#= "on"

# %% the source of a function
import inspect
def documented(x):
    """Adds one."""
    return x + 1
def work():
    return inspect.getsource(documented).splitlines()[1].strip(), inspect.getdoc(documented)
#= ('"""Adds one."""', "Adds one.")

# %% exceptions of one's own, with a cause
class TrainingError(RuntimeError):
    def __init__(self, step, *, hint="look at the data"):
        super().__init__(f"step {step}: {hint}")
        self.step = step
def work():
    try:
        try:
            1 / 0
        except ZeroDivisionError as error:
            raise TrainingError(3) from error
    except TrainingError as error:
        return str(error), error.step, type(error.__cause__).__name__
#= ("step 3: look at the data", 3, "ZeroDivisionError")

# %% what a rank raises arrives with its type and its text
class Diverged(Exception): ...
def work():
    raise Diverged("loss is nan")
#= kernel: raises Diverged: loss is nan
#= rank: raises Diverged: loss is nan

# %% regular expressions, paths, dates and fractions as globals
import datetime
import re
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
WORD = re.compile(r"(?P<name>\w+)=(?P<value>\d+)")
OUT, DAY, PART, PRICE = Path("out"), datetime.date(2024, 2, 29), Fraction(1, 3), Decimal("0.10")
def work():
    return WORD.match("lr=3")["value"], str(OUT / "a"), DAY.isoformat(), str(PART * 2), str(PRICE + 1)
#= ("3", "out/a", "2024-02-29", "2/3", "1.10")

# %% weak references and a class that counts its instances
import gc
import weakref
class Tracked:
    alive = weakref.WeakSet()
    def __init__(self):
        Tracked.alive.add(self)
def work():
    thing = Tracked()
    before = len(Tracked.alive)
    del thing
    gc.collect()
    return before, len(Tracked.alive)
#= (1, 0)

# %% a deque, a counter, a default dict
from collections import Counter, OrderedDict, defaultdict, deque
window = deque([1, 2], maxlen=3)
groups = defaultdict(list)
def work():
    window.append(3)
    groups["a"].append(1)
    return list(window), dict(groups), Counter("aab").most_common(1), list(OrderedDict(b=1, a=2))
#= ([1, 2, 3], {"a": [1]}, [("a", 2)], ["b", "a"])

# %% a star import
from math import *
def work():
    return floor(pi), round(sin(0), 1)
#= (3, 0.0)

# %% a module under another name, and a name of a name
import numpy as np
import os.path as osp
linalg = np.linalg
def work():
    return osp.basename("a/b.txt"), float(linalg.norm([3, 4]))
#= ("b.txt", 5.0)

# %% a generator with send and a pipeline of generators
def average():
    total, n, mean = 0, 0, None
    while True:
        value = yield mean
        total, n = total + value, n + 1
        mean = total / n
def work():
    mean = average()
    next(mean)
    return [mean.send(x) for x in (1, 3)]
#= [1.0, 2.0]

# %% a metaclass that keeps one instance
class Singleton(type):
    instances = {}
    def __call__(cls, *args):
        if cls not in cls.instances:
            cls.instances[cls] = super().__call__(*args)
        return cls.instances[cls]
class Hub(metaclass=Singleton): ...
hub = Hub()
def work():
    return Hub() is hub
#= True

# %% a callable object with state
class Meter:
    __slots__ = ("total", "n")
    def __init__(self):
        self.total = self.n = 0
    def __call__(self, x):
        self.total += x
        self.n += 1
        return self.total / self.n
meter = Meter()
def work():
    meter(2)
    return meter(4)
#= 3.0

# %% a main guard
def main():
    return "ran"
if __name__ == "__main__":
    outcome = main()
def work():
    return outcome
#= "ran"

# %% assertions
def work():
    assert [], "an empty list"
#= kernel: raises AssertionError: an empty list
#= rank: raises AssertionError: an empty list
