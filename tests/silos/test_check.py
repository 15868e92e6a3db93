import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.exchange.documents import Agreement
from models.exchange.spec import vector_digest
from models.ledger import Signer
from models.plan import Plan
from models.tasks import task
from models.tasks.flat import FlatNetwork
from silos import check, precision
from silos.approval import decisions
from silos.approval.approve import approve, revoke
from silos.check import check_site
from silos.config import Site
from silos.finding import Finding
from silos.keys import load_signer

Look = Callable[..., dict[str, Finding]]


@pytest.fixture
def look(phantom: Callable[[int], Site], tmp_path: Path) -> Look:
    """Check a copy of a hospital, some lines of its `site.toml` changed; findings by name."""

    def checked(plan: Plan | None = None, **changes: str) -> dict[str, Finding]:
        folder = tmp_path / "north"
        shutil.copytree(phantom(0).key.parent.parent, folder, dirs_exist_ok=True)
        path = folder / "site.toml"
        lines = path.read_text().splitlines()
        changes = {"min_patients": "6", **changes}
        for key, value in changes.items():
            (number,) = [n for n, line in enumerate(lines) if line.startswith(f"{key} =")]
            lines[number] = f"{key} = {value}"
        path.write_text("\n".join(lines))
        return {finding.what: finding for finding in check_site(path, plan)}

    return checked


def agreed(plan: Plan) -> Agreement:
    """The study that a coordinator makes of a plan."""
    network = FlatNetwork(task(plan.task).build(plan.seed))
    initial = vector_digest(network.spec.digest, network.weights.numpy())
    key = Signer.from_seed("aggregator", b"a" * 32).vkey
    return Agreement(plan=plan, coordinator_key=key, initial=initial, spec=network.spec.digest)


def test_a_phantom_is_ready_for_a_study_and_says_how_much_it_takes(look: Look, make_plan: Callable[..., Plan]) -> None:
    findings = look(make_plan())
    assert [finding for finding in findings.values() if not finding.ok] == []
    batch = findings["a batch through the network"].found
    assert batch.startswith("8 cases in ")
    parameters = int(batch.split("; ")[1].split()[0].replace(",", ""))
    assert 1_000 < parameters < 10_000
    assert "per update" in batch
    assert findings["coordinator"].found == "no coordinator named: simulations only"


@pytest.mark.parametrize("able", [False, True])
def test_what_mixed_precision_means_on_this_machine_is_told(
    look: Look, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch, able: bool
) -> None:
    monkeypatch.setattr(precision, "has_bfloat16", lambda _: able)
    batch = look(make_plan(training={"mixed_precision": True}))["a batch through the network"]
    assert batch.ok
    told = r"trained in bfloat16, \d+\.\d times as fast" if able else "trained in float32, as there is no bfloat16 here"
    assert re.search(told, batch.found)


def test_without_a_study_no_network_is_built(look: Look) -> None:
    findings = look()
    assert all(finding.ok for finding in findings.values())
    assert "a batch through the network" not in findings


def test_too_few_held_out_patients_are_told_with_the_key_that_asks_for_more(look: Look, tmp_path: Path) -> None:
    found = look(min_patients="20", min_evaluated="100")["patients held out"]
    assert found.fix.startswith("policy.min_evaluated asks for 100")
    path = tmp_path / "north" / "site.toml"
    path.write_text(path.read_text().replace("min_evaluated = 100\n", ""))
    (found,) = [finding for finding in check_site(path, None) if finding.what == "patients held out"]
    assert found.fix.startswith("policy.min_patients asks for 20")


@pytest.mark.parametrize("key", ["tasks", "metrics"])
def test_a_policy_that_allows_nothing_is_a_problem(look: Look, key: str) -> None:
    finding = look(**{key: "[]"})["policy"]
    assert not finding.ok
    assert f"policy.{key}" in finding.found
    assert "[policy]" in finding.fix


def test_a_hospital_that_approved_no_study_is_told_how_to(look: Look) -> None:
    finding = look(studies="[]")["policy"]
    assert not finding.ok
    assert "intramural-silo approve" in finding.fix


def test_the_examples_salt_is_no_secret(look: Look) -> None:
    assert look()["salt"].ok
    finding = look(salt='"CHANGE-ME-to-a-random-text"')["salt"]
    assert not finding.ok
    assert "openssl rand" in finding.fix


def test_a_study_that_a_person_approved_needs_no_line_in_the_policy(
    look: Look, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    plan = make_plan()
    look(plan, studies="[]")  # writes the hospital
    site = Site.load(tmp_path / "north" / "site.toml")
    approve(site, agreed(plan))
    findings = look(plan, studies="[]")
    assert findings["policy"].found.startswith("demo: classification")
    assert findings["policy for the study"].ok
    revoke(site, "demo")
    findings = look(plan, studies="[]")
    assert not findings["policy"].ok
    assert not findings["policy for the study"].ok


def test_a_name_that_is_pinned_to_a_study_of_another_plan_is_a_problem_until_a_person_approves(
    look: Look, make_plan: Callable[..., Plan], tmp_path: Path
) -> None:
    first, second = make_plan(), make_plan(purpose="find other lesions")
    assert look(first)["policy for the study"].found == "demo is allowed"
    site = Site.load(tmp_path / "north" / "site.toml")
    signer = load_signer(site)
    with decisions.open_ledger(site, signer) as ledger:
        ledger.append(decisions.approved(site, ledger, agreed(first), by="policy"))
        finding = look(first)["policy for the study"]
        assert finding.ok
        assert f"pinned to {agreed(first).study}: another study of this name needs" in finding.found
        finding = look(second)["policy for the study"]
        assert not finding.ok
        assert f"pinned to {agreed(first).study}, whose plan is another" in finding.found
        assert "intramural-silo approve" in finding.fix
        assert not approve(site, agreed(second)).recorded  # this ledger is at work: the yes waits
        assert f"pinned to {agreed(second).study}" in look(second)["policy for the study"].found
    revoke(site, agreed(first).study)
    finding = look(first)["policy for the study"]
    assert not finding.ok
    assert look(second)["policy for the study"].ok
    revoke(site, "demo")
    finding = look(second)["policy for the study"]
    assert not finding.ok
    assert "which was revoked" in finding.found


def test_a_plan_whose_steps_take_too_few_images_is_a_problem(look: Look, make_plan: Callable[..., Plan]) -> None:
    finding = look(make_plan(training={"epochs": None, "steps": 1, "batch_size": 5}))["policy for the study"]
    assert finding.found == "policy.min_patients is above the 5 images that a round's steps take at most"
    assert look(make_plan(training={"epochs": None, "steps": 2, "batch_size": 3}))["policy for the study"].ok


def test_of_a_digest_in_the_policy_that_never_came_nothing_more_is_known(
    look: Look, make_plan: Callable[..., Plan]
) -> None:
    finding = look(make_plan(), studies=f'["demo@{"a" * 64}"]')["policy for the study"]
    assert finding.ok
    assert f"pinned to {'a' * 64}" in finding.found


def test_a_work_folder_that_is_a_file_is_a_problem_and_ends_nothing(look: Look, tmp_path: Path) -> None:
    findings = look(work='"labels.csv"')
    wrong = {what: (finding.found, finding.fix) for what, finding in findings.items() if not finding.ok}
    told = f"run.work: {tmp_path / 'north' / 'labels.csv'} is a file", "give a folder"
    assert wrong == {"disk": told, "images and labels": told}


def test_a_folder_that_cannot_be_opened_is_named(
    look: Look, tmp_path: Path, shut: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    look()  # writes the hospital
    closed = sorted((tmp_path / "north" / "dicom").iterdir())[0]
    shut(monkeypatch, closed)
    findings = look()
    assert findings["images and labels"].ok
    finding = findings["folders"]
    assert not finding.ok
    assert finding.found == f"1 could not be opened; the first is {closed}: Permission denied"
    assert "let this user open it" in finding.fix


def test_a_network_that_cannot_be_built_is_named(look: Look, make_plan: Callable[..., Plan]) -> None:
    plan = make_plan(task={"network": {"name": "cnn", "arguments": {"channels": [8, 16], "colour": 3}}})
    finding = look(plan)["a batch through the network"]
    assert not finding.ok
    assert "colour" in finding.found


def test_an_update_above_the_hospitals_limit_is_found_before_the_study(
    look: Look, make_plan: Callable[..., Plan]
) -> None:
    finding = look(make_plan(), max_bytes='"1 kB"')["a batch through the network"]
    assert not finding.ok
    assert "the limit is 1.0 kB" in finding.found
    assert "policy.max_bytes" in finding.fix


def test_a_batch_that_does_not_fit_is_told_with_its_size(
    look: Look, make_plan: Callable[..., Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_room(*_: object) -> None:
        raise torch.cuda.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.Tensor, "backward", no_room)
    finding = look(make_plan())["a batch through the network"]
    assert not finding.ok
    assert "a batch of 8 fails: out of memory" in finding.found
    assert "batch_size" in finding.fix


def test_a_gpu_that_is_asked_for_and_not_there_is_a_problem(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    finding = look(device='"cuda"')["device"]
    assert not finding.ok
    assert 'device = "auto"' in finding.fix
    assert look(device='"auto"')["device"].found == f"CPU, 1 of {os.cpu_count()} threads"


@pytest.mark.parametrize(("available", "ok"), [(1_900_000_000, False), (2_100_000_000, True)])
def test_less_than_two_gigabytes_of_memory_is_a_problem(
    look: Look, monkeypatch: pytest.MonkeyPatch, available: int, ok: bool
) -> None:
    monkeypatch.setattr(check, "_linux_memory", lambda: (8_000_000_000, available))
    finding = look()["memory"]
    assert finding.ok is ok
    assert finding.found == f"{available / 1e9:.1f} GB available of 8.0 GB"


@pytest.mark.skipif(not Path("/proc/meminfo").exists(), reason="this system has no /proc")
def test_memory_is_what_the_system_says() -> None:
    found = check._linux_memory()
    assert found is not None
    total, available = found
    assert 0 < available <= total <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
