"""One job in a process of its own: `python -m tools.bench.worker JOB ANSWER`.

JOB is JSON; the answer is written to the path ANSWER.
"""

import json
import pathlib
import sys

from tools.bench import converted
from tools.bench import decoding
from tools.bench import layers
from tools.bench import models
from tools.bench import profile
from tools.bench import runtime
from tools.bench import settings

GROUPS = {
    "times": layers.times,
    "memory": layers.memory,
    "models": models.times,
    "profile": profile.run,
    "decoding": decoding.run,
    "verify": layers.verify,
    "settings": settings.measure,
    "converted": converted.measure,
}


def main(job, answer):
    job = json.loads(job)
    machine = runtime.machine()  # with the load before this job
    answer = pathlib.Path(answer)
    result = {**GROUPS[job["group"]](job), "machine": machine}
    answer.write_text(json.dumps(result), encoding="utf-8")


if __name__ == "__main__":
    main(*sys.argv[1:])
