"""The border to decoders and tokenizers of others, which bytes or text can make fail in any way."""

import contextlib
from collections.abc import Callable, Iterator


@contextlib.contextmanager
def failures_as(refusal: Callable[[str], ValueError]) -> Iterator[None]:
    """Whatever fails inside becomes `refusal(reason)`, so that it costs one item and not the run.

    A ValueError passes as it is if it is already of the refusal's class. So do interruption, exit
    and lack of memory, which are not the item's. Extensions written in Rust panic with a class that
    derives from BaseException; that is such a failure too.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit, GeneratorExit, MemoryError):
        raise
    except BaseException as error:
        reason = str(error).partition("\n")[0] or type(error).__name__
        refused = refusal(reason)
        if type(error) is type(refused):
            raise
        raise refused from error
