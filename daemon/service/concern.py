"""One finding of `bentpipe check`."""

import dataclasses


@dataclasses.dataclass(frozen=True, slots=True)
class Concern:
    """Where in the configuration, and what is wrong. If it is `fatal`, `serve` would not start."""

    where: str
    message: str
    fatal: bool

    def __str__(self) -> str:
        return f"{'' if self.fatal else 'warning: '}{self.where}: {self.message}"
