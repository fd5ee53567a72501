# %% a network of one's own
import torch
from torch import nn
class Net(nn.Module):
    def __init__(self, width=4):
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.register_buffer("steps", torch.zeros((), dtype=torch.long))
    def forward(self, x):
        self.steps += 1
        for layer in self.layers:
            x = torch.relu(layer(x))
        return x
net = Net()
def work():
    net(torch.ones(1, 4))
    return int(net.steps), len(net.state_dict()), tuple(net(torch.ones(2, 4)).shape)
#= (1, 5, (2, 4))

# %% a hook that a cell put on a layer
import torch
seen = []
layer = torch.nn.Linear(2, 3)
handle = layer.register_forward_hook(lambda module, args, out: seen.append(tuple(out.shape)))
def work():
    layer(torch.ones(1, 2))
    return seen[-1]
#= (1, 3)

# %% weights, saved and loaded
import os
import torch
model = torch.nn.Linear(2, 1)
def work():
    torch.save(model.state_dict(), f"weights-{os.getpid()}.pt")
    other = torch.nn.Linear(2, 1)
    other.load_state_dict(torch.load(f"weights-{os.getpid()}.pt", weights_only=True))
    return torch.equal(model.weight, other.weight)
#= True

# %% a whole model, saved
import io
import torch
class Scale(torch.nn.Module):
    def forward(self, x):
        return 2 * x
def work():
    file = io.BytesIO()
    torch.save(Scale(), file)
    file.seek(0)
    return torch.load(file, weights_only=False)(torch.tensor(3)).item()
#= 6

# %% a moving average of weights
import copy
import torch
class EMA:
    def __init__(self, model, decay):
        self.model, self.decay = copy.deepcopy(model), decay
    @torch.no_grad()
    def update(self, model):
        for mine, theirs in zip(self.model.parameters(), model.parameters()):
            mine.lerp_(theirs, 1 - self.decay)
def work():
    model = torch.nn.Linear(1, 1, bias=False)
    model.weight.data.fill_(1.0)
    ema = EMA(model, 0.5)
    model.weight.data.fill_(3.0)
    ema.update(model)
    return ema.model.weight.item()
#= 2.0

# %% torch's own averaged model
import torch
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
averaged = AveragedModel(torch.nn.Linear(1, 1), multi_avg_fn=get_ema_multi_avg_fn(0.9))
def work():
    averaged.update_parameters(torch.nn.Linear(1, 1))
    return int(averaged.n_averaged)
#= 1

# %% weight normalisation by a parametrization
import torch
layer = torch.nn.utils.parametrizations.weight_norm(torch.nn.Linear(3, 2))
def work():
    return tuple(layer(torch.ones(1, 3)).shape), torch.nn.utils.parametrize.is_parametrized(layer)
#= ((1, 2), True)

# %% a compiled function
import torch
@torch.compile(backend="eager")
def twice(x):
    return x + x
def work():
    return twice(torch.ones(2)).tolist()
#= [2.0, 2.0]

# %% a compiled function that ran in the notebook before
import torch
@torch.compile(backend="eager", fullgraph=True)
def thrice(x):
    return 3 * x
thrice(torch.ones(1))
def work():
    return thrice(torch.ones(2)).tolist()
#= [3.0, 3.0]

# %% a compiled model
import torch
model = torch.compile(torch.nn.Linear(2, 1), backend="eager")
def work():
    return tuple(model(torch.ones(3, 2)).shape)
#= (3, 1)

# %% TorchScript, which reads the source
import warnings
import torch
def gate(x: torch.Tensor) -> torch.Tensor:
    if bool(x.sum() > 0):
        return x
    return -x
def work():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return torch.jit.script(gate)(torch.tensor([-1.0])).tolist()
#= [1.0]

# %% a traced model
import warnings
import torch
def work():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return tuple(torch.jit.trace(torch.nn.Linear(2, 1), torch.ones(1, 2))(torch.ones(4, 2)).shape)
#= (4, 1)

# %% a graph of a module
import torch
from torch.fx import symbolic_trace
class AddOne(torch.nn.Module):
    def forward(self, x):
        return x + 1
traced = symbolic_trace(AddOne())
def work():
    return traced(torch.tensor(1)).item(), [node.op for node in symbolic_trace(AddOne()).graph.nodes]
#= (2, ["placeholder", "call_function", "output"])

# %% functional gradients
import torch
from torch.func import functional_call, grad, vmap
def loss(x):
    return (x ** 2).sum()
def work():
    return grad(loss)(torch.tensor([3.0])).tolist(), vmap(grad(loss))(torch.ones(2, 1)).tolist()
#= ([6.0], [[2.0], [2.0]])

# %% a gradient of one's own
import torch
class StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        return x.round()
    @staticmethod
    def backward(ctx, grad):
        return grad
round_st = StraightThrough.apply
def work():
    x = torch.tensor([0.6], requires_grad=True)
    round_st(x).backward()
    return x.grad.tolist()
#= [1.0]

# %% activations computed again
import torch
from torch.utils.checkpoint import checkpoint
block = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Tanh())
def work():
    x = torch.ones(1, 2, requires_grad=True)
    checkpoint(block, x, use_reentrant=False).sum().backward()
    return x.grad is not None
#= True

# %% lazy layers, and weights that a function sets
import torch
from torch import nn
def init_weights(module):
    if isinstance(module, nn.Linear):
        nn.init.ones_(module.weight)
def work():
    model = nn.Sequential(nn.LazyLinear(1, bias=False))
    model(torch.ones(1, 3))
    model.apply(init_weights)
    return model(torch.ones(1, 3)).item()
#= 3.0

# %% an operator of one's own
import torch
@torch.library.custom_op("idioms::double", mutates_args=())
def double(x: torch.Tensor) -> torch.Tensor:
    return x * 2
def work():
    return torch.ones(1).mul(2).item()
#= 2.0

# %% a subclass of Tensor
import torch
class Named(torch.Tensor):
    pass
def work():
    x = torch.ones(2).as_subclass(Named)
    return type(x + 1).__name__, (x + 1).tolist()
#= ("Named", [2.0, 2.0])

# %% a layer that a partial makes
from functools import partial
import torch
Conv = partial(torch.nn.Conv2d, kernel_size=3, padding=1, bias=False)
def work():
    return tuple(Conv(1, 2)(torch.ones(1, 1, 4, 4)).shape)
#= (1, 2, 4, 4)

# %% tensors that share memory still do
import torch
base = torch.zeros(4)
view = base[2:]
def work():
    view.fill_(1)
    return base.tolist()
#= [0.0, 0.0, 1.0, 1.0]

# %% tied weights stay tied
import torch
from torch import nn
class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(4, 2)
        self.head = nn.Linear(2, 4, bias=False)
        self.head.weight = self.embed.weight
tied = Tied()
def work():
    return tied.head.weight is tied.embed.weight
#= True

# %% a model of scikit-learn
from sklearn.linear_model import LogisticRegression
clf = LogisticRegression().fit([[0.0], [1.0], [2.0], [3.0]], [0, 0, 1, 1])
def work():
    return clf.predict([[0.2], [2.9]]).tolist()
#= [0, 1]
