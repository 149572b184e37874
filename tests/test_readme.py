"""The README is true: every Python snippet runs, and prints what it says it prints."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parent.parent / "README.md").read_text()
SNIPPETS = re.findall(r"^```python\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)
PRINTED = re.findall(r"^```text\n(.*?)^```", README, flags=re.MULTILINE | re.DOTALL)


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda s: s.strip().splitlines()[-1][:40])
def test_snippet(snippet, capsys):
    scope = {}
    exec(compile(snippet, "README.md", "exec"), scope)
    if "jax.grad" in snippet:  # not printed, so that NaN would go unseen
        assert abs(float(scope["slope"])) > 0
    if "num_starts=64" in snippet:
        # The words to the letter, the numbers to the rounding of float32; how many steps is up to that rounding.
        number = r"-?\d+(?:\.\d+)?"
        printed, promised = (
            re.sub(r"\d+ steps|\d+$", "n", t, flags=re.M) for t in (capsys.readouterr().out, PRINTED[0])
        )
        assert re.sub(number, "#", printed) == re.sub(number, "#", promised)
        shown, said = ([float(n) for n in re.findall(number, text)] for text in (printed, promised))
        assert shown == pytest.approx(said, abs=5e-3)
