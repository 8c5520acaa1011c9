"""Frees what a Train controller that was killed still holds. The one place where Ray's internals are touched, but
for those of a local Ray's start (`ray_jobs.ray_cluster`).

*Placement groups.* One lives until both its creator, the controller, and the job are dead. The job lives on here, to
start again: with exactly enough CPUs the next workers would wait for ever for those that the old group holds. The
public `ray.util.placement_group_table` does not say who made a group. Ray Train has a cleaner of its own, an actor that
asks the State API of a dashboard whether the controller lives. It is left out: without a dashboard it does nothing, and
where several Rays run on a machine it may ask another one, which knows no such controller, and then takes the workers'
resources away in the middle of a run that is well.

*Reservations.* An actor keeps account of who wants which CPUs and GPUs, and tells a run that would do with fewer
workers how many there is room for. A controller that is killed leaves its reservation there for three minutes: the next
start would be told that what its predecessor had is taken, and wait for it or continue with fewer workers than it could
have.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable
from typing import Any

import psutil
import ray
from ray._private.state import state as global_state
from ray.core.generated import gcs_pb2
from ray.exceptions import GetTimeoutError, RayError
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.torch.config import _TorchBackend
from ray.train.v2._internal.callbacks.datasets import DatasetsCallback
from ray.train.v2._internal.callbacks.placement_group_callback import PlacementGroupCleanerCallback
from ray.util.placement_group import PlacementGroup, remove_placement_group

_WITHIN_S, _ANSWER_WITHIN_S = 60.0, 5.0


class Trainer(TorchTrainer):
    """A TorchTrainer without Ray's own cleaner of placement groups, and without its manager of data sets: one more
    process that starts and imports Ray Data each time, while no data set is given (each worker opens its own stream).
    It also leaves signals alone: its own handler of SIGINT may end the job with status 0.

    Args:
        attempt: Names what Ray Train reserves for the workers, so that a later attempt can give it back.
    """

    def __init__(self, attempt: str, train: Callable[[], None], **options: Any):
        super().__init__(train, **options)
        object.__setattr__(self.train_run_context, "run_id", attempt)  # frozen, and nothing else lets it be given

    def _create_default_callbacks(self) -> list[Any]:
        callbacks = super()._create_default_callbacks()
        return [c for c in callbacks if not isinstance(c, PlacementGroupCleanerCallback | DatasetsCallback)]

    def _register_sigint_handler(self, controller: Any) -> None:
        """`conclugen.common.ending` has the signals, and the workers end with the job."""


class OwnAddressConfig(TorchConfig):
    """A TorchConfig whose workers take gloo's connections at the address by which Ray knows their node.

    By itself gloo takes them where the hostname resolves to. That is the loopback interface on many a machine (Debian
    writes 127.0.1.1 into /etc/hosts, as many containers do), where no other node reaches it.
    """

    @property
    def backend_cls(self) -> type[_TorchBackend]:
        return _OwnAddressBackend


class _OwnAddressBackend(_TorchBackend):
    def on_start(self, worker_group: Any, backend_config: TorchConfig) -> None:
        worker_group.execute(take_own_address)
        super().on_start(worker_group, backend_config)


def take_own_address() -> None:
    """In a worker, before its process group is made; what the user has set there holds."""
    name = interface_of(ray.util.get_node_ip_address())
    if name is not None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", name)


def interface_of(address: str) -> str | None:
    """The network interface that has this address, None where there is none of it."""
    interfaces = psutil.net_if_addrs().items()
    return next((name for name, has in interfaces if any(each.address == address for each in has)), None)


def release_orphaned_placement_groups() -> int:
    """Remove the placement groups of this job whose creator is a dead actor; returns how many there were.

    Between two starts no controller of this process lives. Ray may tell of a controller's death before it has written
    it down there, on a busy machine by many seconds, so groups of this process's own actors are waited for: one that is
    left holds the CPUs for which the next controller would wait without end.
    """
    job = ray.get_runtime_context().get_job_id()
    removed = 0
    deadline = time.monotonic() + _WITHIN_S
    quiet_since = time.monotonic()
    while time.monotonic() < deadline and time.monotonic() - quiet_since < 1.0:
        for group in _groups(job):
            if group.creator_actor_dead:
                remove_placement_group(PlacementGroup(ray.PlacementGroupID(group.placement_group_id)))
                removed += 1
            elif not _is_own(group.creator_actor_id):
                continue
            quiet_since = time.monotonic()
        time.sleep(0.2)
    return removed


def _groups(job: str) -> list[gcs_pb2.PlacementGroupTableData]:
    accessor = global_state._connect_and_get_accessor()
    groups = [gcs_pb2.PlacementGroupTableData.FromString(entry) for entry in accessor.get_placement_group_table()]
    removed = gcs_pb2.PlacementGroupTableData.REMOVED
    return [g for g in groups if g.creator_job_id.hex() == job and g.creator_actor_id and g.state != removed]


def _is_own(actor: bytes) -> bool:
    """Whether this process has made an actor."""
    told = global_state._connect_and_get_accessor().get_actor_info(ray.ActorID(actor))
    owner = None if told is None else gcs_pb2.ActorTableData.FromString(told).owner_address.worker_id.hex()
    return owner == ray.get_runtime_context().get_worker_id()


def cancel_reservation(attempt: str) -> None:
    """Release what an earlier attempt of the run reserved, unless its controller is still alive and renews it."""
    _ask_accounts("cancel_request", f"train-{attempt}")


def refresh_nodes() -> None:
    """Make the actor look at the nodes now; by itself it does so every 20 s."""
    _ask_accounts("get_reserved_resources", "conclugen", recompute=True)


def nodes_past_their_notice() -> set[str]:
    """Nodes that should have been taken away by now: nothing more is placed on them, and yet they may be counted."""
    deadlines_ms = global_state.get_draining_nodes()  # 0: none was given
    return {node for node, deadline_ms in deadlines_ms.items() if 0 < deadline_ms < time.time() * 1000}


def _ask_accounts(what: str, *arguments: Any, **options: Any) -> None:
    """Where the actor does not run yet it knows nothing old; where it does not answer, time must do."""
    with contextlib.suppress(ValueError, RayError, GetTimeoutError):
        accounts = ray.get_actor("AutoscalingCoordinator", namespace="AutoscalingCoordinator")
        ray.get(getattr(accounts, what).remote(*arguments, **options), timeout=_ANSWER_WITHIN_S)
