"""The machine and the code that a tool measures, and its process' memory."""

import os
import pathlib
import platform
import resource
import subprocess
import sys

import keras
import numpy as np

from tools import _process

STATUS = pathlib.Path("/proc/self/status")


def forget_peak():
    """Forgets earlier peaks where the system can; bytes in use now."""
    try:
        pathlib.Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        pass  # reading the data may then hide a small model's peak
    return peak_memory()


def peak_memory():
    """Bytes: the largest resident memory of this process."""
    try:
        lines = STATUS.read_text().splitlines()
        peaks = [line.split()[1] for line in lines if line[:6] == "VmHWM:"]
        return 1024 * int(peaks[0])
    except (OSError, IndexError):
        # The unit is bytes on macOS only. On Linux this peak includes the
        # parent's, so the line above reads another one.
        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def usage():
    """What this process has used: seconds of all cores, and page faults.

    Both are steadier than the time on a wall clock of a busy machine.
    """
    used = resource.getrusage(resource.RUSAGE_SELF)
    return used.ru_utime + used.ru_stime, used.ru_minflt


def machine():
    """What the numbers depend on."""
    backend = keras.backend.backend()
    cpu = pathlib.Path("/proc/cpuinfo")
    names = cpu.read_text().splitlines() if cpu.is_file() else []
    names = [line.partition(":")[2] for line in names if "model name" in line]
    gpu = ACCELERATORS[backend]()
    return {
        "processor": (names or [platform.processor()])[0].strip(),
        "cores": os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "keras": keras.__version__,
        "backend": f"{backend} {sys.modules[backend].__version__}",
        "numpy": np.__version__,
        **({"accelerator": gpu} if gpu else {}),
    }


def commit():
    """The commit of this clone, `-dirty` if files differ; "" without git."""
    call = ["git", "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(
            call, cwd=_process.ROOT, capture_output=True, text=True
        )
    except OSError:
        return ""
    return done.stdout.strip()


def _jax_gpu():
    import jax

    (device, *_) = jax.devices()
    return None if device.platform == "cpu" else device.device_kind


def _torch_gpu():
    import torch

    available = torch.cuda.is_available()
    return torch.cuda.get_device_name() if available else None


def _no_gpu():
    """TensorFlow is measured on CPUs only."""


ACCELERATORS = {
    "jax": _jax_gpu,
    "tensorflow": _no_gpu,
    "torch": _torch_gpu,
}
