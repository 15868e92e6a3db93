"""Starts Flower's SuperLink with a database that does not stand still when a large model passes through it.

    python -m aggregator.service.database /path/to/flower-superlink --database superlink.db ...

The SuperLink keeps all that is under way in SQLite. A model that has arrived is deleted there in one step. Where
SQLite was built to overwrite what is deleted, as Debian's is, that writes the whole model once more, syncs it, and
keeps all others waiting; after five seconds they fail, and with them the study: 400 MB were too many for a plain
disk. Here what is deleted is overwritten only where that costs nothing, a commit does not wait for the disk (a
power cut can take the last ones back, and the database is whole still; what was agreed on is in the ledgers, not
in here), and who waits does so for a minute.
"""

import runpy
import shutil
import sqlite3
import sys

from sqlalchemy import event
from sqlalchemy.pool import Pool

_SETTINGS = ("secure_delete = FAST", "synchronous = NORMAL", "busy_timeout = 60000")


def settle(connection: sqlite3.Connection, *_: object) -> None:
    """Set what SQLite keeps for each connection. Done whenever one is taken: Flower sets its own at the first."""
    for setting in _SETTINGS:
        connection.execute(f"PRAGMA {setting}").close()


if __name__ == "__main__":
    event.listen(Pool, "checkout", settle)
    sys.argv = sys.argv[1:]
    runpy.run_path(shutil.which(sys.argv[0]) or sys.argv[0], run_name="__main__")
