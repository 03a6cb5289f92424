"""Many command lines in one child, which imports torch once: `python runs.py < command-lines.json`.

Prints a line of JSON for each: its arguments, exit code and what it printed, or the exception that left it.
"""

from __future__ import annotations

import io
import json
import sys
import traceback
from contextlib import redirect_stderr, redirect_stdout

from child import main

for arguments in json.load(sys.stdin):
    printed = io.StringIO()
    try:
        with redirect_stdout(printed), redirect_stderr(printed):
            code: int | str = main(arguments)
    except Exception:
        code = traceback.format_exc()
    print(json.dumps({"arguments": arguments, "code": code, "printed": printed.getvalue()}), flush=True)
