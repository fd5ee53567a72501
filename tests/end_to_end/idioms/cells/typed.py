# %% a decorator that keeps its function's parameters
from functools import wraps
from typing import Callable, TypeVar
from typing_extensions import ParamSpec

P = ParamSpec("P")
R = TypeVar("R")

def logged(fn: Callable[P, R]) -> Callable[P, R]:
    @wraps(fn)
    def inner(*args: P.args, **kwargs: P.kwargs) -> R:
        return fn(*args, **kwargs)
    return inner

@logged
def add(a: int, b: int) -> int:
    return a + b

def work():
    return add(1, b=2), add.__name__
#= (3, "add")

# %% typing's own ParamSpec
from typing import Callable, ParamSpec
Q = ParamSpec("Q")
def call(fn: Callable[Q, int], *args: Q.args, **kwargs: Q.kwargs) -> int:
    return fn(*args, **kwargs)
def work():
    return call(lambda x: x + 1, 1), Q.__name__
#= (2, "Q")

# %% a variable number of type arguments
from typing import Generic
from typing_extensions import TypeVarTuple, Unpack
Shape = TypeVarTuple("Shape")
class Array(Generic[Unpack[Shape]]):
    def __init__(self, *shape):
        self.shape = shape
def work():
    return Array(2, 3).shape, Shape.__name__
#= ((2, 3), "Shape")

# %% bounded type variables
import torch
from typing import TypeVar
M = TypeVar("M", bound=torch.nn.Module)
def frozen(module: M) -> M:
    return module.requires_grad_(False)
def work():
    return frozen(torch.nn.Linear(1, 1)).weight.requires_grad, M.__bound__ is torch.nn.Module
#= (False, True)

# %% generic classes
from typing import Generic, TypeVar
T = TypeVar("T")
class Buffer(Generic[T]):
    def __init__(self) -> None:
        self.items: list[T] = []
    def push(self, item: T) -> "Buffer[T]":
        self.items.append(item)
        return self
def work():
    return Buffer[int]().push(1).push(2).items
#= [1, 2]

# %% a protocol that is checked at run time
from typing import Protocol, runtime_checkable
@runtime_checkable
class Steppable(Protocol):
    def step(self) -> None: ...
class Scheduler:
    def step(self) -> None: ...
def work():
    return isinstance(Scheduler(), Steppable), isinstance(3, Steppable)
#= (True, False)

# %% typed dicts, with parts that may be missing
from typing_extensions import NotRequired, TypedDict
class Batch(TypedDict):
    input_ids: list[int]
    labels: NotRequired[list[int]]
def work():
    return Batch(input_ids=[1]), sorted(Batch.__required_keys__)
#= ({"input_ids": [1]}, ["input_ids"])

# %% literals and annotations are read at run time
from typing import Annotated, Literal, get_args, get_type_hints
Mode = Literal["train", "eval"]
def fit(mode: Mode, lr: Annotated[float, "learning rate"] = 0.1): ...
def work():
    return get_args(Mode), get_type_hints(fit)["lr"] is float
#= (("train", "eval"), True)

# %% overloads
from typing import overload
@overload
def load(path: str) -> str: ...
@overload
def load(path: int) -> int: ...
def load(path):
    return path
def work():
    return load("a"), load(1)
#= ("a", 1)

# %% a named tuple with defaults and a method
from typing import NamedTuple
class Metrics(NamedTuple):
    loss: float
    acc: float = 0.0
    def better(self, other):
        return self.loss < other.loss
def work():
    return tuple(Metrics(0.5)), Metrics(0.1).better(Metrics(0.2))
#= ((0.5, 0.0), True)

# %% enums: flags, integers, strings, members with methods
from enum import Enum, Flag, IntEnum, auto
class Stage(str, Enum):
    TRAIN = "train"
    TEST = "test"
    def shuffles(self):
        return self is Stage.TRAIN
class Level(IntEnum):
    LOW = auto()
    HIGH = auto()
class Save(Flag):
    NONE = 0
    BEST = auto()
    LAST = auto()
mode = Save.BEST | Save.LAST
def work():
    return Stage("train").shuffles(), Stage.TEST == "test", max(Level).name, Save.LAST in mode
#= (True, True, "HIGH", True)

# %% an alias of a type
from typing import Optional, Union
Number = Union[int, float]
Params = dict[str, Optional[Number]]
def work(params: Params = {"lr": 0.1}):
    return params["lr"], Params.__args__[0] is str
#= (0.1, True)

# %% new types
from typing import NewType
Rank = NewType("Rank", int)
def work():
    return Rank(3), Rank.__supertype__ is int
#= (3, True)

# %% a sentinel that is a class's only instance
class _Missing:
    def __repr__(self):
        return "MISSING"
    def __reduce__(self):
        return "MISSING"
MISSING = _Missing()
def get(table, key, default=MISSING):
    found = table.get(key, default)
    return "nothing" if found is MISSING else found
def work():
    return get({}, "lr"), get({"lr": 1}, "lr")
#= ("nothing", 1)

# %% a class that says what its subclasses are
class Registry:
    known = {}
    def __init_subclass__(cls, name="", **kwargs):
        super().__init_subclass__(**kwargs)
        Registry.known[name or cls.__name__.lower()] = cls
class ResNet(Registry): ...
class ViT(Registry, name="vit"): ...
def work():
    return sorted(Registry.known), Registry.known["vit"] is ViT
#= (["resnet", "vit"], True)
