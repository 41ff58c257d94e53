"""A class with lifecycle methods and a parameter.

Without postponed annotations: `modal.parameter` needs the type itself.
"""

import modal

app = modal.App("classes")


@app.cls()
class Counter:
    start: int = modal.parameter(default=0)

    @modal.enter()
    def begin(self) -> None:
        self.value = self.start

    @modal.method()
    def add(self, amount: int) -> int:
        self.value += amount
        return self.value

    @modal.method()
    def name(self) -> str:
        return f"counter from {self.start}"
