"""The SuperLink's database goes on while a large model is deleted from it, whatever Flower sets for it."""

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """\
import json, sys
from sqlalchemy import create_engine, event, text

engine = create_engine("sqlite:///" + sys.argv[2])
event.listen(engine, "connect", lambda found, _: found.execute("PRAGMA busy_timeout = 5000"))  # as Flower does
for _ in range(2):
    with engine.connect() as connection:
        names = ("secure_delete", "synchronous", "busy_timeout")
        print(json.dumps([connection.execute(text(f"PRAGMA {name}")).scalar() for name in names]))
"""


def test_a_program_that_is_started_this_way_has_a_patient_database(tmp_path: Path) -> None:
    (tmp_path / "flower-superlink").write_text(PROGRAM)
    command = ["-m", "aggregator.service.database", tmp_path / "flower-superlink", "--database", tmp_path / "link.db"]
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    fast, normal, a_minute = 2, 1, 60_000
    assert [json.loads(line) for line in done.stdout.splitlines()] == [[fast, normal, a_minute]] * 2
