"""The process in which clips are prepared: `python -m shards.media.child`. See `shards.media.isolated`.

Requests come as JSON on standard input, answers go to standard output: 4 bytes of length, a JSON text, then as many
bytes as its `sizes` say. A clip that takes too long ends the process by an alarm that nothing can catch or delay, also
when the parent has died.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import struct
import sys
from typing import Any, BinaryIO

LENGTH = struct.Struct(">I")


def read_exactly(file: BinaryIO, count: int) -> bytes:
    """`count` bytes; EOFError where the other side has gone."""
    data = file.read(count)
    if data is None or len(data) != count:
        raise EOFError
    return data


def write_message(file: BinaryIO, header: dict[str, Any], *parts: bytes) -> None:
    """Length, header with the parts' sizes, parts."""
    text = json.dumps({**header, "sizes": [len(part) for part in parts]}).encode()
    file.write(LENGTH.pack(len(text)) + text)
    for part in parts:
        file.write(part)
    file.flush()


def read_message(file: BinaryIO) -> tuple[dict[str, Any], list[bytes]]:
    """Header and parts of one message; EOFError where the other side has gone."""
    header = json.loads(read_exactly(file, LENGTH.unpack(read_exactly(file, LENGTH.size))[0]))
    return header, [read_exactly(file, size) for size in header["sizes"]]


def main() -> None:
    """Answer requests until standard input ends."""
    # Whatever a library prints must not land amid the answers.
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    memory = int(sys.argv[1])
    if memory:
        resource.setrlimit(resource.RLIMIT_AS, (memory, memory))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))

    import av
    import cv2

    from shards.media.limits import Limits, MediaError
    from shards.media.look import look
    from shards.media.one_clock import check_clock
    from shards.media.prepare import Request, prepare

    av.logging.set_level(av.logging.PANIC)
    cv2.setNumThreads(1)
    write_message(answers, {"ready": True})
    while True:
        try:
            header, _ = read_message(sys.stdin.buffer)
        except EOFError:
            return
        signal.setitimer(signal.ITIMER_REAL, header["timeout"])
        try:
            if "clock" in header:
                details: Any = {"read": check_clock(header["clock"], Limits(**header["limits"]))}
                parts: list[bytes] = []
            elif "look" in header:
                details = look(header["look"], Limits(**header["limits"]), header["sound_alone"]).to_dict()
                parts = []
            else:
                prepared = prepare(Request.from_dict(header["request"]))
                details = prepared.details
                parts = [part for part in (prepared.video, prepared.sound) if part is not None]
        except MediaError as error:
            answer: tuple[Any, ...] = ({"reason": error.reason, "message": str(error)},)
        except MemoryError:
            answer = ({"reason": "too_many_bytes", "message": "preparing the clip ran out of memory"},)
        except Exception as error:  # a library's own failure on hostile data is this clip's fault, not the job's
            answer = ({"reason": "damaged", "message": f"{type(error).__name__}: {error}"[:500]},)
        else:
            answer = ({"details": details}, *parts)
        signal.setitimer(signal.ITIMER_REAL, 0)
        write_message(answers, *answer)


if __name__ == "__main__":
    main()
