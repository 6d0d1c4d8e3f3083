"""What a training wrote to metrics.jsonl."""

import json


def lines(workdir):
    """Its lines, without what no two runs share: time and speed."""
    records = map(json.loads, (workdir / "metrics.jsonl").read_text().splitlines())
    clock = ("time", "images_per_second")
    return [{k: v for k, v in record.items() if k not in clock} for record in records]
