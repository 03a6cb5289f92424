"""Every formula of the pages is one that the KaTeX of the site typesets without a complaint."""

from __future__ import annotations

import json
import re
import shutil
import subprocess

import pytest
from documents import ROOT

pytestmark = pytest.mark.docs
SCRIPT = """
const [katex, formulas] = [require(process.argv[1]), JSON.parse(require("fs").readFileSync(0, "utf8"))];
for (const tex of formulas) katex.renderToString(tex, { strict: "error", throwOnError: true });
console.log(formulas.length);
"""


def formulas() -> list[str]:
    """What stands between dollars, code aside."""
    text = "\n".join(page.read_text("utf-8") for page in sorted((ROOT / "docs").rglob("*.md")))
    text = re.sub(r"^( *)```.*?^ *```|`[^`]*`", "", text, flags=re.S | re.M)
    return [block or line for block, line in re.findall(r"^\$\$\n(.*?)\n\$\$$|\$([^$\n]+)\$", text, re.S | re.M)]


@pytest.mark.skipif(not shutil.which("node"), reason="needs node, to run KaTeX outside of a browser")
def test_katex_typesets_every_formula() -> None:
    command = ["node", "-e", SCRIPT, str(ROOT / "docs" / "katex" / "katex.min.js")]
    done = subprocess.run(command, input=json.dumps(formulas()), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 50
