"""Exit codes of commands, by cause: launchers start a command again unless its user has to act.

0    done
2    the user's mistake (command, config, data): running it again ends the same way
3    something that may have passed by the next start: storage, network, a lost process, a lock
130  Ctrl-C, 143 SIGTERM: what can be saved is saved
1    anything else, with a traceback
"""

import errno

USER, TRANSIENT = 2, 3

# What an operating system reports of paths and permissions; nothing of this passes by itself.
_LASTING = {
    errno.ENOENT, errno.EACCES, errno.EPERM, errno.EISDIR, errno.ENOTDIR, errno.EEXIST,
    errno.EINVAL, errno.ENAMETOOLONG, errno.EROFS, errno.ELOOP, errno.EXDEV, errno.ENOTEMPTY,
}  # fmt: skip


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


def _may_pass(error: BaseException) -> bool:
    if not isinstance(error, OSError):
        return False
    lasting = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError)
    if isinstance(error, (*lasting, NotADirectoryError)) or error.errno in _LASTING:
        return False
    # Without a number it is a sentence of our own about a file, unless another library made it.
    return error.errno is not None or type(error) is not OSError
