"""Autograd on fake `cuda:0` tensors in a CPU-only build of torch. Only ever called in the simulator's own process.

FakeTensorMode can hold tensors on a device that is not there, but autograd asks the device's guard which stream is
current, and a CPU-only build has no CUDA guard. torch ships the answer, FakeGuardImpl, for CUDA builds on machines
without a GPU: `ensureCUDADeviceGuardSet` (c10/core/impl/DeviceGuardImplInterface.h) puts it in place of a registered
guard that counts no devices. So a guard that answers zero to everything is registered, and torch replaces it.
The autograd engine also asks CUDAHooksInterface::isBuilt and hasPrimaryContext; both are made to say yes.

Neither is public: the layout is checked for the torch versions named here, and every other CPU-only build is refused.
"""

import ctypes
from pathlib import Path

from profiles.errors import UnsupportedError

CHECKED_VERSIONS = ("2.13",)
DEVICE_TYPES = 21  # c10::COMPILE_TIME_MAX_DEVICE_TYPES
CUDA_TYPE = 1  # c10::DeviceType::CUDA
GUARD_SLOTS = 64  # more virtual methods than DeviceGuardImplInterface has
HOOK_SLOTS = 94  # copied from CUDAHooksInterface's virtual table
IS_BUILT, HAS_PRIMARY_CONTEXT = 2, 4  # their places in it
REGISTRY = "_ZN3c104impl26device_guard_impl_registryE"  # c10::impl::device_guard_impl_registry
GET_HOOKS = "_ZN2at6detail12getCUDAHooksEv"  # at::detail::getCUDAHooks

_alive: list[object] = []  # C++ keeps pointers into these


def install_device_guard() -> None:
    """Make autograd accept fake CUDA tensors in this process; nothing to do in a CUDA build.

    Raises:
        UnsupportedError: this CPU-only torch is of a version whose internals were not checked.
    """
    import torch

    if torch.backends.cuda.is_built():
        return
    version = torch.__version__
    if not version.startswith(CHECKED_VERSIONS):
        raise UnsupportedError(
            f"the simulated tier does not know the CPU-only build of torch {version}",
            f"install torch {', '.join(CHECKED_VERSIONS)} or any CUDA build (no GPU is needed)",
        )
    libraries = Path(torch.__file__).parent / "lib"
    _register_guard(ctypes.CDLL(str(libraries / "libc10.so")), torch)
    _answer_hooks(ctypes.CDLL(str(libraries / "libtorch_cpu.so")))


def _register_guard(c10: ctypes.CDLL, torch: object) -> None:
    registry = (ctypes.c_void_p * DEVICE_TYPES).in_dll(c10, REGISTRY)
    if registry[CUDA_TYPE]:
        return
    zero = ctypes.CFUNCTYPE(ctypes.c_longlong)(lambda: 0)
    address = ctypes.cast(zero, ctypes.c_void_p).value
    table = (ctypes.c_void_p * GUARD_SLOTS)(*[address] * GUARD_SLOTS)
    guard = (ctypes.c_void_p * 1)(ctypes.addressof(table))
    _alive.extend([zero, table, guard])
    registry[CUDA_TYPE] = ctypes.addressof(guard)
    torch._C._ensureCUDADeviceGuardSet()  # type: ignore[attr-defined]
    if registry[CUDA_TYPE] == ctypes.addressof(guard):
        registry[CUDA_TYPE] = None
        raise UnsupportedError("torch did not take the fake device guard", "install a CUDA build of torch")


def _answer_hooks(torch_cpu: ctypes.CDLL) -> None:
    get_hooks = getattr(torch_cpu, GET_HOOKS)
    get_hooks.restype = ctypes.c_void_p
    hooks = ctypes.cast(get_hooks(), ctypes.POINTER(ctypes.c_void_p))
    head = 2 * ctypes.sizeof(ctypes.c_void_p)  # offset-to-top and type information stand before the first method
    original = hooks[0]
    assert original is not None
    size = HOOK_SLOTS + 2
    table = (ctypes.c_void_p * size)(*(ctypes.c_void_p * size).from_address(original - head))
    yes = ctypes.cast(ctypes.pythonapi.Py_IsInitialized, ctypes.c_void_p).value  # takes nothing, returns 1
    for slot in (IS_BUILT, HAS_PRIMARY_CONTEXT):
        table[2 + slot] = yes
    _alive.append(table)
    hooks[0] = ctypes.addressof(table) + head
