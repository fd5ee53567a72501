"""State of the launching process that its ranks take over.

It is the state that changes numbers, what is printed or raised, and what a script reads.

The kernel reads this state and sends it with the launch. A rank compares it with its own and sets
what differs. The kernel imports nothing for it: a library that it hasn't imported has no state
there.

Some state stays that of a fresh process: random number generators (ranks seed themselves), hooks,
signal handlers, logging handlers other than those of the standard streams, and the options of
libraries other than torch and numpy.
"""

from __future__ import annotations

import contextlib
import gc
import os
import re
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from icelaunch_nb.launching import logging_state
from icelaunch_nb.system import cpython

# The functions that read and set each part. A part that an interpreter lacks is left out.
_INTERPRETER: dict[str, tuple[Callable[[], Any], Callable[..., Any]]] = {
    "recursion_limit": (sys.getrecursionlimit, sys.setrecursionlimit),
    "switch_interval": (sys.getswitchinterval, sys.setswitchinterval),
    "stack_size": (threading.stack_size, threading.stack_size),
    "socket_timeout": (socket.getdefaulttimeout, socket.setdefaulttimeout),
    "gc_threshold": (gc.get_threshold, lambda thresholds: gc.set_threshold(*thresholds)),
    "gc": (gc.isenabled, lambda enabled: gc.enable() if enabled else gc.disable()),
}
if hasattr(sys, "set_int_max_str_digits"):  # since Python 3.10.7
    _INTERPRETER["int_max_str_digits"] = (sys.get_int_max_str_digits, sys.set_int_max_str_digits)
_SYS = ("dont_write_bytecode", "pycache_prefix", "warnoptions", "_xoptions")

# Paths below `torch` of the function that reads and of the one that sets; their first arguments.
_TORCH_CALLS: dict[str, tuple[str, str, tuple[str, ...]]] = {
    "default_dtype": ("get_default_dtype", "set_default_dtype", ()),
    "float32_matmul_precision": (
        "get_float32_matmul_precision",
        "set_float32_matmul_precision",
        (),
    ),
    "grad": ("is_grad_enabled", "set_grad_enabled", ()),
    "autocast_cache": ("is_autocast_cache_enabled", "set_autocast_cache_enabled", ()),
    "autocast_cpu": ("is_autocast_enabled", "set_autocast_enabled", ("cpu",)),
    "autocast_cuda": ("is_autocast_enabled", "set_autocast_enabled", ("cuda",)),
    "autocast_cpu_dtype": ("get_autocast_dtype", "set_autocast_dtype", ("cpu",)),
    "autocast_cuda_dtype": ("get_autocast_dtype", "set_autocast_dtype", ("cuda",)),
    "warn_always": ("is_warn_always_enabled", "set_warn_always", ()),
    "sharing_strategy": (
        "multiprocessing.get_sharing_strategy",
        "multiprocessing.set_sharing_strategy",
        (),
    ),
    "overwrite_module_params": (
        "__future__.get_overwrite_module_params_on_conversion",
        "__future__.set_overwrite_module_params_on_conversion",
        (),
    ),
    "swap_module_params": (
        "__future__.get_swap_module_params_on_conversion",
        "__future__.set_swap_module_params_on_conversion",
        (),
    ),
    "flash_sdp": ("backends.cuda.flash_sdp_enabled", "backends.cuda.enable_flash_sdp", ()),
    "mem_efficient_sdp": (
        "backends.cuda.mem_efficient_sdp_enabled",
        "backends.cuda.enable_mem_efficient_sdp",
        (),
    ),
    "math_sdp": ("backends.cuda.math_sdp_enabled", "backends.cuda.enable_math_sdp", ()),
    "cudnn_sdp": ("backends.cuda.cudnn_sdp_enabled", "backends.cuda.enable_cudnn_sdp", ()),
    "reduced_math_sdp": (
        "backends.cuda.fp16_bf16_reduction_math_sdp_allowed",
        "backends.cuda.allow_fp16_bf16_reduction_math_sdp",
        (),
    ),
    "mha_fastpath": ("backends.mha.get_fastpath_enabled", "backends.mha.set_fastpath_enabled", ()),
    "nnpack": ("_C._get_nnpack_enabled", "backends.nnpack.set_flags", ()),
}
# Attributes below `torch.backends`, in the order in which they are set: a general precision comes
# before those of single operations.
_TORCH_FLAGS = (
    "cudnn.enabled",
    "cudnn.deterministic",
    "cudnn.benchmark",
    "cudnn.benchmark_limit",
    "cudnn.allow_tf32",
    "cuda.matmul.allow_fp16_reduced_precision_reduction",
    "cuda.matmul.allow_bf16_reduced_precision_reduction",
    "cuda.matmul.allow_fp16_accumulation",
    "mkldnn.enabled",
    "mkldnn.deterministic",
    "mkldnn.allow_tf32",
    "miopen.immediate",
    "opt_einsum.enabled",
    "opt_einsum.strategy",
    "quantized.engine",
    "fp32_precision",
    "cudnn.fp32_precision",
    "mkldnn.fp32_precision",
    "cuda.matmul.fp32_precision",
    "cudnn.conv.fp32_precision",
    "cudnn.rnn.fp32_precision",
    "mkldnn.matmul.fp32_precision",
    "mkldnn.conv.fp32_precision",
    "mkldnn.rnn.fp32_precision",
)
_TORCH_PREFERRED = {
    "preferred_linalg_library": "_get_linalg_preferred_backend",
    "preferred_blas_library": "_get_blas_preferred_backend",
}
_NUMPY_PRINTING = (
    "precision",
    "threshold",
    "edgeitems",
    "linewidth",
    "suppress",
    "nanstr",
    "infstr",
    "sign",
    "floatmode",
    "legacy",
)
_SMALLEST_NORMAL = sys.float_info.min
_DEFAULT_FILTERS = (
    "DeprecationWarning",
    "PendingDeprecationWarning",
    "ImportWarning",
    "ResourceWarning",
    "BytesWarning",
)
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_entered_guards: list[Any] = []  # guards that must live as long as the process
# torch's state in a forkserver, and so in each rank that it has just forked.
_fresh: dict[str, Any] = {}


def capture() -> dict[str, Any]:
    """The state of this process, as JSON."""
    state: dict[str, Any] = {
        "argv": _argv(),
        "interpreter": {name: read() for name, (read, _) in _INTERPRETER.items()},
    }
    state["sys"] = {name: value for name in _SYS if _is_plain(value := getattr(sys, name, None))}
    state["warnings"] = _capture_warnings()
    state["flush_denormal"] = _SMALLEST_NORMAL / 2 == 0
    readers = {
        "multiprocessing": _start_method,
        "locale": _locale,
        "decimal": _decimal,
        "logging": logging_state.capture,
        "numpy": _numpy,
        "torch": _torch,
    }
    for name, read in readers.items():
        module = sys.modules.get(name)
        if module is not None:
            with contextlib.suppress(Exception):  # another thread may be importing it just now
                state[name] = read(module)
    return state


def read_fresh_torch() -> None:
    """Reads torch's state once, in a forkserver, so that no rank has to. It takes 0.6 ms."""
    import torch

    _fresh.update(_torch(torch))


def apply(state: dict[str, Any], *, device: str, threads: int | None) -> None:
    """Gives this process, a rank that has imported torch, the launching process's state.

    Args:
        state: The result of `capture`.
        device: The rank's device.
        threads: How many threads torch gets if the launching process didn't set their number;
            None: torch's own default.
    """
    import torch

    if "argv" in state:
        sys.argv = list(state["argv"])
    for name, value in state.get("interpreter", {}).items():
        if name in _INTERPRETER:
            read, write = _INTERPRETER[name]
            _set(read, write, tuple(value) if isinstance(value, list) else value)
    for name, value in state.get("sys", {}).items():
        if getattr(sys, name, None) != value:
            setattr(sys, name, value)
    method = state.get("multiprocessing")
    if method:
        import multiprocessing

        with contextlib.suppress(ValueError):
            multiprocessing.set_start_method(method, force=True)
    if "locale" in state:
        _apply_locale(state["locale"])
    if "decimal" in state:
        _apply_decimal(state["decimal"])
    if "logging" in state:
        logging_state.apply(state["logging"])
    if "numpy" in state:
        _apply_numpy(state["numpy"])
    if state.get("flush_denormal", False) != (_SMALLEST_NORMAL / 2 == 0):
        torch.set_flush_denormal(state["flush_denormal"])
    _apply_torch(torch, state.get("torch", {}), device)
    _apply_threads(torch, state.get("torch", {}).get("threads"), threads)
    if "warnings" in state:  # last, since the calls above may warn
        _apply_warnings(state["warnings"], torch_known="torch" in state)


def _set(read: Callable[[], Any], write: Callable[[Any], Any], value: Any) -> None:
    """Sets a value that differs. One that this machine or version doesn't support is left out."""
    with contextlib.suppress(Exception):
        if read() != value:
            write(value)


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple | dict):
        return all(map(_is_plain, value.values() if isinstance(value, dict) else value))
    return value is None or isinstance(value, bool | int | float | str)


# The command line.


def _argv() -> list[str]:
    """The ``sys.argv`` for ranks.

    Arguments that a cell has set are included. Those that the kernel was started with are not.
    """
    argv = [str(argument) for argument in getattr(sys, "argv", [""])] or [""]
    if getattr(sys.modules.get("__main__"), "__file__", None) is not None or not _in_ipython():
        return argv
    # Either `python -m ipykernel_launcher -f …` or `python …/ipykernel_launcher.py -f …`.
    started_with, path = sys.orig_argv, argv[0].split(os.sep)
    name = "" if {argv[0], *path, path[-1].removesuffix(".py")} & {*started_with} else argv[0]
    arguments = argv[1:]
    return (
        [name] if arguments and arguments == started_with[-len(arguments) :] else [name, *arguments]
    )


def _in_ipython() -> bool:
    ipython = sys.modules.get("IPython")
    return ipython is not None and getattr(ipython, "get_ipython", lambda: None)() is not None


# Python's libraries.


def _start_method(multiprocessing: Any) -> str | None:
    """The start method that was set; None for the platform's default."""
    chosen = multiprocessing.get_start_method(allow_none=True)
    return None if chosen == multiprocessing.get_all_start_methods()[0] else chosen


def _locale(locale: Any) -> str:
    return locale.setlocale(locale.LC_ALL)


def _apply_locale(wanted: str) -> None:
    import locale

    with contextlib.suppress(locale.Error):
        if locale.setlocale(locale.LC_ALL) != wanted:
            locale.setlocale(locale.LC_ALL, wanted)


def _decimal(decimal: Any) -> dict[str, Any]:
    context = decimal.getcontext()
    numbers = {
        name: getattr(context, name)
        for name in ("prec", "rounding", "Emin", "Emax", "capitals", "clamp")
    }
    return {
        **numbers,
        "traps": [signal.__name__ for signal, trapped in context.traps.items() if trapped],
    }


def _apply_decimal(wanted: dict[str, Any]) -> None:
    import decimal

    if _decimal(decimal) != wanted:
        with contextlib.suppress(Exception):
            decimal.setcontext(
                decimal.Context(
                    **{**wanted, "traps": [getattr(decimal, name) for name in wanted["traps"]]}
                )
            )


def _capture_warnings() -> list[list[Any]]:
    """The filters. Each category goes by its name: its module may be a large one, or a cell.

    A filter that makes an error of every warning is left out while warnings are recorded, since
    pytest sets it for its own process. Ranks don't record warnings.
    """
    found, recorded = [], cpython.warnings_are_recorded()
    category: Any
    for action, message, category, module, line in warnings.filters:
        if recorded and (action, message, category, module, line) == (
            "error",
            None,
            Warning,
            None,
            0,
        ):
            continue
        found.append(
            [
                action,
                _pattern(message),
                f"{category.__module__}:{category.__qualname__}",
                _pattern(module),
                line,
            ]
        )
    return found


def _pattern(pattern: Any) -> Any:
    return (
        pattern if pattern is None or isinstance(pattern, str) else [pattern.pattern, pattern.flags]
    )


def _apply_warnings(wanted: list[list[Any]], *, torch_known: bool) -> None:
    """Sets the filters.

    If the launching process hasn't imported torch yet, the filters that this import adds go before
    the others: an import in the function would have put them there.
    """
    mine = _capture_warnings()
    if not torch_known:
        of_imports = [entry for entry in mine if entry not in wanted and not _is_default(entry)]
        wanted = [*of_imports, *wanted]
    if mine != wanted:
        categories: list[Any] = [entry[2] for entry in warnings.filters]
        known = {
            f"{category.__module__}:{category.__qualname__}": category for category in categories
        }
        warnings.filters[:] = [  # type: ignore[index]
            (
                action,
                _compiled(message),
                known.get(category) or _category(category),
                _compiled(module),
                line,
            )
            for action, message, category, module, line in wanted
        ]
        with warnings.catch_warnings():  # makes Python forget which warnings it has shown
            pass


def _is_default(entry: list[Any]) -> bool:
    """Whether it is one of the filters that an interpreter starts with by default."""
    return (
        entry[1] is None
        and entry[3] in (None, "__main__")
        and entry[2] in [f"builtins:{name}" for name in _DEFAULT_FILTERS]
    )


def _compiled(pattern: Any) -> Any:
    return re.compile(*pattern) if isinstance(pattern, list) else pattern


def _category(name: str) -> type[Warning]:
    """The class of that name; a stand-in for it if its module isn't imported yet."""
    module, _, qualname = name.partition(":")
    found: Any = sys.modules.get(module)
    for part in qualname.split("."):
        found = getattr(found, part, None)
    return (
        found
        if isinstance(found, type)
        else _CategoryStandIn(qualname.rpartition(".")[2], (Warning,), {"name": name})
    )


class _CategoryStandIn(type):
    """The metaclass of stand-ins. A stand-in matches the warnings whose category has its name."""

    name: str

    def __subclasscheck__(cls, category: type) -> bool:
        return any(
            f"{base.__module__}:{base.__qualname__}" == cls.name for base in category.__mro__
        )


# numpy.


def _numpy(numpy: Any) -> dict[str, Any]:
    printing = numpy.get_printoptions()
    return {
        "errors": numpy.geterr(),
        "printing": {
            name: printing[name] for name in _NUMPY_PRINTING if _is_plain(printing.get(name))
        },
    }


def _apply_numpy(wanted: dict[str, Any]) -> None:
    import numpy

    if numpy.geterr() != wanted["errors"]:
        numpy.seterr(**wanted["errors"])
    mine = numpy.get_printoptions()
    if any(mine.get(name) != value for name, value in wanted["printing"].items()):
        numpy.set_printoptions(**wanted["printing"])


# torch.


def _torch(torch: Any) -> dict[str, Any]:
    """torch's state. Reading it initialises no GPU."""
    state: dict[str, Any] = {"calls": {}, "flags": {}, "preferred": {}}
    for name, (read, _, arguments) in _TORCH_CALLS.items():
        # This torch may lack it, or refuse to read precisions that were set in the old and the
        # new way at once.
        with contextlib.suppress(Exception):
            state["calls"][name] = _plain(_follow(torch, read)(*arguments))
    for name in _TORCH_FLAGS:
        with contextlib.suppress(Exception):
            state["flags"][name] = _plain(_follow(torch.backends, name))
    if not torch.version.hip:
        for name, read in _TORCH_PREFERRED.items():
            with contextlib.suppress(Exception):
                state["preferred"][name] = _plain(_follow(torch._C, read)())
    with contextlib.suppress(Exception):
        state["deterministic"] = [
            torch.are_deterministic_algorithms_enabled(),
            torch.is_deterministic_algorithms_warn_only_enabled(),
        ]
        state["fill_uninitialized"] = torch.utils.deterministic.fill_uninitialized_memory
    with contextlib.suppress(Exception):
        state["anomaly"] = [torch.is_anomaly_enabled(), torch.is_anomaly_check_nan_enabled()]
        state["inference"] = torch.is_inference_mode_enabled()
    with contextlib.suppress(Exception):
        state["printing"] = dict(vars(torch._tensor_str.PRINT_OPTS))
    with contextlib.suppress(Exception):
        state["device"] = _default_device(torch)
    with contextlib.suppress(Exception):
        state["threads"] = _threads(torch)
    return state


def _plain(value: Any) -> Any:
    """A plain value as it is; a dtype or a member of an enumeration by its name."""
    return value if _is_plain(value) else getattr(value, "name", None) or str(value)


def _follow(start: Any, path: str) -> Any:
    for part in path.split("."):
        start = getattr(start, part)
    return start


def _apply_torch(torch: Any, wanted: dict[str, Any], device: str) -> None:
    mine = _fresh or _torch(torch) if wanted else {}
    if all(mine.get(name) == value for name, value in wanted.items() if name != "threads"):
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch warns that there is a newer way to set it
        for name, value in _differing("calls", wanted, mine):
            _, write, arguments = _TORCH_CALLS[name]
            with contextlib.suppress(Exception):
                _follow(torch, write)(*arguments, _from_plain(torch, value))
        # Each is compared just before it is set: a general precision changes those of operations.
        for name in _TORCH_FLAGS:
            if name in wanted["flags"]:
                path, _, attribute = f"backends.{name}".rpartition(".")
                with contextlib.suppress(Exception):
                    owner = _follow(torch, path)
                    if _plain(getattr(owner, attribute)) != wanted["flags"][name]:
                        setattr(owner, attribute, wanted["flags"][name])
        for name, value in _differing("preferred", wanted, mine):
            with contextlib.suppress(Exception):
                _follow(torch.backends.cuda, name)(value.lower())
        if wanted.get("deterministic", mine.get("deterministic")) != mine.get("deterministic"):
            _set_deterministic(torch, *wanted["deterministic"])
        if wanted.get("fill_uninitialized") not in (None, mine.get("fill_uninitialized")):
            torch.utils.deterministic.fill_uninitialized_memory = wanted["fill_uninitialized"]
        if wanted.get("anomaly", mine.get("anomaly")) != mine.get("anomaly"):
            torch.autograd.set_detect_anomaly(*wanted["anomaly"])
        if wanted.get("printing", mine.get("printing")) != mine.get("printing"):
            with contextlib.suppress(Exception):
                torch.set_printoptions(**wanted["printing"])
        if wanted.get("device") != mine.get("device"):
            _set_default_device(torch, wanted.get("device"), device)
        if wanted.get("inference"):
            guard = torch.inference_mode()
            guard.__enter__()
            _entered_guards.append(guard)


def _differing(
    part: str, wanted: dict[str, Any], mine: dict[str, Any]
) -> Iterator[tuple[str, Any]]:
    for name, value in wanted.get(part, {}).items():
        if name in mine[part] and mine[part][name] != value:
            yield name, value


def _from_plain(torch: Any, value: Any) -> Any:
    return (
        getattr(torch, value.removeprefix("torch."))
        if isinstance(value, str) and value.startswith("torch.")
        else value
    )


def _set_deterministic(torch: Any, enabled: bool, warn_only: bool) -> None:
    """Does what ``torch.use_deterministic_algorithms`` does, but doesn't import torch's compiler.

    That import takes a second.
    """
    if "torch._inductor.config" in sys.modules:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
    else:
        # The compiler reads it when it is imported.
        os.environ["TORCHINDUCTOR_DETERMINISTIC"] = "1" if enabled else "0"
        torch._C._set_deterministic_algorithms(enabled, warn_only=warn_only)


def _set_default_device(torch: Any, wanted: str | None, device: str) -> None:
    """Sets the default device. A GPU becomes the rank's own; a rank on the CPU gets no default."""
    kind = torch.device(wanted).type if wanted else None
    if kind in ("cuda", "xpu", "hpu"):
        wanted = kind if torch.device(device).type == kind else None
    torch.set_default_device(wanted)


def _default_device(torch: Any) -> str | None:
    """The default device's name; None if none was set.

    ``torch.get_default_device`` would make a tensor on a GPU.
    """
    module = sys.modules.get("torch.utils._device")
    if module is None:
        return None
    modes = [
        mode.device
        for mode in torch.overrides._get_current_function_mode_stack()
        if isinstance(mode, module.DeviceContext)
    ]
    device = modes[-1] if modes else module.CURRENT_DEVICE
    return None if device is None else str(device)


def _threads(torch: Any) -> int | None:
    """How many threads torch uses; None if a variable for it was changed since the start."""
    started = _environ_at_start()
    if any(started.get(name) != os.environ.get(name) for name in _THREADS):
        return None
    return torch.get_num_threads()


def _environ_at_start() -> dict[str, str | None]:
    try:
        with open("/proc/self/environ", "rb") as file:
            entries = [entry.partition(b"=") for entry in file.read().split(b"\0")]
    except OSError:  # not Linux: a variable that isn't set now counts as unchanged
        return dict.fromkeys(_THREADS)
    return {os.fsdecode(name): os.fsdecode(value) for name, _, value in entries}


def _apply_threads(torch: Any, wanted: int | None, share: int | None) -> None:
    """Sets the number that the launching process has, or else the rank's share of the machine."""
    own = torch.get_num_threads()
    if wanted is not None and wanted != own and wanted <= (os.cpu_count() or 1):
        torch.set_num_threads(wanted)
    elif share is not None:
        torch.set_num_threads(share)
