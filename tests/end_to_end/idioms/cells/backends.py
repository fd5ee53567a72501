# %% torch's default dtype, set in a cell
import torch
torch.set_default_dtype(torch.float64)
def work():
    return str(torch.ones(1).dtype)
#= "torch.float64"
#= then: torch.set_default_dtype(torch.float32)

# %% the precision of float32 products, set in a cell
import torch
torch.set_float32_matmul_precision("high")
def work():
    return torch.get_float32_matmul_precision()
#= "high"
#= then: torch.set_float32_matmul_precision("highest")

# %% deterministic algorithms, set in a cell
import torch
torch.use_deterministic_algorithms(True, warn_only=True)
def work():
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
#= (True, True)
#= then: torch.use_deterministic_algorithms(False)

# %% cuDNN's flags, set in a cell
import torch
torch.backends.cudnn.benchmark = True
def work():
    return torch.backends.cudnn.benchmark
#= True
#= then: torch.backends.cudnn.benchmark = False

# %% TF32, switched on by cuda.matmul
import torch
def work():
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = True
    after = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = before
    return before, after
#= (False, True)

# %% is there a GPU, and which
import torch
device = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
def work():
    return torch.ones(1, device=device).device.type
#= "cpu"

# %% flags of mkldnn in a context
import torch
def work():
    with torch.backends.mkldnn.flags(enabled=False):
        inside = torch.backends.mkldnn.enabled
    return inside, torch.backends.mkldnn.enabled
#= (False, True)

# %% which kernel attention may use
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
def work():
    q = torch.ones(1, 1, 2, 4)
    with sdpa_kernel([SDPBackend.MATH]):
        return F.scaled_dot_product_attention(q, q, q).sum().item()
#= 8.0

# %% an operator by torch.ops
import torch
def work():
    return torch.ops.aten.add(torch.tensor(1), torch.tensor(2)).item()
#= 3

# %% a namespace of torch.ops, named in a cell
import torch
aten = torch.ops.aten
def work():
    return aten.mul.Tensor(torch.tensor(3), torch.tensor(4)).item()
#= 12

# %% a module under a short name
import torch.backends.cudnn as cudnn
def work():
    return cudnn.allow_tf32
#= True

# %% torch.classes and torch.ops are the modules of that name
import sys
import torch
classes, ops = torch.classes, torch.ops
def work():
    return classes is torch.classes, ops is sys.modules["torch.ops"]
#= (True, True)

# %% dynamo's settings
import torch._dynamo
def work():
    return isinstance(torch._dynamo.config.suppress_errors, bool)
#= True

# %% a device for all tensors, in a context
import torch
def work():
    with torch.device("meta"):
        return torch.ones(2).is_meta
#= True

# %% anomalies are looked for
import torch
def work():
    with torch.autograd.detect_anomaly(check_nan=False):
        return torch.is_anomaly_enabled()
#= True

# %% denormals
import torch
def work():
    return torch.set_flush_denormal(False)
#= True

# %% the number of threads is a rank's share of the cores
import torch
def work():
    return torch.get_num_threads() >= 1
#= True

# %% numpy's errors, set in a cell
import numpy as np
np.seterr(divide="raise")
def work():
    try:
        np.ones(1) / 0
    except FloatingPointError as error:
        return str(error)
#= "divide by zero encountered in divide"
#= then: np.seterr(divide="warn")

# %% recursion, allowed deeper in a cell
import sys
sys.setrecursionlimit(5000)
def depth(n):
    return 0 if n == 0 else 1 + depth(n - 1)
def work():
    return depth(3000)
#= 3000
#= then: sys.setrecursionlimit(3000)

# %% a filter of warnings, set in a cell
import warnings
warnings.filterwarnings("error", message="is deprecated here")
def work():
    try:
        warnings.warn("is deprecated here", DeprecationWarning)
    except DeprecationWarning as error:
        return "raised: " + str(error)
#= "raised: is deprecated here"
#= then: warnings.filters.pop(0) and warnings.filterwarnings("ignore", message="nothing at all")

# %% sharing tensors by the file system
import torch.multiprocessing as tmp
tmp.set_sharing_strategy("file_system")
def work():
    return tmp.get_sharing_strategy()
#= "file_system"
#= then: tmp.set_sharing_strategy("file_descriptor")
