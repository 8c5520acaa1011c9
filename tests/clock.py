"""Time for tests of what is measured: it stands still until somebody sleeps."""


class Clock:
    """Seconds that pass only when somebody sleeps, so that a busy machine changes nothing."""

    def __init__(self) -> None:
        self.now = 0.0

    def read(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
