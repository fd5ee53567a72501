# %% a loop
import torch
import torch.nn.functional as F
def train(steps=50, lr=0.5):
    torch.manual_seed(0)
    model = torch.nn.Linear(1, 1)
    opt = torch.optim.SGD(model.parameters(), lr=lr)
    x = torch.linspace(-1, 1, 16).unsqueeze(1)
    for _ in range(steps):
        opt.zero_grad()
        loss = F.mse_loss(model(x), 3 * x)
        loss.backward()
        opt.step()
    return round(model.weight.item(), 2)
def work():
    return train()
#= 3.0

# %% an optimizer made in a cell, for a model made in a cell
import torch
model = torch.nn.Linear(1, 1, bias=False)
model.weight.data.fill_(1.0)
opt = torch.optim.SGD(model.parameters(), lr=0.5)
def work():
    model(torch.ones(1, 1)).sum().backward()
    opt.step()
    return model.weight.item()
#= 0.5

# %% mixed precision on the CPU
import torch
def work():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        return str((torch.ones(2, 2) @ torch.ones(2, 2)).dtype)
#= "torch.bfloat16"

# %% a scaler for gradients
import warnings
import torch
def work():
    model = torch.nn.Linear(1, 1)
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    scaler.scale(model(torch.ones(1, 1)).sum()).backward()
    scaler.unscale_(opt)
    norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    scaler.step(opt)
    scaler.update()
    return round(norm.item(), 3), scaler.get_scale()
#= (1.414, 4.0)

# %% a schedule by a lambda
import torch
opt = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
schedule = torch.optim.lr_scheduler.LambdaLR(opt, lambda epoch: 0.5 ** epoch)
def work():
    opt.step()
    schedule.step()
    return schedule.get_last_lr()
#= [0.5]

# %% a schedule with warm-up
import math
import torch
def cosine(step, warmup=2, total=10):
    if step < warmup:
        return step / warmup
    return 0.5 * (1 + math.cos(math.pi * (step - warmup) / (total - warmup)))
def work():
    return [round(cosine(step), 3) for step in (0, 1, 2, 6, 10)]
#= [0.0, 0.5, 1.0, 0.5, 0.0]

# %% gradients added up over batches
import torch
def work():
    weight = torch.ones(1, requires_grad=True)
    for i in range(4):
        (weight * i / 4).sum().backward()
    return weight.grad.item()
#= 1.5

# %% stopping early
class EarlyStopping:
    def __init__(self, patience):
        self.patience, self.best, self.bad = patience, float("inf"), 0
    def __call__(self, loss):
        self.best, self.bad = (loss, 0) if loss < self.best else (self.best, self.bad + 1)
        return self.bad >= self.patience
def work():
    stop = EarlyStopping(2)
    return next(i for i, loss in enumerate([3, 2, 2.5, 2.6, 1]) if stop(loss))
#= 3

# %% a profiler
import torch
from torch.profiler import ProfilerActivity, profile, record_function
def work():
    with profile(activities=[ProfilerActivity.CPU]) as prof, record_function("mine"):
        torch.ones(8) @ torch.ones(8)
    return any(event.key == "mine" for event in prof.key_averages())
#= True

# %% cProfile
import cProfile
import io
import pstats
def busy():
    return sum(range(1000))
def work():
    profiler = cProfile.Profile()
    profiler.runcall(busy)
    text = io.StringIO()
    pstats.Stats(profiler, stream=text).print_stats("busy")
    return "busy" in text.getvalue()
#= True

# %% a bar of progress
from tqdm.auto import tqdm
def work():
    return sum(i for i in tqdm(range(5), desc="train", leave=False))
#= 10

# %% all_reduce, a rank's own number in, the sum out
import torch
import torch.distributed as dist
def work():
    dist.init_process_group("gloo")
    x = torch.tensor([dist.get_rank() + 1.0])
    dist.all_reduce(x, op=dist.ReduceOp.SUM)
    dist.destroy_process_group()
    return x.item()
#= kernel: raises ValueError
#= rank: 3.0

# %% a process group for as long as a `with` lasts
import contextlib
import torch.distributed as dist
@contextlib.contextmanager
def process_group(backend="gloo"):
    dist.init_process_group(backend)
    try:
        yield dist.group.WORLD
    finally:
        dist.destroy_process_group()
def work():
    with process_group():
        dist.barrier()
        size = dist.get_world_size()
    return size, dist.is_initialized()
#= kernel: raises ValueError
#= rank: (2, False)

# %% DistributedDataParallel
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel as DDP
def work():
    dist.init_process_group("gloo")
    rank = dist.get_rank()
    model = DDP(torch.nn.Linear(1, 1, bias=False))
    model(torch.full((1, 1), float(rank))).sum().backward()
    grad = model.module.weight.grad.item()
    with model.no_sync():
        model(torch.ones(1, 1)).sum().backward()
    dist.destroy_process_group()
    return grad, round(model.module.weight.grad.item(), 2)
#= kernel: raises ValueError
#= rank: (0.5, 1.5)

# %% objects of every rank, gathered
import torch.distributed as dist
class Note:
    def __init__(self, text):
        self.text = text
def work():
    dist.init_process_group("gloo")
    notes = [None] * dist.get_world_size()
    dist.all_gather_object(notes, Note(f"from {dist.get_rank()}"))
    dist.destroy_process_group()
    return [note.text for note in notes]
#= kernel: raises ValueError
#= rank: ["from 0", "from 1"]

# %% a config that rank 0 sends to the others
import torch.distributed as dist
def work():
    dist.init_process_group("gloo")
    box = [{"lr": 0.1}] if dist.get_rank() == 0 else [None]
    dist.broadcast_object_list(box, src=0)
    dist.destroy_process_group()
    return box[0]
#= kernel: raises ValueError
#= rank: {"lr": 0.1}

# %% only rank 0 does it
import functools
import os
def rank_zero_only(fn):
    @functools.wraps(fn)
    def inner(*args, **kwargs):
        if int(os.environ.get("RANK", 0)) == 0:
            return fn(*args, **kwargs)
    return inner
@rank_zero_only
def save(what):
    return "saved " + what
def work():
    return save("it")
#= kernel: "saved it"
#= rank: ["saved it", None][rank]

# %% the main rank saves, the others wait, all load
import os
import torch
import torch.distributed as dist
def work():
    dist.init_process_group("gloo")
    path = f"shared-{os.environ['MASTER_PORT']}.pt"
    if dist.get_rank() == 0:
        torch.save({"step": torch.tensor(5)}, path)
    dist.barrier()
    step = torch.load(path, weights_only=True)["step"].item()
    dist.destroy_process_group()
    return step
#= kernel: raises ValueError
#= rank: 5

# %% a message from rank to rank
import torch
import torch.distributed as dist
def work():
    dist.init_process_group("gloo")
    x = torch.zeros(1)
    if dist.get_rank() == 0:
        dist.send(torch.tensor([7.0]), dst=1)
    else:
        dist.recv(x, src=0)
    dist.destroy_process_group()
    return x.item()
#= kernel: raises ValueError
#= rank: [0.0, 7.0][rank]

# %% a group of some ranks
import torch
import torch.distributed as dist
def work():
    dist.init_process_group("gloo")
    group = dist.new_group([1])
    x = torch.ones(1)
    if dist.get_rank() == 1:
        dist.all_reduce(x, group=group)
    dist.barrier()
    dist.destroy_process_group()
    return x.item()
#= kernel: raises ValueError
#= rank: 1.0

# %% a mesh of devices
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
def work():
    mesh = init_device_mesh("cpu", (2,), mesh_dim_names=("dp",))
    place = mesh.get_local_rank("dp")
    dist.destroy_process_group()
    return place
#= kernel: —
#= rank: rank

# %% where this rank computes
import os
import torch
def work():
    local_rank = int(os.environ["LOCAL_RANK"])
    device = torch.device(f"cuda:{local_rank}" if torch.cuda.is_available() else "cpu")
    return local_rank, device.type
#= kernel: raises KeyError: 'LOCAL_RANK'
#= rank: (rank, "cpu")
