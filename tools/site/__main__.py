"""Builds the documentation site into build/site.

python -m tools.site            # then open build/site/index.html
python -m tools.site --serve    # on http://localhost:8000
"""

import argparse
import os
import subprocess
import sys

from tools.site import sources

parser = argparse.ArgumentParser(
    prog="tools.site", description=__doc__.partition("\n")[0]
)
parser.add_argument("--serve", action="store_true", help="show it, too")
parser.add_argument("--out", default=str(sources.ROOT / "build" / "site"))
args = parser.parse_args()

sources.collect(sources.ROOT / "build" / "docs")
# Material's notice about the next version of MkDocs, at each start.
environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
command = [sys.executable, "-m", "mkdocs", "build", "--strict"]
command += ["--clean", "--site-dir", args.out]
if subprocess.call(command, cwd=sources.ROOT, env=environment):
    sys.exit("The site has mistakes: see above.")
if args.serve:
    command = [sys.executable, "-m", "http.server", "--bind", "localhost"]
    sys.exit(subprocess.call([*command, "--directory", args.out]))
