# %% seed everything, cuDNN's flags included
import random
import numpy as np
import torch

def seed_everything(seed):
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    torch.cuda.manual_seed_all(seed)
    torch.backends.cudnn.deterministic = True
    torch.backends.cudnn.benchmark = False

def work():
    seed_everything(0)
    drawn = round(random.random(), 4), round(float(np.random.rand()), 4), round(torch.rand(1).item(), 4)
    torch.backends.cudnn.deterministic = False
    return drawn
#= (0.8444, 0.5488, 0.4963)

# %% a seed of each rank's own
import os
import torch

def work():
    torch.manual_seed(100 + int(os.environ.get("RANK", 0)))
    return round(torch.rand(1).item(), 4)
#= kernel: 0.1117
#= rank: [0.1117, 0.198][rank]

# %% random numbers that nobody seeded differ from rank to rank
import torch

def work():
    import torch.distributed as dist
    dist.init_process_group("gloo")
    drawn = [None] * dist.get_world_size()
    dist.all_gather_object(drawn, torch.rand(4).tolist())
    dist.destroy_process_group()
    return len({tuple(one) for one in drawn}) == len(drawn)
#= kernel: raises ValueError
#= rank: True

# %% a numpy generator made in a cell
import numpy as np
rng = np.random.default_rng(7)
def work():
    return int(np.random.default_rng(7).integers(1000)), type(rng).__name__
#= (944, "Generator")

# %% a state of torch's generator, kept in a cell and set in the rank
import torch
with torch.random.fork_rng():
    torch.manual_seed(5)
    state = torch.get_rng_state()
    first = torch.rand(3).tolist()
def work():
    torch.set_rng_state(state)
    return torch.rand(3).tolist() == first
#= True

# %% numbers drawn inside fork_rng leave the others alone
import torch
def work():
    torch.manual_seed(1)
    with torch.random.fork_rng():
        torch.manual_seed(2)
        torch.rand(5)
    return round(torch.rand(1).item(), 4)
#= 0.7576

# %% a generator of one's own for a data loader
import torch
from torch.utils.data import DataLoader, TensorDataset

data = TensorDataset(torch.arange(6))
def work():
    loader = DataLoader(data, batch_size=3, shuffle=True, generator=torch.Generator().manual_seed(0))
    return sorted(int(n) for (batch,) in loader for n in batch)
#= [0, 1, 2, 3, 4, 5]

# %% workers of a data loader that are seeded
import random
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset

class Noise(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, index):
        return float(np.random.rand())

def seed_worker(worker_id):
    worker_seed = torch.initial_seed() % 2**32
    np.random.seed(worker_seed)
    random.seed(worker_seed)

def draw():
    g = torch.Generator()
    g.manual_seed(0)
    loader = DataLoader(Noise(), batch_size=2, num_workers=2, worker_init_fn=seed_worker, generator=g)
    return [batch.tolist() for batch in loader]

def work():
    return draw() == draw()
#= True

# %% random.Random as an object
import random
dice = random.Random(3)
def work():
    return random.Random(3).randint(1, 6), isinstance(dice, random.Random)
#= (2, True)

# %% numpy's legacy RandomState from a cell
import numpy as np
state = np.random.RandomState(0)
def work():
    return state.randint(100, size=3).tolist()
#= [44, 47, 64]
