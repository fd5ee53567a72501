# %% a dataclass of dataclasses
from dataclasses import asdict, dataclass, field, replace
@dataclass
class Optim:
    lr: float = 1e-3
    betas: tuple = (0.9, 0.999)
@dataclass
class Config:
    name: str = "base"
    optim: Optim = field(default_factory=Optim)
    tags: list = field(default_factory=list)
cfg = replace(Config(), name="big", tags=["a"])
def work():
    return asdict(cfg)
#= {"name": "big", "optim": {"lr": 0.001, "betas": (0.9, 0.999)}, "tags": ["a"]}

# %% a dataclass that computes in __post_init__
from dataclasses import InitVar, dataclass, field
@dataclass(order=True, frozen=True, kw_only=True)
class Run:
    steps: int
    scale: InitVar[int] = 2
    total: int = field(init=False, default=0)
    def __post_init__(self, scale):
        object.__setattr__(self, "total", self.steps * scale)
def work():
    return Run(steps=3).total, Run(steps=1) < Run(steps=2)
#= (6, True)

# %% pydantic's models
from pydantic import BaseModel, Field, ValidationError, field_validator
class TrainConfig(BaseModel):
    lr: float = Field(gt=0)
    epochs: int = 3
    model_config = {"extra": "forbid"}
    @field_validator("epochs")
    @classmethod
    def some(cls, value):
        if value < 1:
            raise ValueError("at least one epoch")
        return value
config = TrainConfig(lr="0.1")
def work():
    try:
        TrainConfig(lr=1, epochs=0)
    except ValidationError as error:
        return config.model_dump(), error.error_count()
#= ({"lr": 0.1, "epochs": 3}, 1)

# %% pydantic's models in one another
from typing import Literal
from pydantic import BaseModel
class Data(BaseModel):
    path: str = "train.csv"
class Experiment(BaseModel):
    kind: Literal["a", "b"] = "a"
    data: Data = Data()
def work():
    return Experiment.model_validate({"data": {"path": "x"}}).data.path, Experiment().model_dump_json()
#= ("x", '{"kind":"a","data":{"path":"train.csv"}}')

# %% arguments as argparse gives them
import argparse
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float, default=0.1)
parser.add_argument("--amp", action="store_true")
args = parser.parse_args([])
def work():
    return args.lr, args.amp, parser.parse_args(["--amp"]).amp
#= (0.1, False, True)

# %% a namespace
from types import SimpleNamespace
hp = SimpleNamespace(lr=0.1, model=SimpleNamespace(width=8))
def work():
    hp.model.width *= 2
    return hp.model.width, vars(hp)["lr"]
#= (16, 0.1)

# %% a dict whose keys are attributes
class AttrDict(dict):
    def __getattr__(self, name):
        try:
            return self[name]
        except KeyError:
            raise AttributeError(name) from None
    def __setattr__(self, name, value):
        self[name] = value
conf = AttrDict(optim=AttrDict(lr=0.1), steps=5)
def work():
    conf.steps = 6
    return conf.optim.lr, conf.steps, hasattr(conf, "nothing")
#= (0.1, 6, False)

# %% a config that interpolates, omegaconf's way
class Node:
    def __init__(self, values, root=None):
        object.__setattr__(self, "_values", dict(values))
        object.__setattr__(self, "_root", root or self)
    def __getattr__(self, name):
        if name.startswith("__"):
            raise AttributeError(name)
        value = self._values[name]
        if isinstance(value, dict):
            return Node(value, self._root)
        if isinstance(value, str) and value.startswith("${"):
            found = self._root
            for part in value[2:-1].split("."):
                found = getattr(found, part)
            return found
        return value
tree = Node({"data": {"size": 4}, "model": {"input": "${data.size}"}})
def work():
    return tree.model.input
#= 4

# %% defaults below what is given
from collections import ChainMap
defaults = {"lr": 0.1, "wd": 0.0}
settings = ChainMap({"lr": 0.5}, defaults)
def work():
    return dict(settings)
#= {"lr": 0.5, "wd": 0.0}

# %% a config read from YAML
import yaml
text = """
model: {width: 8, layers: [1, 2]}
lr: 1.0e-3
"""
cfg = yaml.safe_load(text)
def work():
    return cfg["model"]["layers"], yaml.safe_load("a: 1"), cfg["lr"]
#= ([1, 2], {"a": 1}, 0.001)

# %% attrs
import attrs
@attrs.define
class Point:
    x: int = attrs.field(validator=attrs.validators.instance_of(int))
    y: int = 0
p = Point(1)
def work():
    p.y = 5
    return attrs.asdict(p), attrs.evolve(p, x=2) == Point(2, 5)
#= ({"x": 1, "y": 5}, True)

# %% a read-only table
from types import MappingProxyType
TABLE = MappingProxyType({"small": 1, "big": 2})
def work():
    return TABLE["big"]
#= 2

# %% settings from the environment
import os
os.environ["MY_LR"] = "0.25"
os.environ.pop("MY_OLD", None)
def work():
    return float(os.environ["MY_LR"]), os.environ.get("MY_OLD", "unset")
#= (0.25, "unset")

# %% builders, registered by a decorator
MODELS = {}
def register(name):
    def add(fn):
        MODELS[name] = fn
        return fn
    return add
@register("tiny")
def tiny(width=2):
    return ["tiny", width]
def work():
    return MODELS["tiny"](width=3)
#= ["tiny", 3]

# %% paths and files beside the notebook
from pathlib import Path
ROOT = Path.cwd()
(ROOT / "numbers.txt").write_text("1 2 3")
def work():
    return sum(map(int, Path("numbers.txt").read_text().split())), ROOT == Path.cwd()
#= (6, True)

# %% the command line of a script that isn't one
import sys
def work():
    return len(sys.argv), isinstance(sys.argv[0], str)
#= kernel: (3, True)
#= rank: (1, True)
