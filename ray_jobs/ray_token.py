"""Whether a Ray cluster and this process agree on a token, asked of the head before anything joins it.

A head that was started with RAY_AUTH_MODE=token answers nobody without its token. Ray finds out while it connects,
tries again for half a minute, and then names an error of its own. One question to the head, without a token and with
the one that is here, tells at once; nothing is started.
"""

from __future__ import annotations

import os

import grpc
from ray._private import services
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

from conclugen.common import uris

_ANSWER_WITHIN_S = 3.0
# Changes nothing, and no bytes are a whole request of it.
_QUESTION = "/ray.rpc.NodeInfoGcsService/GetClusterId"
_INVALID = "InvalidAuthToken"  # in what Ray says of any token that it refuses
_GIVE = (
    "set RAY_AUTH_TOKEN to what `ray get-auth-token` prints on the head, or copy the head's ~/.ray/auth_token to this "
    "machine"
)
_MODE = "export RAY_AUTH_MODE=token"


def refusal(address: str) -> str | None:
    """Why no job of this process can work on the cluster of RAY_ADDRESS, with the remedy, in one line.

    None where they agree, and where nothing can be told so simply: no answer, a cluster with TLS, an address of Ray
    Client.
    """
    place = _place(address)
    asks = None if place is None else _refused(place)
    if place is None or asks is None:
        return None
    who, sends = f"the cluster at {uris.public(place)}", is_token_auth_enabled()
    if not asks and sends:  # what tasks stream to their owner would never arrive; the rest works
        return (
            f"RAY_AUTH_MODE=token is set here, and {who} asks for no token, so that what its workers send to this "
            "process is refused: unset RAY_AUTH_MODE here, or start the head with RAY_AUTH_MODE=token too"
        )
    if not asks:
        return None
    header, wrong = _own()
    if wrong is not None:
        return f"{who} asks for a token, and the one here cannot be read ({wrong}): {_GIVE}{_and_mode(sends)}"
    if not header:
        return f"{who} asks for a token, and there is none here: {_GIVE}{_and_mode(sends)}"
    if _refused(place, header):
        return f"{who} does not take the token of {_source()}: {_GIVE}{_and_mode(sends)}"
    if sends or address == "auto":  # of a cluster that it finds by itself Ray takes a token that is there
        return None
    return f"{who} asks for a token, and nothing sends it: {_MODE} (it takes the token of {_source()})"


def advice(error: BaseException) -> str | None:
    """What to do where Ray's own error is of a token; None where it is of something else."""
    told = f"{type(error).__name__} {error}"
    return f"{_MODE}, and {_GIVE}" if "AuthenticationError" in told or _INVALID in told else None


def _and_mode(sends: bool) -> str:
    return "" if sends else f", and {_MODE}"


def _place(address: str) -> str | None:
    """host:port of the head, None where it can't be asked."""
    if "://" in address or os.environ.get("RAY_USE_TLS", "0").lower() in ("1", "true"):
        return None
    if address != "auto":
        return address
    try:
        place: str | None = services.canonicalize_bootstrap_address(address)
    except Exception:  # there is none: who joins it is told
        return None
    return place


def _refused(place: str, header: tuple[tuple[str, str], ...] = ()) -> bool | None:
    """Whether the head refuses a question with this token; None where it does not answer it."""
    with grpc.insecure_channel(place, options=[("grpc.enable_http_proxy", 0)]) as channel:
        try:
            channel.unary_unary(_QUESTION)(b"", timeout=_ANSWER_WITHIN_S, metadata=header)
        except grpc.RpcError as error:
            code, details = error.code(), str(error.details())
            return True if code is grpc.StatusCode.UNAUTHENTICATED or _INVALID in details else None
    return False


def _own() -> tuple[tuple[tuple[str, str], ...], str | None]:
    """The token of this process as Ray sends it, and why it can't be read."""
    loader = AuthenticationTokenLoader.instance()
    try:
        if not loader.has_token(ignore_auth_mode=True):
            return (), None
        return tuple(loader.get_token_for_http_header(ignore_auth_mode=True).items()), None
    except Exception as error:  # Ray's own, of a file that is named and not there
        return (), f"{_source()}: {str(uris.scrub(error)).partition(chr(10))[0][:200]}"


def _source() -> str:
    """Where Ray found the token."""
    if os.environ.get("RAY_AUTH_TOKEN"):
        return "RAY_AUTH_TOKEN"
    path = os.environ.get("RAY_AUTH_TOKEN_PATH")
    return f"RAY_AUTH_TOKEN_PATH ({path})" if path else "~/.ray/auth_token"
