"""Pickles torch tensors. Their bytes go out of band, and CUDA tensors arrive on the CPU.

torch's own ``__reduce__`` of a storage runs ``torch.save`` into memory. A 256 MB tensor is then
copied three times, and took 1.6 s from rank to kernel. As a `pickle.PickleBuffer` it is written
once and mapped. Pickling doesn't import torch: without torch, there are no tensors.

Only this module uses torch's private names for the parts of a storage
(``TypedStorage._untyped_storage``, its ``_internal`` argument). ``tests/system/test_cpython.py``
fails where one has moved.
"""

from __future__ import annotations

import ctypes
import pickle
import sys
from typing import Any


class TensorReducer:
    """Reduces the storages of one pickle. Tensors that share memory still share it afterwards."""

    def __init__(self) -> None:
        torch = sys.modules.get("torch")
        self._typed = getattr(getattr(torch, "storage", None), "TypedStorage", None)
        self._untyped = getattr(torch, "UntypedStorage", None)
        self._by_address: dict[int, _Bytes] = {}

    def __call__(self, obj: Any) -> Any:
        """Reduces a storage, for ``reducer_override``; NotImplemented if it is none."""
        if self._typed is None or type(obj) not in (self._typed, self._untyped):
            return NotImplemented
        untyped = obj if type(obj) is self._untyped else obj._untyped_storage
        if untyped.device.type == "meta":
            return NotImplemented
        shared = self._by_address.get(untyped._cdata)
        if shared is None:
            shared = self._by_address[untyped._cdata] = _Bytes(untyped)
        if obj is untyped:
            return _same, (shared,)
        return _typed_storage, (shared, obj.dtype)


class _Bytes:
    """The bytes of one storage. The pickler memoizes this object, so it pickles them only once."""

    def __init__(self, untyped: Any) -> None:
        self._keep_alive = untyped
        self._storage = untyped if untyped.device.type == "cpu" else untyped.cpu()

    def __reduce__(self) -> tuple[Any, ...]:
        size = self._storage.nbytes()
        if not size:
            return _untyped_storage, (b"",)
        view = (ctypes.c_ubyte * size).from_address(self._storage.data_ptr())
        return _untyped_storage, (pickle.PickleBuffer(view),)


def _untyped_storage(data: Any) -> Any:
    import torch

    if not len(data):
        return torch.UntypedStorage(0)
    if memoryview(data).readonly:
        data = bytearray(data)
    return torch.frombuffer(data, dtype=torch.uint8).untyped_storage()


def _same(untyped: Any) -> Any:
    return untyped


def _typed_storage(untyped: Any, dtype: Any) -> Any:
    import torch

    return torch.storage.TypedStorage(wrap_storage=untyped, dtype=dtype, _internal=True)
