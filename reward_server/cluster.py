"""Ray clusters from a command line: how to reach one, and how to find the named actor of a run in it.

Contract: whatever cannot be had ends in time, with RewardSetupError and the way out; an actor that does not answer,
with RewardError.
"""

from __future__ import annotations

import argparse
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from reward_server.errors import RewardError, RewardSetupError

_CONNECT_S = 10.0
_CALL_S = 30.0


def add_cluster_arguments(parser: argparse.ArgumentParser) -> None:
    """Which run of which cluster, and how long to wait: of the commands that scale it."""
    parser.add_argument("--ray-address", default="auto", metavar="A", help="of the Ray cluster (default: this node's)")
    parser.add_argument("--namespace", metavar="S", help="Ray namespace of the run (default: the only run)")
    parser.add_argument(
        "--timeout", type=float, default=600.0, metavar="S", help="seconds to wait (default: %(default)g)"
    )


@contextmanager
def connected(address: str) -> Iterator[None]:
    """`ray.init` to the cluster at `address` ("auto": this node's), for the block."""
    reach(address)
    send_token()
    import ray

    check_choice(address)
    try:
        found = stay_on_loopback(address)
    except ConnectionError as error:
        raise RewardSetupError("no Ray cluster runs on this machine: give --ray-address HOST:PORT") from error
    reach(found)  # the address that a cluster of this machine left behind may be that of one that has ended
    check_token(found)
    try:
        ray.init(address=address, logging_level="ERROR", log_to_driver=False)
    except ConnectionError as error:
        raise RewardSetupError(f"no Ray cluster answers at {found}: give --ray-address HOST:PORT") from error
    try:
        yield
    finally:
        ray.shutdown()


def reach(address: str) -> None:
    """Raises RewardSetupError where nobody listens: Ray would try for minutes, whatever time-out it is given."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdigit():
        return  # "auto", or a name that Ray resolves
    try:
        socket.create_connection((host, int(port)), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise RewardSetupError(
            f"no Ray cluster answers at {address} ({error}): give --ray-address HOST:PORT"
        ) from error


def check_choice(address: str) -> None:
    """Raises RewardSetupError where "auto" could be several clusters of this machine, none of which was made its own by
    `ray start`: Ray would take any of them, and the run of somebody else would be scaled."""
    from ray._private import services

    if address != "auto" or os.environ.get("RAY_ADDRESS") or services.find_bootstrap_address(None) is not None:
        return
    found = sorted(services.find_gcs_addresses())
    if len(found) > 1:
        raise RewardSetupError(
            f"{len(found)} Ray clusters run on this machine ({', '.join(found)}): give --ray-address HOST:PORT, "
            "which a run prints when it has started"
        )


def check_token(address: str) -> None:
    """Raises RewardSetupError where the cluster at `address` does not take our token: Ray would ask 20 times in as many
    seconds, print a line each time, and then say that it can't connect."""
    import grpc
    from ray._private.grpc_utils import init_grpc_channel
    from ray.core.generated import gcs_service_pb2, gcs_service_pb2_grpc

    with init_grpc_channel(address) as channel:
        gcs = gcs_service_pb2_grpc.NodeInfoGcsServiceStub(channel)
        try:
            gcs.GetClusterId(gcs_service_pb2.GetClusterIdRequest(), timeout=_CONNECT_S)
        except grpc.RpcError as error:
            if error.code() is grpc.StatusCode.UNAUTHENTICATED:  # the rest is for Ray to judge
                raise RewardSetupError(
                    f"a Ray cluster runs at {address} and does not take our token: give its own by "
                    "RAY_AUTH_TOKEN_PATH=FILE (default: ~/.ray/auth_token), or another cluster by --ray-address"
                ) from error


def stay_on_loopback(address: str) -> str:
    """Before `ray.init(address)`: a cluster that listens on loopback alone (a run of one machine) is sought there.
    Returns where the cluster is.

    Ray puts this machine's outward address in place of a loopback one, where no such cluster answers. Raises
    ConnectionError where "auto" finds none.
    """
    from ray._private import ray_constants, services

    found = services.get_ray_address_from_environment(address, None)
    ray_constants.ENABLE_RAY_CLUSTER = found.rpartition(":")[0] not in ("127.0.0.1", "localhost", "[::1]")
    return str(found)


def send_token() -> None:
    """Ray sends the cluster's token (`ray get-auth-token`) by itself only to a cluster that it found by itself.

    To be called before Ray is imported: it is then that Ray reads the variable.
    """
    named = "RAY_AUTH_TOKEN" in os.environ or "RAY_AUTH_TOKEN_PATH" in os.environ
    if named or (Path.home() / ".ray" / "auth_token").is_file():
        os.environ.setdefault("RAY_AUTH_MODE", "token")


def find_actor(name: str, namespace: str | None, what: str) -> tuple[Any, str]:
    """The actor of that name and its namespace, which is that of a run; None: of the only run. `what` it has."""
    import ray

    if namespace is None:
        found = namespaces(name)
        if len(found) != 1:
            raise RewardSetupError(
                f"{len(found)} runs in this Ray cluster have {what}; choose one by its namespace "
                f"({', '.join(found) or 'none'})"
            )
        namespace = found[0]
    try:
        return ray.get_actor(name, namespace=namespace), namespace
    except ValueError as error:
        raise RewardSetupError(f"no run of the Ray namespace {namespace!r} has {what}") from error


def answer_of(reference: Any, whom: str) -> Any:
    """What an actor answers to a call, waited for. Raises RewardError, which names it (`whom`), where it does not."""
    import ray

    try:
        return ray.get(reference, timeout=_CALL_S)
    except ray.exceptions.GetTimeoutError as error:
        raise RewardError(f"waited {_CALL_S:g} s for {whom} to answer") from error
    except ray.exceptions.RayActorError as error:
        raise RewardError(f"{whom} has ended") from error


def namespaces(name: str) -> list[str]:
    """Those with an actor of that name."""
    import ray

    actors = ray.util.list_named_actors(all_namespaces=True)
    return sorted(actor["namespace"] for actor in actors if actor["name"] == name)
