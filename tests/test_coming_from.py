"""The pages for people who come from elsewhere run as they are, and do what they say."""

import runpy
import sys
from pathlib import Path

import pytest

PAGES = Path(__file__).parent.parent / "scripts" / "coming_from"
SAYS = {
    "pysyft": "update of round 5: ",
    "tensorflow_federated": "west: auc ",
    "openfl": "bangalore refuses: study-not-approved",
    "nvflare": "site-2: 7 orders, 7 replies, agree",
}


def test_there_is_a_page_for_each() -> None:
    assert {page.stem for page in PAGES.glob("*.py")} == set(SAYS)


@pytest.mark.parametrize("page", SAYS)
def test_a_page_runs_as_it_is_and_again_to_the_same_model(
    page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [page, "--work", str(tmp_path / page)])
    models = []
    for _ in range(2):
        runpy.run_path(str(PAGES / f"{page}.py"), run_name="__main__")
        said = capsys.readouterr().out
        assert SAYS[page] in said
        model = next(line.split()[1] for line in said.splitlines() if line.startswith("model "))
        models.append(Path(model).read_bytes())
    assert models[0] == models[1]
