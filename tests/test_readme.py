"""The README is true: every Python snippet runs, and prints what it says it prints."""

import re
from pathlib import Path

import jax
import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PRINTED = re.findall(r"^```text\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.strip().splitlines()[-1][:40])
def test_snippet(snippet, capsys):
    exec(compile(snippet, "README.md", "exec"), {})
    if "num_starts=64" in snippet:
        assert capsys.readouterr().out == PRINTED[0]


def test_the_example_gradient_is_a_number():
    """The snippet does not print it, and NaN would go unseen."""
    snippet = next(s for s in SNIPPETS if "jax.grad" in s)
    scope = {}
    exec(compile(snippet, "README.md", "exec"), scope)
    assert abs(float(jax.grad(scope["held_out"])(1.0))) > 0
