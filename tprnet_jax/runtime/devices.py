"""Data parallelism: how arrays lie on several devices and hosts.

Images are divided over the devices along their first axis, and each device has its own images'
patches; parameters are on every device. The networks run on each device by themselves (`on_each`);
losses and gradients are summed over all. A process loads and samples for its own devices' images
alone.
"""

import functools
import json
import os
import re
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tprnet_jax.runtime.errors import UserError

AXIS = "data"
ROWS, EVERYWHERE = PartitionSpec(AXIS), PartitionSpec()


def join(coordinator: str, processes: int | None = None, process: int | None = None) -> None:
    """Joins the processes of a run; call before anything else of JAX.

    Args:
        coordinator: Address and port of the first process, "auto" where the cluster says all, or
            empty for one process alone.
        processes: Number of processes.
        process: Number of this one, from 0.

    Raises:
        UserError: They do not go together, or JAX cannot join the others.
    """
    _check_flags(coordinator, processes, process)
    if not coordinator:
        return
    arguments = () if coordinator == "auto" else (coordinator, processes, process)
    try:
        jax.distributed.initialize(*arguments)
    except (RuntimeError, ValueError) as error:
        raise UserError(
            f"JAX cannot join the other processes ({' '.join(str(error).split())}); correct "
            "--coordinator, --processes and --process"
        ) from error


def _check_flags(coordinator: str, processes: int | None, process: int | None) -> None:
    given = f"--coordinator={coordinator} --processes={processes} --process={process}"
    if coordinator in ("", "auto"):
        if (processes, process) != (None, None):
            raise UserError(f"{given}; give the first process's ADDRESS:PORT as --coordinator")
        return
    if not re.fullmatch(r".+:\d+", coordinator) or None in (processes, process):
        raise UserError(
            f"{given}; give all three, such as --coordinator=10.0.0.1:1234 --processes=2 "
            "--process=0"
        )
    if process >= processes:
        raise UserError(f"{given}; give a --process from 0 to {processes - 1}")


def mesh(batch: int) -> Mesh | None:
    """The devices that share a batch, as many as divide it, in a row; None for one alone.

    Of several processes, each gives equally many.

    Raises:
        UserError: Not even one device of each process divides the batch.
    """
    processes = jax.process_count()
    if batch % processes:
        raise UserError(
            f"config.train.batch is {batch}, but there are {processes} processes to share it; "
            f"make it a multiple of {processes}"
        )
    share = batch // processes
    each = max(n for n in range(1, jax.local_device_count() + 1) if share % n == 0)
    if each * processes == 1:
        return None
    chosen = [device for p in range(processes) for device in jax.local_devices(p)[:each]]
    return jax.make_mesh((len(chosen),), (AXIS,), axis_types=(AxisType.Auto,), devices=chosen)


def shard(devices: Mesh | None, tree):
    """Arrays of this process's rows, as rows of arrays over all devices."""
    if devices is None:
        return jax.tree.map(jax.numpy.asarray, tree)
    rows = NamedSharding(devices, ROWS)
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), tree)


def replicate(devices: Mesh | None, tree):
    """Arrays that every process has alike, on every device."""
    if devices is None:
        return tree
    everywhere = NamedSharding(devices, EVERYWHERE)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(everywhere, np.asarray(x)), tree
    )


def on_each(devices: Mesh | None, function: Callable, inputs, outputs) -> Callable:
    """Inside `jit`: a function that each device calls with its own part of the arguments.

    Nothing passes between the devices, so that XLA compiles for each what it would for one alone.

    Args:
        devices: They, or None for one alone.
        function: Of arrays to arrays.
        inputs: `ROWS` or `EVERYWHERE` for each argument.
        outputs: The same for what it returns.
    """
    if devices is None:
        return function
    # Whether outputs are alike everywhere is not checked: scans start from zeros, which are.
    return jax.shard_map(
        function, mesh=devices, in_specs=inputs, out_specs=outputs, check_vma=False
    )


def alone(program: Callable) -> Callable:
    """A jitted function in which devices wait for each other; on CPUs, beside no other program.

    A CPU that waits holds one of XLA's threads, of which there are as many as cores. Two programs
    at a time can so take all of them, and wait for each other until XLA ends the process.
    """

    @functools.wraps(program)
    def call(*arguments):
        if jax.default_backend() != "cpu":
            return program(*arguments)
        return jax.block_until_ready(program(*jax.block_until_ready(arguments)))

    return call


def number(devices: Mesh | None) -> jax.Array | int:
    """Inside `on_each`: which of the devices this is."""
    return 0 if devices is None else jax.lax.axis_index(AXIS)


def own(tree):
    """Inside `on_each`: arrays that every device has its own of, as `ROWS` of one each."""
    return jax.tree.map(lambda x: x[None], tree)


def given(tree):
    """Inside `on_each`: the inverse of `own`."""
    return jax.tree.map(lambda x: x[0], tree)


def keep_everywhere(devices: Mesh | None, tree):
    """Inside `jit`: these arrays are on every device."""
    if devices is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(devices, EVERYWHERE))


def keep_rows(devices: Mesh | None, tree):
    """Inside `jit`: the first axes of these arrays stay divided over the devices."""
    if devices is None:
        return tree
    return jax.lax.with_sharding_constraint(tree, NamedSharding(devices, ROWS))


def local_rows(array: jax.Array) -> jax.Array | np.ndarray:
    """This process's rows of an array divided by `shard`."""
    shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
    if len(shards) == 1:
        return next(iter(shards.values()))
    return np.concatenate(jax.device_get([shards[start] for start in sorted(shards)]))


def unreplicate(tree):
    """Arrays that are on every device, from this process's first one."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def allgather(number: int) -> np.ndarray:
    """The number that each process gives, in the order of the processes."""
    if jax.process_count() == 1:
        return np.array([number])
    return multihost_utils.process_allgather(np.int32(number))


def allgather_json(value) -> list:
    """What each process gives, in the order of the processes.

    Args:
        value: Anything that JSON can hold.
    """
    if jax.process_count() == 1:
        return [value]
    data = np.frombuffer(json.dumps(value).encode(), np.uint8)
    padded = np.pad(data, (0, max(allgather(len(data))) - len(data)), constant_values=ord(" "))
    return [json.loads(bytes(row)) for row in multihost_utils.process_allgather(padded)]


def barrier(what: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def free_bytes() -> int:
    """Memory that the first device has to give: on a CPU, what the system has free."""
    device = jax.local_devices()[0]
    if stats := device.memory_stats():
        return stats["bytes_limit"] - stats["bytes_in_use"]
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        fields = dict(line.split(":") for line in lines)
        return 1024 * int(fields["MemAvailable"].split()[0])
    except (OSError, KeyError):  # Not Linux.
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0
