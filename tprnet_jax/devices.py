"""Data parallelism: how arrays lie on several devices and hosts.

One program runs on all devices; XLA divides its work by how the arrays are sharded. Images and
patches are divided over the devices along their first axis, all else is on every device. A process
loads and samples for its own devices' images alone.
"""

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from tprnet_jax.errors import UserError

AXIS = "data"


def join(coordinator: str, processes: int | None, process: int | None) -> None:
    """Joins the processes of a run; call before anything else of JAX.

    Args:
        coordinator: Address and port of the first process, or "auto" where the cluster says all.
        processes: Number of processes.
        process: Number of this one, from 0.
    """
    if coordinator == "auto":
        jax.distributed.initialize()
    elif coordinator:
        jax.distributed.initialize(coordinator, processes, process)


def mesh(batch: int) -> Mesh | None:
    """All devices of all processes in a row; None if there is but one.

    Raises:
        UserError: They cannot share a batch evenly.
    """
    count = jax.device_count()
    if batch % count:
        raise UserError(
            f"config.train.batch is {batch}, but there are {count} devices to share it; make it a "
            f"multiple of {count}"
        )
    return None if count == 1 else jax.make_mesh((count,), (AXIS,), axis_types=(AxisType.Auto,))


def shard(devices: Mesh | None, tree):
    """Arrays of this process's rows, as rows of arrays over all devices."""
    if devices is None:
        return jax.tree.map(jax.numpy.asarray, tree)
    rows = NamedSharding(devices, PartitionSpec(AXIS))
    return jax.tree.map(lambda x: jax.make_array_from_process_local_data(rows, x), tree)


def replicate(devices: Mesh | None, tree):
    """Arrays that every process has alike, on every device."""
    if devices is None:
        return tree
    everywhere = NamedSharding(devices, PartitionSpec())
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(everywhere, np.asarray(x)), tree
    )


def keep_rows(devices: Mesh | None, tree):
    """Inside `jit`: the first axes of these arrays stay divided over the devices."""
    return _constrain(devices, tree, PartitionSpec(AXIS))


def keep_everywhere(devices: Mesh | None, tree):
    """Inside `jit`: these arrays are on every device."""
    return _constrain(devices, tree, PartitionSpec())


def _constrain(devices: Mesh | None, tree, spec: PartitionSpec):
    return (
        tree
        if devices is None
        else jax.lax.with_sharding_constraint(tree, NamedSharding(devices, spec))
    )


def own_rows(array: jax.Array) -> tuple[jax.Array | np.ndarray, int]:
    """This process's rows of an array divided by `shard`, and the number of the first one."""
    shards = {s.index[0].start or 0: s.data for s in array.addressable_shards}
    if len(shards) == 1:
        ((first, rows),) = shards.items()
        return rows, first
    return np.concatenate(jax.device_get([shards[start] for start in sorted(shards)])), min(shards)


def one_copy(tree):
    """Arrays that are on every device, from this process's first one."""
    return jax.tree.map(lambda x: x.addressable_data(0), tree)


def of_all(number: int) -> np.ndarray:
    """The number that each process gives, in the order of the processes."""
    if jax.process_count() == 1:
        return np.array([number])
    return multihost_utils.process_allgather(np.int32(number))


def wait_for_all(what: str) -> None:
    """Waits until every process is here."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(what)


def is_first() -> bool:
    """Whether this process is the one that writes and prints."""
    return jax.process_index() == 0
