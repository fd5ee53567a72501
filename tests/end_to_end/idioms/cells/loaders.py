# %% a data set and its loader
import torch
from torch.utils.data import DataLoader, Dataset
class Squares(Dataset):
    def __init__(self, n):
        self.n = n
    def __len__(self):
        return self.n
    def __getitem__(self, i):
        return torch.tensor(i * i)
def work():
    return [batch.tolist() for batch in DataLoader(Squares(5), batch_size=2)]
#= [[0, 1], [4, 9], [16]]

# %% workers of a loader
import torch
from torch.utils.data import DataLoader, Dataset
class Doubles(Dataset):
    def __len__(self):
        return 4
    def __getitem__(self, i):
        return 2 * i
def work():
    loader = DataLoader(Doubles(), batch_size=2, num_workers=2, persistent_workers=True)
    return [[batch.tolist() for batch in loader] for _ in range(2)]
#= [[[0, 2], [4, 6]], [[0, 2], [4, 6]]]

# %% workers that are spawned
import torch
from torch.utils.data import DataLoader, Dataset
class Tens(Dataset):
    def __len__(self):
        return 2
    def __getitem__(self, i):
        return 10 * i
def work():
    return [int(n) for n in DataLoader(Tens(), num_workers=1, multiprocessing_context="spawn")]
#= kernel: —
#= rank: [0, 10]
#= ranks: 1

# %% an iterable data set, split among its workers
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info
class Stream(IterableDataset):
    def __iter__(self):
        info = get_worker_info()
        return iter(range(info.id, 6, info.num_workers))
def work():
    return sorted(int(n) for n in DataLoader(Stream(), num_workers=2, batch_size=None))
#= [0, 1, 2, 3, 4, 5]

# %% a part of the data for each rank
import torch.distributed as dist
from torch.utils.data import DataLoader, DistributedSampler
def work():
    dist.init_process_group("gloo")
    sampler = DistributedSampler(range(6), shuffle=False)
    sampler.set_epoch(1)
    seen = [int(n) for n in DataLoader(list(range(6)), sampler=sampler)]
    dist.destroy_process_group()
    return seen
#= kernel: raises ValueError
#= rank: [[0, 2, 4], [1, 3, 5]][rank]

# %% batches collated by a lambda
import torch
from torch.utils.data import DataLoader
rows = [{"text": "ab", "label": 0}, {"text": "c", "label": 1}]
collate = lambda batch: ([row["text"] for row in batch], torch.tensor([row["label"] for row in batch]))
def work():
    (texts, labels), = DataLoader(rows, batch_size=2, collate_fn=collate)
    return texts, labels.tolist()
#= (["ab", "c"], [0, 1])

# %% a split, a subset and their lengths
import torch
from torch.utils.data import Subset, TensorDataset, random_split
data = TensorDataset(torch.arange(10))
train, test = random_split(data, [0.8, 0.2], generator=torch.Generator().manual_seed(1))
def work():
    return len(train), len(test), len(Subset(data, [1, 2])), sorted(train.indices + test.indices) == list(range(10))
#= (8, 2, 2, True)

# %% a weighted sampler
import torch
from torch.utils.data import BatchSampler, WeightedRandomSampler
def work():
    sampler = WeightedRandomSampler([0, 0, 1], num_samples=4)
    return list(BatchSampler(sampler, batch_size=2, drop_last=True))
#= [[2, 2], [2, 2]]

# %% a table that maps its columns lazily
class Table:
    def __init__(self, columns, functions=()):
        self.columns, self.functions = columns, functions
    def map(self, fn):
        return Table(self.columns, (*self.functions, fn))
    def __len__(self):
        return len(next(iter(self.columns.values())))
    def __getitem__(self, i):
        row = {name: values[i] for name, values in self.columns.items()}
        for fn in self.functions:
            row |= fn(row)
        return row
words = Table({"text": ["a b", "c"]}).map(lambda row: {"n": len(row["text"].split())})
def work():
    return [words[i]["n"] for i in range(len(words))]
#= [2, 1]

# %% transforms, one after the other
import torch
class Compose:
    def __init__(self, *transforms):
        self.transforms = transforms
    def __call__(self, x):
        for transform in self.transforms:
            x = transform(x)
        return x
to_unit = Compose(lambda x: x / x.max(), torch.square, torch.Tensor.tolist)
def work():
    return to_unit(torch.tensor([1.0, 2.0]))
#= [0.25, 1.0]

# %% pinned memory, where there is no GPU
import warnings
import torch
from torch.utils.data import DataLoader
def work():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return [batch.tolist() for batch in DataLoader(torch.arange(4), batch_size=4, pin_memory=True)]
#= [[0, 1, 2, 3]]

# %% a generator as a loader
def batches(n, size=2):
    buffer = []
    for i in range(n):
        buffer.append(i)
        if len(buffer) == size:
            yield buffer
            buffer = []
    if buffer:
        yield buffer
def work():
    return list(batches(3))
#= [[0, 1], [2]]

# %% digits that scikit-learn ships
from sklearn.datasets import load_digits
digits = load_digits()
def work():
    return digits.data.shape, int(digits.target[:10].sum())
#= ((1797, 64), 45)

# %% a DataFrame of the notebook
import pandas as pd
frame = pd.DataFrame({"label": ["a", "b", "a"], "n": [1, 2, 3]})
def work():
    return frame.groupby("label").n.sum().to_dict()
#= {"a": 4, "b": 2}

# %% an array on disk, mapped
import numpy as np
np.save("mapped.npy", np.arange(5))
mapped = np.load("mapped.npy", mmap_mode="r")
def work():
    return int(mapped.sum()), int(np.load("mapped.npy", mmap_mode="r")[-1])
#= (10, 4)
