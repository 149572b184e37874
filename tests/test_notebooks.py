"""The notebooks as they are stored: executed from top to bottom, small, and free of errors, warnings and paths."""

import base64
import json
import re
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent.parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
# A path of somebody's machine: of Unix from the root, of Windows from a drive.
ABSOLUTE = re.compile(r"(?<![\w.:/])/(?:home|root|tmp|usr|opt|var|mnt|work|Users|private)/|\b[A-Za-z]:\\\\?\w")


def text_of(output):
    """Everything a reader sees of an output but its pictures."""
    data = {kind: value for kind, value in output.get("data", {}).items() if not kind.startswith("image/")}
    return json.dumps([output.get("text"), data, output.get("traceback"), output.get("metadata")], ensure_ascii=False)


def test_there_are_five():
    assert [path.name[0] for path in NOTEBOOKS] == ["1", "2", "3", "4", "5"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestNotebook:
    def test_it_was_executed_in_order(self, path):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        code = [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]
        assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
        assert all("".join(cell["source"]).strip() for cell in code)
        assert notebook["metadata"]["kernelspec"]["name"] == "python3"
        assert not any(cell["metadata"] for cell in notebook["cells"])

    def test_its_outputs(self, path):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        outputs = [output for cell in notebook["cells"] for output in cell.get("outputs", [])]
        pictures = [output["data"]["image/png"] for output in outputs if "image/png" in output.get("data", {})]
        assert len(pictures) >= 2
        assert any(output["output_type"] == "stream" for output in outputs)
        for picture in pictures:
            raw = base64.b64decode("".join(picture))
            assert raw.startswith(b"\x89PNG")
            assert len(raw) <= 60_000
        for output in outputs:
            assert output["output_type"] != "error"
            assert output.get("name") != "stderr"
            assert "Warning" not in text_of(output)
            assert not ABSOLUTE.search(text_of(output)), text_of(output)

    def test_it_is_small(self, path):
        assert path.stat().st_size <= 300_000

    def test_its_links_lead_somewhere(self, path):
        for name in re.findall(r"\]\(([^)]+\.ipynb)\)", path.read_text(encoding="utf-8")):
            assert (FOLDER / name).exists()
