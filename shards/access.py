"""Failures of access: a store that refuses, throttles or does not answer says nothing about the data in it."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import fsspec

from conclugen.common import uris

# What a store's own error code means. (problem, what to do, whether the same request may succeed later)
_EXPIRED = (
    "the credentials have expired",
    "Renew them (a new AWS_SESSION_TOKEN, or the login that issues it) and run the same command again",
    False,
)
_WRONG_KEY = (
    "the store does not accept the credentials",
    "Correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE), or the endpoint they are sent to",
    False,
)
_NO_CREDENTIALS = (
    "there are no credentials",
    "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (or AWS_PROFILE) where the job runs, on every node",
    False,
)
_FORBIDDEN = (
    "no permission",
    "Ask its owner for permission to list and read it, or use credentials that have it (those that have expired are "
    "refused in the same way)",
    False,
)
_NO_BUCKET = ("there is no such bucket", "Correct its name, or the region or endpoint in which it is looked for", False)
_ELSEWHERE = ("the bucket is in another region", "Set AWS_DEFAULT_REGION to the bucket's region", False)
_CLOCK = ("this machine's clock differs from the store's", "Set the clock, and run the same command again", False)
_REFUSED = (
    "the store refuses the request",
    "Check credentials (expired ones are refused in this way too), region and endpoint",
    False,
)
_THROTTLED = (
    "the store asks for fewer requests",
    "Wait and run the same command again, with fewer workers if it comes back",
    True,
)
_SILENT = (
    "the store does not answer",
    "Check the network and the endpoint, and run the same command again; what is done so far is kept",
    True,
)
_FAILED = ("the store failed", "Wait and run the same command again", True)
_LOCAL = ("no permission", "Give this user permission to read it, or name a folder that this user may use", False)

_CODES = {
    **dict.fromkeys(["ExpiredToken", "ExpiredTokenException", "RequestExpired", "TokenRefreshRequired"], _EXPIRED),
    **dict.fromkeys(["InvalidAccessKeyId", "SignatureDoesNotMatch", "InvalidClientTokenId"], _WRONG_KEY),
    **dict.fromkeys(["InvalidToken", "UnrecognizedClientException", "AuthorizationHeaderMalformed"], _WRONG_KEY),
    **dict.fromkeys(["AccessDenied", "AllAccessDisabled", "AccountProblem", "403", "401"], _FORBIDDEN),
    **dict.fromkeys(["SlowDown", "Throttling", "ThrottlingException", "TooManyRequests", "429"], _THROTTLED),
    **dict.fromkeys(["RequestLimitExceeded", "BandwidthLimitExceeded", "ServiceUnavailable", "503"], _THROTTLED),
    **dict.fromkeys(["PermanentRedirect", "Redirect", "301", "307"], _ELSEWHERE),
    **dict.fromkeys(["InternalError", "500", "502"], _FAILED),
    **dict.fromkeys(["RequestTimeout", "504"], _SILENT),
    "NoSuchBucket": _NO_BUCKET,
    "RequestTimeTooSkewed": _CLOCK,
    "400": _REFUSED,
}
# Errors of clients that are raised before there is an answer, by the name of their class.
_CLASSES = {
    **dict.fromkeys(["NoCredentialsError", "PartialCredentialsError", "CredentialRetrievalError"], _NO_CREDENTIALS),
    **dict.fromkeys(["ProfileNotFound", "NoAuthTokenError"], _NO_CREDENTIALS),
    **dict.fromkeys(["UnauthorizedSSOTokenError", "SSOTokenLoadError", "TokenRetrievalError"], _EXPIRED),
    **dict.fromkeys(["ConnectTimeoutError", "ReadTimeoutError", "EndpointConnectionError"], _SILENT),
    **dict.fromkeys(["ConnectionClosedError", "HTTPClientError", "ProxyConnectionError"], _SILENT),
    **dict.fromkeys(["ClientConnectorError", "ServerDisconnectedError", "ServerTimeoutError"], _SILENT),
    "FSTimeoutError": _SILENT,
}
_ERRNOS = {
    errno.EBUSY: _THROTTLED,
    errno.ETIMEDOUT: _SILENT,
    errno.ESTALE: _SILENT,
    errno.EHOSTDOWN: _SILENT,
    errno.EHOSTUNREACH: _SILENT,
    getattr(errno, "EREMOTEIO", -1): _FAILED,
    getattr(errno, "EREMCHG", -2): _ELSEWHERE,
}
LOCAL_RESULT = "Write to a local folder, then copy it, for instance with `aws s3 sync`"
LOCAL_SOURCE = "Copy it to a local folder first, for instance with `aws s3 sync`"
SHARED_FOLDER = "Name a folder that every node reaches; checkpoints alone can lie elsewhere (run.storage)"
_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")


class AccessError(OSError):
    """Data that could not be reached, so that nothing is known about it: never a reason to repair or pack again.

    where: path or URL; problem and remedy: in words; may_pass: whether the same request may succeed later.
    """

    def __init__(self, where: str, problem: str, remedy: str, may_pass: bool = False, said: str = "") -> None:
        super().__init__(f"{where}: {problem}{f' ({said})' if said else ''}; the data may be whole. {remedy}")
        self.where, self.problem, self.remedy, self.may_pass, self.said = where, problem, remedy, may_pass, said

    def __reduce__(self) -> tuple[object, ...]:
        return (type(self), (self.where, self.problem, self.remedy, self.may_pass, self.said))


def access_error(error: BaseException, where: str) -> AccessError | None:
    """What an error of a store or a file system says about access; None where it is about the data.

    The store's own code counts before the class of exception that a client makes of it: one class covers a missing
    file and a missing bucket, another for a wrong key and a missing permission.
    """
    if isinstance(error, AccessError):
        return error
    said = uris.scrub(error).strip().splitlines()[:1]
    quoted = said[0][:200] if said else type(error).__name__
    known = None
    cause: BaseException | None = error
    while cause is not None and known is None:
        known = _CODES.get(_code(cause)) or _CLASSES.get(type(cause).__name__)
        cause = cause.__cause__
    if known is None and isinstance(error, PermissionError):
        known = _FORBIDDEN if is_url(where) else _LOCAL
    if known is None and isinstance(error, TimeoutError | ConnectionError):
        known = _SILENT
    if known is None and isinstance(error, OSError):
        known = _ERRNOS.get(error.errno or 0)
    if known is None and isinstance(error, ImportError) and is_url(where):
        known = ("a package is missing that reads such addresses", "Install it: pip install 'conclugen[s3]'", False)
    return None if known is None else AccessError(where, *known, quoted)


def _code(error: BaseException) -> str:
    """Of an error as botocore makes it: `response["Error"]["Code"]`."""
    response = getattr(error, "response", None)
    details = response.get("Error") if isinstance(response, dict) else None
    return str(details.get("Code")) if isinstance(details, dict) else ""


@contextmanager
def reaching(where: str, storage_options: Mapping[str, Any] | None = None) -> Iterator[None]:
    """Errors within that are about access to `where` become AccessError; all others stay what they are."""
    try:
        yield
    except Exception as error:
        problem = access_error(error, where)
        if problem is None or problem is error:
            raise
        if problem.problem in (_FORBIDDEN[0], _REFUSED[0]) and is_url(where):
            problem = _asked_again(where, storage_options) or problem
        raise problem from error


def _asked_again(where: str, storage_options: Mapping[str, Any] | None) -> AccessError | None:
    """What the store says where its folder is listed: a refused question for a file's size alone has no reason."""
    try:
        filesystem, path = fsspec.core.url_to_fs(where, **(storage_options or {}))
        filesystem.ls(filesystem._parent(path), refresh=True)
    except Exception as error:
        return access_error(error, where)
    return None


def is_url(path: str) -> bool:
    """Whether a path is an address of another store than this machine's file system."""
    return "://" in path or "::" in path


def refuse_url(option: str, path: str | Path | None, remedy: str) -> None:
    """Raise ValueError where a local path is needed and an address such as s3://bucket/folder is given, also one that
    `pathlib.Path` has taken a slash from."""
    text = "" if path is None else str(path)
    found = _URL.match(text)
    if found is not None:
        scheme = text[: found.end() - 2]
        rest = text[found.end() :].lstrip("/")
        raise ValueError(f"{option} {scheme}://{rest}: must be a local path, got an address. {remedy}")
