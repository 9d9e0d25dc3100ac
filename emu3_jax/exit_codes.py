"""Exit codes of commands, by cause: launchers start a command again unless its user has to act.

0    done
2    the user's mistake (command, config, data): running it again ends the same way
3    something that may have passed by the next start: storage, network, a lost process, a lock
130  Ctrl-C, 143 SIGTERM: what can be saved is saved
1    anything else, with a traceback
"""

import errno
import os

USER, TRANSIENT = 2, 3

# What passes by itself, or by a start on another host: disks, network, full disks and tables.
_PASSING = {
    errno.EIO, errno.ENOSPC, errno.EDQUOT, errno.ESTALE, errno.EAGAIN, errno.EBUSY, errno.EINTR,
    errno.ENOMEM, errno.ENFILE, errno.EMFILE, errno.ETIMEDOUT, errno.ECONNRESET, errno.EPIPE,
    errno.ECONNREFUSED, errno.ECONNABORTED, errno.ENOTCONN, errno.EHOSTUNREACH, errno.EHOSTDOWN,
    errno.ENETUNREACH, errno.ENETDOWN, errno.ENETRESET, errno.EADDRINUSE,
}  # fmt: skip
# Libraries for buckets, whose errors often have no number.
_NETWORK = {"aiohttp", "gcsfs", "google", "requests", "s3fs", "botocore", "urllib3"}


class TransientError(Exception):
    """Marks an error that a restart may cure; its own class says what went wrong."""


def of(error: BaseException) -> int:
    """USER or TRANSIENT, for a ValueError or OSError and what caused it."""
    seen: list[BaseException] = []
    cause: BaseException | None = error
    while cause is not None and cause not in seen:
        if isinstance(cause, TransientError) or _may_pass(cause):
            return TRANSIENT
        seen.append(cause)
        cause = cause.__cause__
    return USER


def system_error(text: str) -> OSError:
    """The error that libraries in C tell by the system's text for it, such as "No such file …"."""
    number = next((number for number in errno.errorcode if os.strerror(number) == text), None)
    return OSError(text) if number is None else OSError(number, text)


def _may_pass(error: BaseException) -> bool:
    if isinstance(error, ConnectionError | TimeoutError):
        return True
    if type(error).__module__.partition(".")[0] in _NETWORK:
        return not isinstance(error, FileNotFoundError | PermissionError)
    return isinstance(error, OSError) and error.errno in _PASSING
