"""What torch.compile needs here: many contenders share the code that calls them, and none may fall back to eager."""

from collections.abc import Iterator
from contextlib import contextmanager

from vitdense.benchmarking.rows import AbsentError

LIMIT = 256


@contextmanager
def compiling(*, wanted: bool) -> Iterator[None]:
    """Room for all contenders of a row, if any of them is compiled; what the row before compiled is dropped.

    By default torch compiles one piece of code 8 times, and runs the ninth contender eagerly without a word.
    """
    if not wanted:
        yield
        return
    import torch._dynamo

    torch.compiler.reset()
    with torch._dynamo.config.patch(
        recompile_limit=LIMIT, accumulated_recompile_limit=LIMIT, fail_on_recompile_limit_hit=True
    ):
        yield


@contextmanager
def refusing_to_compile() -> Iterator[None]:
    """Around the first steps of a compiled contender: AbsentError with the reason where torch.compile fails."""
    from torch._dynamo.exc import FailOnRecompileLimitHit

    try:
        yield
    except (RuntimeError, FailOnRecompileLimitHit) as error:
        raise AbsentError(f"torch.compile failed: {' '.join(str(error).splitlines()[:2])}") from error
