"""The border to packages of others: some are missing, and bytes or text can make them fail."""

import contextlib
import importlib
import types
from collections.abc import Callable, Iterator


class MissingPackageError(ImportError):
    """A package cannot be imported; the sentence names it. It ends the command, not one item."""


def optional(module: str, purpose: str, install: str) -> types.ModuleType:
    """Imports a module that only some commands need.

    Args:
      module: import name, such as "ray.data".
      purpose: what needs it, as the user wrote it: the subject of the sentence.
      install: arguments of pip install, such as "-r requirements-ray.txt".

    Raises:
      MissingPackageError: names the package and how to install it.
    """
    try:
        return importlib.import_module(module)
    except ImportError as error:
        package = module.partition(".")[0]
        # What it needs itself may be missing, or it may have been built for something else.
        inner = "" if (error.name or "").partition(".")[0] == package else f" ({error})"
        raise MissingPackageError(
            f"{purpose} needs the package {package}: pip install {install}{inner}"
        ) from error


@contextlib.contextmanager
def failures_as(refusal: Callable[[str], ValueError]) -> Iterator[None]:
    """Whatever fails inside becomes `refusal(reason)`, so that it costs one item and not the run.

    A ValueError passes as it is if it is already of the refusal's class. So do interruption, exit,
    lack of memory and a package that is not installed, which are not the item's. Extensions written
    in Rust panic with a class that derives from BaseException; that is such a failure too.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError, MissingPackageError):
        raise
    except BaseException as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        refused = refusal(reason)
        if type(error) is type(refused):
            raise
        raise refused from error
